"""Attention whose keys are cut into parts: when, into which, what it takes, and that results stay what they are.

Two ways lead there: tiles of queries of one head with a block for each part of their keys, and few queries that share a
key/value head, by the kernels of decoding.
"""

import numpy as np
import pytest
from backends import on_devices, on_emulator
from hypothesis import given
from hypothesis import strategies as st
from test_gpu_plan import GPUS, make_problem

import cuflash
from cuflash import ProblemError, _gpu_forward_plan, reference
from cuflash._device import Gpu

H200 = GPUS[2]


def plan(gpu=H200, **sizes):
    return _gpu_forward_plan.plan_forward(make_problem(**sizes), gpu)


# Plans.


@given(
    st.integers(1, 3), st.integers(1, 70), st.integers(1, 5000), st.sampled_from(["float16", "float32"]),
    st.none() | st.integers(0, 600), st.none() | st.integers(0, 600), st.sampled_from([1, 4, 132]),
)  # fmt: skip
def test_parts_cover_all_that_a_tile_of_queries_can_see(hk, lq, lk, dtype, left, right, sms):
    found = plan(Gpu("sm_90a", sms, 227 << 10), hq=2 * hk, hk=hk, lq=lq, lk=lk, dtype=dtype, left=left, right=right)
    config = dict(found.forward.spec.config)
    assert (found.merge is None) == (found.parts == 1) == (found.workspace == 0)
    if found.parts == 1:
        return
    tiles = found.forward.grid // found.parts
    assert tiles < sms
    assert found.forward.grid <= sms * config["blocks"]
    assert found.workspace == found.parts * 2 * hk * lq * 66 * 4
    keys_of_a_warp = {"decode_mma": 16, "decode_fma": 8}.get(found.forward.spec.kernel)
    kv_tile = keys_of_a_warp * config["warps"] if keys_of_a_warp else config["kv_tile"]
    assert found.part_keys % kv_tile == 0
    q_tile = min(lq, config["q_tile"])
    for offset in (0, lk - lq, lk // 2):
        for q0 in range(0, lq, q_tile):
            first = 0 if left is None else min(max(q0 + offset - left, 0), lk)
            end = lk if right is None else min(max(min(q0 + q_tile, lq) - 1 + offset + right + 1, 0), lk)
            assert first // kv_tile * kv_tile + found.parts * found.part_keys >= end


@pytest.mark.parametrize(
    ("sizes", "kernel", "parts"),
    [
        ({"dtype": "bfloat16", "hq": 32, "hk": 8, "lq": 16, "lk": 65536, "d": 128, "dv": 128}, "decode_mma", 16),
        ({"dtype": "bfloat16", "hq": 32, "hk": 8, "lq": 16, "lk": 512, "d": 128, "dv": 128}, "decode_mma", 2),
        ({"dtype": "bfloat16", "hq": 32, "hk": 8, "lq": 16, "lk": 300, "d": 128, "dv": 128}, "decode_mma", 1),
        ({"dtype": "bfloat16", "hq": 8, "hk": 8, "lq": 256, "lk": 65536, "d": 128, "dv": 128}, "fwd_mma", 16),
        ({"dtype": "bfloat16", "hq": 8, "hk": 8, "lq": 16, "lk": 65536, "mask": True}, "fwd_mma", 32),
        ({"dtype": "bfloat16", "hq": 8, "hk": 8, "lq": 16, "lk": 65536, "ragged": True}, "fwd_mma", 32),
        ({"dtype": "bfloat16", "batch": (2, 2), "lq": 16, "lk": 65536}, "fwd_mma", 32),
        ({"dtype": "bfloat16", "batch": (1, 2), "lq": 16, "lk": 65536}, "decode_mma", 171),
        ({"dtype": "bfloat16", "hq": 8, "hk": 8, "lq": 32, "lk": 65536}, "decode_mma", 49),
        ({"dtype": "bfloat16", "hq": 8, "hk": 8, "lq": 33, "lk": 65536}, "fwd_mma", 32),
        ({"dtype": "bfloat16", "hq": 64, "hk": 64, "lq": 49, "lk": 49}, "fwd_mma", 1),
        ({"dtype": "bfloat16", "hq": 64, "hk": 64, "lq": 1, "lk": 49}, "decode_mma", 1),
        ({"dtype": "bfloat16", "hq": 8, "hk": 4, "lq": 16, "lk": 65536, "d": 256, "dv": 256}, "decode_mma", 16),
        ({"dtype": "bfloat16", "hq": 8, "hk": 4, "lq": 17, "lk": 65536, "d": 256, "dv": 256}, "fwd_mma", 16),
        ({"dtype": "bfloat16", "hq": 32, "hk": 32, "lq": 1024, "lk": 65536}, "fwd_mma", 1),
        ({"dtype": "float32", "hq": 8, "hk": 2, "lq": 1, "lk": 65536}, "decode_fma", 256),
        ({"dtype": "float32", "hq": 8, "hk": 2, "lq": 8, "lk": 65536}, "decode_fma", 49),
        ({"dtype": "float32", "hq": 8, "hk": 2, "lq": 9, "lk": 65536}, "fwd_simt", 49),
        ({"dtype": "float64", "hq": 1, "lq": 16, "lk": 65536}, "fwd_simt", 256),
        ({"dtype": "bfloat16", "hq": 1, "lq": 16, "lk": 65536, "left": 100, "right": 0}, "decode_mma", 1),
    ],
)
def test_keys_are_cut_where_multiprocessors_would_stand_idle(sizes, kernel, parts):
    found = plan(**sizes)
    assert found.forward.spec.kernel == kernel
    assert found.parts == parts


@pytest.mark.parametrize(
    ("gpu", "sizes", "blocks"),
    [
        (Gpu("sm_80", 108, 163 << 10), {"hq": 16, "hk": 4, "lq": 16, "d": 128, "dv": 128}, 2),
        (Gpu("sm_80", 108, 163 << 10), {"hq": 4, "hk": 4, "lq": 256, "d": 128, "dv": 128}, 2),
        (Gpu("sm_86", 84, 99 << 10), {"hq": 8, "hk": 4, "lq": 16}, 1),
        (Gpu("sm_86", 84, 99 << 10), {"hq": 4, "hk": 4, "lq": 256, "d": 128, "dv": 128}, 2),
    ],
)
def test_no_more_blocks_than_there_is_shared_memory_for(gpu, sizes, blocks):
    step = plan(gpu, dtype="bfloat16", lk=65536, **sizes).forward
    assert (blocks - 1) * gpu.sms < step.grid <= blocks * gpu.sms
    room = gpu.smem_block + 1024  # of a multiprocessor; a block takes 1024 bytes besides its own
    assert blocks * (step.smem_bytes + 1024) <= room < (blocks + 1) * (step.smem_bytes + 1024)


def test_few_queries_are_those_that_a_table_says():
    kernels = [plan(dtype="float16", hq=4, lq=lq, lk=4096).forward.spec.kernel for lq in (1, 16, 17)]
    assert kernels == ["decode_mma", "decode_mma", "fwd_mma"]


def test_a_plan_says_into_how_many_parts_and_what_they_take():
    found = plan(dtype="float16", hq=4, hk=1, lq=40, lk=8192)
    words = f"keys cut every {found.part_keys}, and merge: a warp for each row of up to {found.parts} parts"
    assert words in found.why
    assert f"a workspace of {found.parts * 4 * 40 * 66 * 4} bytes" in found.why


# Results.


@pytest.fixture
def lk(backend):
    """Keys that are cut: on the emulator with small tiles and 4 multiprocessors, on a GPU with its own."""
    return 200 if backend.name == "emulator" else 2000


def assert_launched(backend, *kernels):
    """The last ones, where that is known."""
    if backend.name == "emulator":
        assert backend.runtime.launches[-len(kernels) :] == list(kernels)


OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (70, 30), "q_offset": 100},
    "window before the keys": {"window": (None, 5), "q_offset": -7},
    "lengths": {"kv_lengths": 150},
    "lengths of one tile": {"kv_lengths": 9},
    "no key": {"kv_lengths": 0},
    "softcap and scale": {"softcap": 2.0, "scale": 0.3},
    "negative scale": {"scale": -0.2},
}


