"""Plans for GPUs that do not exist: they fit, cover everything exactly once, and ask for variants of the register."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels import need_nvrtc

from cuflash import UnsupportedError, _configs, _gpu_forward_plan, _gpu_plan, _kernels, _sources, _tuning
from cuflash._device import Gpu
from cuflash._problem.attention import Problem

GPUS = [
    Gpu("sm_75", 40, 64 << 10),
    Gpu("sm_86", 82, 99 << 10),
    Gpu("sm_90a", 132, 227 << 10),
    Gpu("sm_120", 1, 99 << 10),
]
SMEM_OF_ALL = 48 << 10  # bytes that a block has everywhere without asking
DTYPES = tuple(_configs.ITEMSIZES)


def make_problem(**sizes):
    base = {"function": "attention", "dtype": "float32", "batch": (), "hq": 2, "hk": 1, "lq": 100, "lk": 200, "d": 64}
    base |= {"dv": 64, "scale": 1.0, "softcap": None, "left": None, "right": None, "mask": False, "bias": None}
    base |= {"alibi": False, "sinks": False, "kv_lengths": False, "ragged": False}
    base |= sizes
    return Problem(**base | {"kv_batch": base["batch"]})


@st.composite
def problems(draw):
    hk, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    batch = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    lq, lk = draw(st.integers(0, 300)), draw(st.integers(0, 300))
    scores = (*batch, hk * group, lq, lk)
    bias = tuple(draw(st.sampled_from([1, size])) for size in scores)[draw(st.integers(0, len(scores))) :]
    return make_problem(
        dtype=draw(st.sampled_from(DTYPES)), batch=batch, hq=hk * group, hk=hk, lq=lq, lk=lk,
        d=draw(st.integers(0, 512)), dv=draw(st.integers(0, 512)), bias=draw(st.sampled_from([None, bias])),
        sinks=draw(st.booleans()),
    )  # fmt: skip


gpus = st.sampled_from(GPUS)


def steps(problem, gpu):
    """Every launch of every plan."""
    of_weights, backward = (
        _gpu_forward_plan.plan_weights(problem._replace(dv=0), gpu),
        _gpu_plan.plan_backward(problem, gpu),
    )
    plans = (_gpu_forward_plan.plan_forward(problem, gpu), of_weights.forward, of_weights, backward)
    return [part for plan in plans for part in plan if isinstance(part, _gpu_plan.Step)]


@given(problems(), gpus)
def test_every_step_fits_every_gpu_and_is_a_variant_of_the_register(problem, gpu):
    known = known_variants(problem.dtype, max(1, problem.d, problem.dv))
    known = known | known_variants(problem.dtype, max(1, problem.d))  # of the weights, which have no dv
    for step in steps(problem, gpu):
        warps = dict(step.spec.config).get("warps")
        assert 0 <= step.smem_bytes <= (gpu.smem_block if warps else min(SMEM_OF_ALL, gpu.smem_block))
        assert step.threads == (32 * warps if warps else 128)
        assert 0 <= step.grid <= _gpu_plan.BLOCKS_MOST
        assert _kernels.instance(step.spec).startswith(f"cf::{_kernels.KERNELS[step.spec.kernel].struct}<")
        assert step.spec in known


@functools.cache
def known_variants(dtype, dim):
    """What `warmup` would compile for calls of this dtype where the larger of d and dv is `dim`."""
    return set(_kernels.variants([dtype], [dim]))


# What kernels make of their block number, in the words of span.cuh.


def query_tiles(problem, q_tiles, q_tile, grid, starts=None):
    """(entry, head, first row) of every block that has a tile."""
    for block in range(grid):
        slot, rest = q_tiles - 1 - block % q_tiles, block // q_tiles
        head, index = rest % problem.hq, rest // problem.hq
        length = problem.lq
        if starts is not None:
            slots = [start // q_tile + member for member, start in enumerate(starts[:-1])]
            index = int(np.searchsorted(slots, slot, side="right")) - 1
            slot, length = slot - slots[index], starts[index + 1] - starts[index]
        if slot * q_tile < length:
            yield index, head, slot * q_tile


@given(problems(), gpus)
def test_every_query_of_every_head_has_one_block(problem, gpu):
    p, plan, backward = problem, _gpu_forward_plan.plan_forward(problem, gpu), _gpu_plan.plan_backward(problem, gpu)
    q_tile = dict(plan.forward.spec.config)["q_tile"]
    entries = range(int(np.prod(p.batch)))
    expected = [(entry, head, row) for entry in entries for head in range(p.hq) for row in range(0, p.lq, q_tile)]
    if plan.q_tiles or not expected:
        assert sorted(query_tiles(p, plan.q_tiles, q_tile, plan.forward.grid // plan.parts)) == expected
    else:
        assert plan.forward.grid == len(entries) * p.hk * -(-p.group * p.lq // q_tile) * plan.parts
    q_tile = _configs.bwd_q_simt(p.dtype, p.d, p.dv).tiles.q_tile
    expected = [(entry, head, row) for entry in entries for head in range(p.hq) for row in range(0, p.lq, q_tile)]
    assert sorted(query_tiles(p, backward.q_tiles, q_tile, backward.q.grid)) == (expected if p.d else [])


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=1, max_size=9), gpus)
def test_every_query_and_key_of_packed_members_has_one_block(lengths, gpu):
    starts = [[0, *np.cumsum(each).tolist()] for each in zip(*lengths)]
    totals = (starts[0][-1], starts[1][-1])
    problem = make_problem(batch=(len(lengths),), lq=totals[0], lk=totals[1])
    plan, backward = _gpu_forward_plan.plan_forward(problem, gpu, totals), _gpu_plan.plan_backward(problem, gpu, totals)
    q_tile = _configs.fwd_simt("float32", 64, 64).tiles.q_tile
    expected = [
        (m, head, row) for m, (lq, _) in enumerate(lengths) for head in range(2) for row in range(0, lq, q_tile)
    ]
    grid = plan.forward.grid // plan.parts
    assert sorted(query_tiles(problem, plan.q_tiles, q_tile, grid, starts[0])) == expected
    kv_tile = _configs.bwd_kv_simt("float32", 64).tiles.kv_tile
    keys = problem._replace(hq=1)
    grid = backward.kv.grid // (backward.k_slices + backward.v_slices)
    expected = [(m, 0, row) for m, (_, lk) in enumerate(lengths) for row in range(0, lk, kv_tile)]
    assert sorted(query_tiles(keys, backward.kv_tiles, kv_tile, grid, starts[1])) == expected


@given(problems(), gpus)
def test_every_key_every_row_and_every_element_of_the_bias_has_one_block(problem, gpu):
    p, plan = problem, _gpu_plan.plan_backward(problem, gpu)
    entries, of_kv = int(np.prod(p.batch)), _configs.bwd_kv_simt(p.dtype, max(p.d, p.dv))
    slices = -(-p.d // of_kv.columns) + -(-p.dv // of_kv.columns)
    assert (plan.kv_tiles - 1) * of_kv.tiles.kv_tile < max(1, p.lk) <= max(1, plan.kv_tiles) * of_kv.tiles.kv_tile
    assert plan.kv.grid == slices * plan.kv_tiles * p.hk * entries
    rows = entries * p.hq * p.lq
    assert (plan.prepare.grid - 1) * 32 < max(1, rows) <= max(1, plan.prepare.grid) * 32
    assert (plan.bias is None) == (p.bias is None)
    if p.bias is None:
        return
    *batch, heads, height, width = _gpu_plan.bias_sizes(p)
    tiles = _configs.bwd_bias_simt(p.dtype, max(p.d, p.dv)).tiles
    owned = int(np.prod(batch)) * heads * -(-height // tiles.q_tile) * -(-width // tiles.kv_tile)
    assert plan.bias.grid == owned * plan.parts
    sharing = entries * p.hq // max(1, int(np.prod(batch)) * heads)
    assert 1 <= plan.parts <= max(1, sharing)
    assert plan.parts == 1 or plan.bias.grid <= gpu.sms * _tuning.BIAS_BLOCKS_PER_SM


@pytest.mark.parametrize(("dim", "columns"), [(0, 64), (64, 64), (65, 128), (128, 128), (257, 512), (512, 512)])
def test_a_dim_has_the_fewest_columns_that_hold_it(dim, columns):
    assert _configs.fwd_simt("float32", dim, dim).columns == columns
    assert _configs.bwd_q_simt("float64", dim, dim).columns == columns
    assert _configs.bwd_kv_simt("float32", dim).columns == min(128, columns)


@pytest.mark.parametrize(("features", "columns"), [(64, 64), (65, 128), (512, 128)])
def test_many_features_are_not_summed_by_the_least_class(features, columns):
    """It has no registers for sums in two steps: TWO_STEPS in rawkernels/attention/config.cuh."""
    assert _configs.fwd_simt("float32", features, 8).columns == columns
    assert _configs.bwd_q_simt("float32", 8, features).columns == columns
    assert _configs.decode_simt("float32", "none", features, 8, 1).columns == columns


def test_a_bias_that_many_share_is_summed_in_parts():
    """One tile for 64 heads of 4 entries would be one block."""
    problem = make_problem(batch=(4,), hq=64, hk=64, lq=32, lk=32, bias=(32, 32))
    plan = _gpu_plan.plan_backward(problem, GPUS[2])
    assert (plan.parts, plan.bias.grid) == (256, 256)
    numbers = 4 * 64 * 32 + 256 * 32 * 32
    assert plan.workspace == 4 * numbers


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({}, "fwd_simt: a block owns 64 queries of one head and walks the keys that they see, 64 at a time; 4 block(s) "
             "for 132 multiprocessors; arithmetic in float32 on the plain units of sm_90a"),
        ({"dtype": "bfloat16"}, "fwd_mma: a block owns 128 queries of one head and walks the keys that they see, 64 at "
                                "a time; 2 block(s) for 132 multiprocessors; products on the tensor cores of sm_90a"),
        ({"dtype": "float64", "dv": 200}, "a block owns 16 queries of one head and walks the keys that they see, 32"),
        ({"dtype": "float64"}, "arithmetic in float64"),
    ],
)  # fmt: skip
def test_a_plan_says_why(sizes, words):
    assert words in _gpu_forward_plan.plan_forward(make_problem(**sizes), GPUS[2]).why


@pytest.mark.parametrize(
    ("sizes", "gpu", "tiles"),
    [
        ({"dtype": "float16"}, GPUS[0], (64, 64, 128, 64)),
        ({"dtype": "bfloat16"}, GPUS[0], None),  # 7.5 has no such instruction
        ({"dtype": "float16", "d": 80, "dv": 8}, GPUS[2], (96, 96, 128, 64)),
        ({"dtype": "bfloat16", "d": 192, "dv": 128}, GPUS[2], (192, 128, 128, 64)),
        ({"dtype": "bfloat16", "d": 129, "dv": 129}, GPUS[2], (192, 192, 128, 64)),
        ({"dtype": "float16", "d": 256}, GPUS[2], (256, 256, 128, 64)),
        ({"dtype": "float16", "d": 256}, Gpu("sm_89", sms=128, smem_block=99 << 10), (256, 256, 64, 64)),
        ({"dtype": "float16", "d": 128}, GPUS[0], (128, 128, 64, 64)),  # 64 KB of shared memory
        ({"dtype": "float16", "d": 257}, GPUS[2], None),
        ({"dtype": "float16", "dv": 0}, GPUS[2], None),
        ({"dtype": "float32"}, GPUS[2], None),
    ],
)
def test_tensor_cores_are_used_where_there_are_tiles_for_them(sizes, gpu, tiles):
    spec = _gpu_forward_plan.plan_forward(make_problem(**sizes), gpu).forward.spec
    assert spec.kernel == ("fwd_simt" if tiles is None else "fwd_mma")
    if tiles is not None:
        assert tuple(map(dict(spec.config).get, ("head_dim", "value_dim", "q_tile", "kv_tile"))) == tiles


def test_a_plan_for_gradients_and_weights_says_why():
    problem = make_problem(sinks=True, bias=(200,))
    why = _gpu_plan.plan_backward(problem, GPUS[2]).why
    for kernel in ("bwd_prepare", "bwd_q_simt", "bwd_kv_simt", "bwd_bias_simt", "bwd_sinks"):
        assert f"{kernel}: " in why
    assert "weights_simt: a block writes" in _gpu_forward_plan.plan_weights(problem._replace(dv=0), GPUS[2]).why


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d": 513}, "attention: d=513, but GPU kernels go up to 512; NumPy takes any"),
        ({"dv": 600}, "attention: dv=600, but"),
        ({"lk": 2**31 - 64}, "attention: lk is 2147483584, but GPU kernels count up to 2147482624"),
        ({"batch": (2**31,)}, "attention: a batch axis is 2147483648, but"),
        ({"batch": (2**15, 2**15)}, "attention: takes 4294967296 blocks, but a launch has at most 2147483647; split"),
    ],
)
@pytest.mark.parametrize("make", [_gpu_forward_plan.plan_forward, _gpu_plan.plan_backward])
def test_what_no_launch_can_hold_is_unsupported(sizes, message, make):
    with pytest.raises(UnsupportedError) as error:
        make(make_problem(**sizes), GPUS[2])
    if make is _gpu_forward_plan.plan_forward or "takes" not in message:
        assert str(error.value).startswith(message)


def test_totals_of_packed_sequences_are_limited_too():
    with pytest.raises(UnsupportedError, match="total_k is 2147483000"):
        _gpu_forward_plan.plan_forward(make_problem(batch=(3,)), GPUS[2], (5, 2147483000))


def test_threads_and_shared_memory_are_those_of_the_kernels():
    """In one text, which instantiates the kernels' constants but no code."""
    need_nvrtc()
    from cupy.cuda import nvrtc

    problem = make_problem(sinks=True, bias=(200,))
    dims = [(dim, dim) for dim in (64, 128, 256, 512)] + list(_tuning.FWD_MMA)
    small = Gpu("sm_89", sms=128, smem_block=99 << 10)
    found = {
        step
        for dtype in DTYPES
        for d, dv in dims
        for gpu in (GPUS[0], GPUS[2], small)
        for step in steps(problem._replace(dtype=dtype, d=d, dv=dv), gpu)
    }
    found |= {_gpu_plan.sum_axes_step(dtype, 1) for dtype in ("float32", "float64")}
    found |= {_gpu_plan.merge_step(dtype, 1) for dtype in DTYPES}
    found |= {_gpu_plan.rotary_step(dtype, 1, 1, 1, 2, 2) for dtype in DTYPES}
    checked = {step.spec: step for step in found}
    rows = sum(len(rows) for rows in _tuning.FWD_MMA.values())
    assert len([spec for spec in checked if spec.kernel == "fwd_mma"]) >= rows
    assert {spec.kernel for spec in checked} >= {"fwd_simt", "bwd_q_simt", "bwd_kv_simt", "bwd_bias_simt", "bwd_sinks"}
    assert len(checked) >= 4 * (4 + 4 + 2 + 1 + 1)
    text = "".join(f'#include "{_kernels.KERNELS[name].file}"\n' for name in sorted({spec.kernel for spec in checked}))
    for spec, step in sorted(checked.items()):
        kernel, said = _kernels.instance(spec), ", ".join(f"{name}={value}" for name, value in spec.config)
        for name, value in (("THREADS", step.threads), ("SMEM_BYTES", step.smem_bytes)):
            text += f'static_assert({kernel}::{name} == {value}, "{name} of {spec.kernel} {said} is not {value}");\n'
    program = nvrtc.createProgram(text, str(_sources.folder() / "facts.cu"), (), ())
    try:
        nvrtc.compileProgram(program, ("--std=c++20", f"-I{_sources.folder()}"))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)
