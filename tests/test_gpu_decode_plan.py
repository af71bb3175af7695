"""Plans of decoding steps and of the launches around caches: parts, grids, workspace; nothing runs."""

import itertools

import pytest
from kernels import need_nvrtc

from cuflash import UnsupportedError, _configs, _kernels, _tuning
from cuflash._device import Gpu
from cuflash._gpu_decode_plan import (
    append_step,
    copy_pages_step,
    count_numbers,
    count_parts,
    decode_step,
    first_workspace,
    plan_decode,
    scatter_step,
    takes_turns,
)
from cuflash._params import PLACES
from cuflash._problem.attention import Problem
from cuflash._runtime import nvrtc

GPU = Gpu("sm_90a", sms=132, smem_block=232448)


def problem(b=2, hq=8, hk=2, lq=1, lk=5000, d=64, dv=64, dtype="float16", left=None, right=0, **more):
    return Problem(
        "decode", dtype, (b,), hq, hk, lq, lk, d, dv, 0.125, None, left, right, False, None, False, False, True, True,
        (b,), **more
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(("hq", "lq"), [(2, 1), (8, 1), (8, 3), (64, 1), (8, 50)])
def test_parts_follow_from_the_queries_of_a_head_and_the_dims_alone(dtype, hq, lq):
    """Not from the batch, the room of the cache, heads that are none of the group's, pages or the device."""
    group, found = hq // 2, set()
    for b, hk, lk, sms, page_size in itertools.product((1, 33), (1, 4), (7, 200_000), (4, 132), (None, 16)):
        given = problem(b, group * hk, hk, lq, lk, 64, 96, dtype, page_size=page_size)
        plan = plan_decode(given, Gpu("sm_80", sms, 100_000))
        found.add((plan.part_keys, plan.step.spec, plan.step.smem_bytes, plan.step.threads))
    assert len(found) == 1


@pytest.mark.parametrize("lk", [0, 1, 511, 512, 513, 5000, 2**20])
@pytest.mark.parametrize("left", [None, 0, 100, 3000])
@pytest.mark.parametrize("lq", [1, 9])
def test_blocks_for_every_part_and_none_more(lk, left, lq):
    given = problem(lq=lq, lk=lk, left=left)
    plan = plan_decode(given, GPU)
    most = lk if left is None else min(lk, left + lq)  # keys that the queries of a sequence see together
    assert (plan.parts - 1) * plan.part_keys < max(1, most) <= plan.parts * plan.part_keys
    assert plan.step == decode_step(plan, plan.parts)
    assert plan.resident == GPU.sms * dict(plan.step.spec.config)["blocks"]
    for limit in (0, lk // 3, lk):
        parts = count_parts(given, plan.part_keys, limit)
        assert min(limit, most) <= parts * plan.part_keys and 1 <= parts <= plan.parts
        step, everything = decode_step(plan, parts), plan.tiles * parts
        assert step.grid == (everything if everything <= 2 * plan.resident else plan.resident)
        assert takes_turns(plan, parts) == (step.grid < everything)


def test_not_causal_looks_both_ways():
    assert plan_decode(problem(left=100, right=None), GPU).parts == plan_decode(problem(), GPU).parts
    assert plan_decode(problem(left=100, right=700, lq=3), GPU).parts == -(-803 // 1024)
    assert plan_decode(problem(left=100, right=700), GPU).parts == -(-801 // 256)


def test_splits_are_parts_of_a_key_or_more():
    plan = plan_decode(problem(splits=7), GPU)
    assert [count_parts(problem(splits=7), plan.part_keys, limit) for limit in (0, 1, 6, 10)] == [1, 1, 6, 7]
    assert plan.parts == 7 and "cut into 7 part(s), as asked" in plan.why
    for splits in (5001, 2**31, 2**40):
        plan = plan_decode(problem(splits=splits), GPU)
        assert plan.parts == 5000
        assert "cut into 5000 part(s)" in plan.why
        assert plan_decode(problem(lq=3, left=20, splits=splits), GPU).parts == 23


@pytest.mark.parametrize(
    ("dtype", "hq", "lq", "q_tile", "part_rows"),
    [
        ("float32", 2, 1, 4, 4), ("float32", 10, 1, 8, 8), ("float32", 18, 1, 8, 16),
        ("float64", 2, 1, 8, 4), ("float64", 16, 1, 8, 8), ("float64", 18, 1, 32, 16), ("float64", 66, 1, 32, 32),
        ("float16", 2, 1, 16, 4), ("float16", 10, 1, 16, 8), ("float16", 32, 1, 16, 16), ("bfloat16", 34, 1, 32, 32),
        ("float16", 2, 99, 32, 32),
    ],
)  # fmt: skip
def test_queries_of_a_head_lie_in_the_fewest_tiles(dtype, hq, lq, q_tile, part_rows):
    given = problem(hq=hq, lq=lq, dtype=dtype)
    plan = plan_decode(given, GPU)
    rows = hq // 2 * lq
    assert dict(plan.step.spec.config)["q_tile"] == q_tile
    assert plan.tiles == 2 * 2 * -(-rows // q_tile)
    assert plan.part_keys == 64 * part_rows
    assert count_numbers(given, plan.parts) == 2 * hq * lq * plan.parts * (64 + 2)


def test_blocks_take_turns_where_there_would_be_many():
    few, many = problem(b=32, hq=32, hk=8, lk=700, d=128, dv=128), problem(b=32, hq=32, hk=8, lk=131072, d=128, dv=128)
    plan = plan_decode(few, GPU)
    assert plan.step.grid == 32 * 8 * 3 <= 2 * plan.resident
    assert "take turns" not in plan.why
    plan = plan_decode(many, GPU)
    assert plan.step.grid == plan.resident == 3 * 132
    assert "396 block(s) for 132 multiprocessors, which take turns at up to 131072 parts" in plan.why
    assert plan_decode(many, Gpu("sm_80", 108, 163 << 10)).resident == 2 * 108
    assert plan_decode(many, Gpu("sm_86", 84, 99 << 10)).resident == 84


@pytest.mark.parametrize(
    ("hq", "lq", "owned"),
    [
        (2, 1, "the query of a key/value head"), (8, 1, "all 4 queries that share a key/value head"),
        (32, 1, "all 16 queries that share a key/value head"), (64, 2, "32 of the 64 queries that share a key/value"),
    ],
)  # fmt: skip
def test_a_block_owns_no_more_queries_than_there_are(hq, lq, owned):
    assert f": a block owns {owned}" in plan_decode(problem(hq=hq, lq=lq), GPU).why


def test_one_part_needs_no_workspace():
    assert [plan_decode(problem(lk=lk), GPU).parts for lk in (256, 257)] == [1, 2]
    assert [count_numbers(problem(), parts) for parts in (1, 2)] == [0, 2 * 8 * 2 * 66]


@pytest.mark.parametrize(
    ("changes", "gpu", "kernel"),
    [
        ({}, GPU, "decode_mma"),
        ({"dtype": "bfloat16", "page_size": 16, "d": 192, "dv": 128}, GPU, "decode_mma"),
        ({}, Gpu("sm_75", 40, 64 << 10), "decode_simt"),
        ({"d": 256}, Gpu("sm_89", 128, 99 << 10), "decode_mma"),
        ({"d": 257}, GPU, "decode_simt"),
        ({"dtype": "float32"}, GPU, "decode_fma"),
        ({"dtype": "float32", "page_size": 16, "d": 256, "dv": 1}, Gpu("sm_86", 84, 99 << 10), "decode_fma"),
        ({"dtype": "float32"}, Gpu("sm_75", 40, 64 << 10), "decode_simt"),
        ({"dtype": "float32", "dv": 257}, GPU, "decode_simt"),
        ({"dtype": "float32", "stored": "int8"}, GPU, "decode_simt"),
        ({"dtype": "float64"}, GPU, "decode_simt"),
        ({"stored": "int8"}, GPU, "decode_mma"),
        ({"stored": "float8_e4m3fn", "dtype": "bfloat16", "d": 256}, Gpu("sm_80", 108, 163 << 10), "decode_mma"),
        ({"stored": "int8", "d": 257}, GPU, "decode_simt"),
        ({"dv": 0}, GPU, "decode_simt"),
    ],
)
def test_the_kernel_follows_from_the_dtype_the_dims_and_the_kind_of_device(changes, gpu, kernel):
    plan = plan_decode(problem(**changes), gpu)
    assert plan.step.spec.kernel == kernel
    assert plan.why.startswith(f"{kernel}: ")
    assert ("tensor cores" in plan.why) == (kernel == "decode_mma")


def test_the_first_workspace_is_enough_for_32_queries():
    sizes = itertools.product(
        ("float16", "float32"), (1, 700, 5000, 100_000), (1, 8, 9, 17, 32), (256, 512, 1, 64, 128)
    )
    for dtype, lk, rows, dv in sizes:
        given = problem(b=3, hq=2 * rows, lk=lk, d=dv, dv=dv, dtype=dtype)
        plan = plan_decode(given, GPU)
        tickets, numbers = first_workspace(3 * lk, 3, 2, dv)
        assert plan.tiles <= tickets and count_numbers(given, plan.parts) <= numbers
    assert numbers * 4 <= 0.02 * 3 * lk * 2 * 2 * dv * 2  # bytes beside those of keys and values in float16


def test_what_no_kernel_takes():
    with pytest.raises(
        UnsupportedError, match="decode: 65536 heads x lq=32768 share a key/value head, but GPU kernels"
    ):
        plan_decode(problem(b=1, hq=65536, hk=1, lq=32768), GPU)
    with pytest.raises(UnsupportedError, match="decode: d=513, but GPU kernels go up to 512"):
        plan_decode(problem(d=513), GPU)
    with pytest.raises(UnsupportedError, match=r"decode: lk is \d+, but GPU kernels count up to"):
        plan_decode(problem(lk=2**31), GPU)


def test_launches_around_a_cache():
    assert append_step("float16", "none", 3, 2 * 4 * 5).grid == 3 * 2
    assert append_step("float16", "int8", 3, 0).grid == 0
    assert copy_pages_step(5, 16384).grid == 5 * 4 and copy_pages_step(5, 16385).grid == 5 * 4 * 2
    assert (scatter_step().grid, scatter_step().threads) == (1, PLACES)


def test_a_plan_is_a_variant_of_the_register():
    dtypes = ("float16", "float32", "float64")
    for dtype, d, dv in itertools.product(dtypes, (1, 64, 200, 512), (1, 64, 200, 512)):
        known = _kernels.variants([dtype], [max(d, dv)])
        for hq, stored in itertools.product((2, 12, 40), (None, "int8")):
            if stored is None or dtype != "float64":
                assert plan_decode(problem(hq=hq, d=d, dv=dv, dtype=dtype, stored=stored), GPU).step.spec in known
    known = _kernels.variants(dtypes)
    for step in (append_step("float16", "none", 1, 1), copy_pages_step(1, 1), scatter_step()):
        assert step.spec in known


@pytest.mark.parametrize(
    ("dtype", "find", "table"),
    [
        ("float16", _configs.decode_mma, _tuning.DECODE_MMA),
        ("float32", _configs.decode_fma, _tuning.DECODE_FMA),
    ],
    ids=["decode_mma", "decode_fma"],
)
def test_shared_memory_of_streaming_kernels_is_what_they_have(dtype, find, table):
    need_nvrtc()
    source = None
    for (number, columns), tiles in table.items():
        for rows in (one[0] for one in tiles):
            variant = find(dtype, "int8" if number == 1 else "none", columns, columns, rows)
            assert variant.tiles.q_tile == rows
            source = source or nvrtc.read_source(variant.spec, "compute_80")
            kernel = _kernels.instance(variant.spec)
            line = f'\nstatic_assert({kernel}::SMEM_BYTES == {variant.tiles.smem_bytes}, "{rows} rows");'
            source = source._replace(text=source.text + line)
    nvrtc.compile_source(source)


@pytest.mark.parametrize("codes", ["none", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_shared_memory_is_what_the_kernel_has(dtype, codes):
    """One compilation for all tiles: NVRTC evaluates sizeof(Smem)."""
    need_nvrtc()
    if dtype == "float64" and codes != "none":
        return
    source = None
    for (number, columns), tiles in _tuning.DECODE_SIMT.items():
        for rows in (one[0] for one in tiles if number == (8 if dtype == "float64" else 4)):
            simt = _configs.decode_simt(dtype, codes, columns, columns, rows)
            assert simt.tiles.q_tile == rows and simt.columns == columns
            kernel = _kernels.instance(simt.spec)
            source = source or nvrtc.read_source(simt.spec, "compute_80")
            line = f'\nstatic_assert({kernel}::SMEM_BYTES == {simt.tiles.smem_bytes}, "{rows} rows");'
            source = source._replace(text=source.text + line)
    nvrtc.compile_source(source)