def options_for(name, hq, lq, lk, normal):
    if name == "bias":
        return {"bias": normal(hq, lq, lk, dtype="float32")}
    if name == "sinks and slopes":
        return {"sinks": normal(hq, dtype="float32"), "bias": cuflash.Alibi(np.linspace(0.1, 1, hq))}
    return OPTIONS[name]


@pytest.mark.parametrize("name", [*OPTIONS, "bias", "sinks and slopes"])
@pytest.mark.parametrize("lq", [2, 9], ids=["few queries", "tiles of queries"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@on_devices
def test_results_are_those_of_the_formula(dtype, lq, name, lk, check, backend, qkv, normal):
    q, k, v = qkv(1, 2, 1, lq, lk, 40, 24, dtype=dtype)
    with backend.tiles("small"):
        out, lse = check.attention(q, k, v, **options_for(name, 2, lq, lk, normal))
    few = {"float16": "decode_mma", "float32": "decode_fma"}
    tiles = {"float16": "fwd_mma"}
    assert_launched(backend, (few if lq == 2 else tiles).get(dtype, "fwd_simt"), "merge")
    if name == "no key":
        assert not out.any()
        assert np.isneginf(lse).all()


@on_devices
@pytest.mark.parametrize("name", ["plain", "sinks and slopes"])
def test_a_mask_and_lengths_of_each_sequence(name, lk, check, backend, qkv, normal):
    q, k, v = qkv(2, 2, 1, 5, lk, 64, dtype="float16")
    mask = normal(2, 1, 5, lk, dtype="float32") > 0
    with backend.tiles("small"):
        options = options_for(name, 2, 5, lk, normal)
        check.attention(q[:1], k[:1], v[:1], mask=mask[:1], **options)
        assert_launched(backend, "fwd_mma", "merge")
        check.attention(q[:1], k[:1], v[:1], kv_lengths=np.array([77]), q_offset=np.array([60]), causal=True, **options)
        assert_launched(backend, "fwd_mma", "merge")


@on_devices
def test_packed_sequences(lk, check, backend, qkv):
    q, k, v = (x[0].swapaxes(0, 1) for x in qkv(1, 1, 1, 20, 60 + lk, 40, 24, dtype="float16"))
    starts = [0, 3, 20], [0, 60, 60 + lk]
    with backend.tiles("small"):
        out = cuflash.attention_varlen(*(backend.asarray(x) for x in (q, k, v)), *starts, causal=True)
    check.hold((backend.to_numpy(out),), reference.attention_varlen, q.dtype, q, k, v, *starts, causal=True)
    assert_launched(backend, "fwd_mma", "merge")


@on_devices
@pytest.mark.parametrize("lq", [1, 5], ids=["few queries", "tiles of queries"])
@pytest.mark.parametrize("view", ["length before heads", "reversed length", "every third feature"])
def test_any_order_of_memory(view, lq, lk, check, backend, qkv):
    q, k, v = qkv(1, 2, 2, lq, lk, 64, dtype="float16")
    with backend.tiles("small"):
        check.attention(q, k, v, views=view)
    assert_launched(backend, "merge")


# What a call takes.


@pytest.fixture
def cut(backend, lk, qkv):
    """Operands on a device whose keys are cut, and the bytes that their plan takes."""
    with backend.tiles("small"):
        arrays = [backend.asarray(x) for x in qkv(1, 2, 1, 5, lk, 64, dtype="float16")]
        words = cuflash.explain(cuflash.attention, *arrays)
        yield arrays, int(words.partition("a workspace of ")[2].split()[0])


@on_emulator
def test_a_workspace_serves_in_place_of_memory_of_the_call(cut, backend):
    arrays, size = cut
    out, lse = cuflash.attention(*arrays, return_lse=True)
    expected = backend.to_numpy(out).tobytes(), backend.to_numpy(lse).tobytes()
    filled = [backend.asarray(np.full_like(backend.to_numpy(x), 7)) for x in (out, lse)]
    workspace = backend.asarray(np.full(size, 255, np.uint8))
    given = {"out": filled[0], "lse_out": filled[1], "return_lse": True}
    backend.runtime.in_capture = True
    try:
        with pytest.raises(ProblemError, match="allocated while a graph is captured"):
            cuflash.attention(*arrays, **given)
        cuflash.attention(*arrays, workspace=workspace, **given)
    finally:
        backend.runtime.in_capture = False
    assert tuple(backend.to_numpy(x).tobytes() for x in filled) == expected


@on_emulator
def test_a_workspace_must_be_large_enough_and_aligned(cut, backend):
    arrays, size = cut
    with pytest.raises(ProblemError, match=rf"`workspace` has {size - 1} bytes, but the call takes {size} on this dev"):
        cuflash.attention(*arrays, workspace=backend.asarray(np.zeros(size - 1, np.uint8)))
    with pytest.raises(ProblemError, match="`workspace` must be contiguous and start at a multiple of 4 bytes"):
        cuflash.attention(*arrays, workspace=backend.asarray(np.zeros(size + 1, np.uint8))[1:])
    with pytest.raises(ProblemError, match="`workspace` must be contiguous"):
        cuflash.attention(*arrays, workspace=backend.asarray(np.zeros(2 * size, np.uint8))[::2])


@on_devices
def test_an_output_alone_or_an_lse_alone(lk, backend, qkv):
    """An output of no columns leaves the lse; without `return_lse` there is the output alone."""
    q, k, v = (backend.asarray(x) for x in qkv(1, 2, 1, 5, lk, 64, dtype="float16"))
    with backend.tiles("small"):
        out, lse = cuflash.attention(q, k, v, return_lse=True)
        alone = cuflash.attention(q, k, v)
        empty, same = cuflash.attention(q, k, v[..., :0], return_lse=True)
    assert backend.to_numpy(alone).tobytes() == backend.to_numpy(out).tobytes()
    assert empty.shape == (1, 2, 5, 0)
    np.testing.assert_allclose(backend.to_numpy(same), backend.to_numpy(lse), rtol=1e-5)
