"""What plans for a Gpu are made of, and those of gradients: which kernels, tiles, grids, and why. Pure; nothing is
computed or allocated. Plans of the forward pass are in `_gpu_forward_plan`.

What a plan says follows from shapes, options and the device, never from numbers in arrays, so the bits of a result do
not change from run to run. Packed sequences give their totals (rows of q, rows of k), since the lengths of members may
lie on the device: the tiles of a head are then counted over all members, one more for each than would fill the total.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from cuflash import _configs, _tuning
from cuflash._configs import THREADS, WARP, KernelSpec, Variant
from cuflash._device import Gpu
from cuflash._kernels import spec
from cuflash._problem.attention import Problem
from cuflash.errors import UnsupportedError

WARPS = THREADS // WARP
PREPARE_ROWS = 32  # that a block of bwd_prepare takes
SINKS_NUMBERS = 8  # that a block of bwd_sinks keeps in shared memory
ROTARY_HEADS = 8  # that share an angle
BLOCKS_MOST = 2**31 - 1  # of a launch
SIZE_MOST = 2**31 - 2**10  # of an axis: kernels count rows in 32 bits, a tile beyond the last

Totals = tuple[int, int] | None  # rows of q and k where sequences are packed


class Step(NamedTuple):
    """One launch; none where `grid` is 0."""

    spec: KernelSpec
    grid: int  # blocks
    smem_bytes: int  # of a block
    threads: int = THREADS


class BackwardPlan(NamedTuple):
    """The passes of a gradient."""

    prepare: Step
    q: Step
    kv: Step
    bias: Step | None
    sinks: Step | None
    q_tiles: int  # of `q`; passes over the keys count theirs
    kv_tiles: int  # of `kv`
    k_slices: int  # of the columns of dk, each a block's
    v_slices: int
    parts: int  # that the batch entries and heads sharing an element of the bias are divided into
    workspace: int  # bytes, without the copies of gradients that are summed over a broadcast axis
    why: str


@lru_cache(maxsize=1024)
def plan_backward(problem: Problem, gpu: Gpu, totals: Totals = None) -> BackwardPlan:
    """The gradients of a problem; nothing is added up in an order that could change."""
    check_sizes(problem, totals)
    p, entries = problem, count_entries(problem, totals)
    total_q, total_k = totals or (None, None)
    rows = entries * p.hq * (p.lq if total_q is None else total_q)
    element = f"Dtype::{p.dtype}"
    prepare = Step(spec("bwd_prepare", dtype=element), check_grid(problem, -(-rows // PREPARE_ROWS)), 0)

    of_q, of_kv = _configs.bwd_q_simt(p.dtype, p.d, p.dv), _configs.bwd_kv_simt(p.dtype, max(p.d, p.dv))
    q_tiles = count_tiles(p.lq, of_q.tiles.q_tile, p, total_q)
    kv_tiles = count_tiles(p.lk, of_kv.tiles.kv_tile, p, total_k)
    k_slices, v_slices = (-(-dim // of_kv.columns) for dim in (p.d, p.dv))
    q = make_step(p, of_q, q_tiles * p.hq * entries if p.d else 0)
    kv = make_step(p, of_kv, (k_slices + v_slices) * kv_tiles * p.hk * entries)
    bias, parts, bias_bytes = _plan_bias(p, gpu)
    sinks = Step(spec("bwd_sinks", dtype=element), p.hq, SINKS_NUMBERS * number_bytes(p)) if p.sinks else None
    why = [
        "bwd_prepare: one number for each query",
        f"bwd_q_simt: a block owns {of_q.tiles.q_tile} queries and walks the keys; {say_busy(q, gpu)}",
        f"bwd_kv_simt: a block owns {of_kv.tiles.kv_tile} keys of a key/value head and {of_kv.columns} columns of dk "
        f"or dv, and walks the queries of {p.group} head(s); {say_busy(kv, gpu)}",
    ]
    if bias is not None:
        why.append(f"bwd_bias_simt: a block owns a tile of the bias, summed in {parts} part(s); {say_busy(bias, gpu)}")
    why += ["bwd_sinks: a block for each head"] * p.sinks
    why.append(say_units(p, gpu))
    workspace = rows * number_bytes(p) + bias_bytes
    return BackwardPlan(
        prepare, q, kv, bias, sinks, q_tiles, kv_tiles, k_slices, v_slices, parts, workspace, "; ".join(why)
    )


def sum_axes_step(dtype: str, elements: int) -> Step:
    """A sum of numbers of this dtype to so many."""
    return _element_step("sum_axes", dtype, -(-elements // THREADS))


def merge_step(dtype: str, rows: int, parts: str | None = None) -> Step:
    """Merging of parts with so many rows each, whose outputs have the dtype `parts`: a warp for each row."""
    return _element_step("merge", dtype, -(-rows // WARPS), parts=f"Dtype::{parts or dtype}")


def rotary_step(dtype: str, entries: int, heads: int, rows: int, d: int, dim: int) -> Step:
    """A rotation: a thread for each pair, or feature that stays, of a row of some heads."""
    threads = entries * -(-heads // ROTARY_HEADS) * rows * (d - dim // 2)
    return _element_step("rotary", dtype, -(-threads // THREADS))


def _element_step(kernel: str, dtype: str, grid: int, **members: str) -> Step:
    if grid > BLOCKS_MOST:
        raise UnsupportedError(
            f"{kernel}: takes {grid} blocks, but a launch has at most {BLOCKS_MOST}; split the arrays"
        )
    return Step(spec(kernel, dtype=f"Dtype::{dtype}", **members), grid, 0)


def bias_sizes(problem: Problem) -> tuple[int, ...]:
    """The bias's own shape with all axes (*batch, hq, lq, lk), 1 where it is broadcast."""
    assert problem.bias is not None
    return (1,) * (len(problem.batch) + 3 - len(problem.bias)) + problem.bias


def _plan_bias(problem: Problem, gpu: Gpu) -> tuple[Step | None, int, int]:
    """The pass for the bias, into how many parts its sum is divided, and bytes for these."""
    if problem.bias is None:
        return None, 1, 0
    variant = _configs.bwd_bias_simt(problem.dtype, max(problem.d, problem.dv))
    *batch, heads, rows, cols = bias_sizes(problem)
    tiles = -(-rows // variant.tiles.q_tile) * -(-cols // variant.tiles.kv_tile) * heads * prod(batch)
    sharing = prod(problem.batch) * problem.hq // max(1, prod(batch) * heads)
    parts = max(1, min(sharing, gpu.sms * _tuning.BIAS_BLOCKS_PER_SM // max(1, tiles)))
    step = make_step(problem, variant, tiles * parts)
    size = prod(batch) * heads * rows * cols * number_bytes(problem)
    return step, parts, parts * size if parts > 1 else 0


def count_tiles(length: int, tile: int, problem: Problem, total: int | None) -> int:
    """Tiles of a head."""
    if total is None:
        return -(-length // tile)
    return total // tile + problem.batch[-1] if total else 0


def count_entries(problem: Problem, totals: Totals) -> int:
    """What heads are counted in: batch entries, or 1 where members share the tiles of a head."""
    return prod(problem.batch) if totals is None else 1


def make_step(problem: Problem, variant: Variant, grid: int) -> Step:
    return Step(variant.spec, check_grid(problem, grid), variant.tiles.smem_bytes, variant.tiles.threads)


def check_grid(problem: Problem, grid: int) -> int:
    if grid > BLOCKS_MOST:
        raise UnsupportedError(
            f"{problem.function}: takes {grid} blocks, but a launch has at most {BLOCKS_MOST}; split the batch"
        )
    return grid


def check_sizes(problem: Problem, totals: Totals) -> None:
    """Every size must be one that kernels have registers or counters for."""
    for name, dim in (("d", problem.d), ("dv", problem.dv)):
        if dim > _configs.DIM_MOST:
            raise UnsupportedError(
                f"{problem.function}: {name}={dim}, but GPU kernels go up to {_configs.DIM_MOST}; NumPy takes any"
            )
    sizes = {"hq": problem.hq, "lq": problem.lq, "lk": problem.lk}
    sizes |= dict(zip(("total_q", "total_k"), totals or ())) | {"a batch axis": max(problem.batch, default=1)}
    for name, size in sizes.items():
        if size > SIZE_MOST:
            raise UnsupportedError(f"{problem.function}: {name} is {size}, but GPU kernels count up to {SIZE_MOST}")


def say_busy(step: Step, gpu: Gpu) -> str:
    return f"{step.grid} block(s) for {gpu.sms} multiprocessors"


def say_units(problem: Problem, gpu: Gpu, variant: Variant | None = None) -> str:
    kernel = variant.spec.kernel if variant else None
    if kernel in ("fwd_mma", "decode_mma"):
        return f"products on the tensor cores of {gpu.arch}, sums in float32"
    if kernel == "decode_fma":
        return f"arithmetic in float32 on the plain units of {gpu.arch}"
    name = arithmetic(problem)
    return f"arithmetic in {name} on the plain units of {gpu.arch}, which take every dtype, d, dv and option"


def arithmetic(problem: Problem) -> str:
    """The dtype of sums, and of partial results."""
    return "float64" if problem.dtype == "float64" else "float32"


def number_bytes(problem: Problem) -> int:
    """Of a number in the arithmetic."""
    return _configs.ITEMSIZES[arithmetic(problem)]
