"""From a Problem and a Gpu to a plan of the forward pass, as `_gpu_plan` does it for gradients.

Where there are fewer tiles of queries than multiprocessors, the keys of each are cut into parts, whose results are
merged by a second launch. Few queries of a key/value head are worked on as `_gpu_decode_plan` does it: they share the
rows of a tile, so that its keys are read once.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from cuflash import _configs, _tuning
from cuflash._configs import Variant
from cuflash._device import Gpu
from cuflash._gpu_decode_plan import choose_decode, say_queries
from cuflash._gpu_plan import (
    Step,
    Totals,
    arithmetic,
    check_sizes,
    count_entries,
    count_tiles,
    make_step,
    merge_step,
    number_bytes,
    say_busy,
    say_units,
)
from cuflash._kernels import runs_on
from cuflash._params import BATCH_AXES
from cuflash._problem.attention import Problem

ALL_KEYS = 2**31 - 1  # of the only part


class ForwardPlan(NamedTuple):
    """A forward pass."""

    forward: Step
    merge: Step | None  # of the parts' results, where there are several
    q_tiles: int  # of a head; 0 where queries share tiles as they do in decoding
    parts: int  # that the keys of a tile of queries are cut into at the most
    part_keys: int
    workspace: int  # bytes
    why: str


class WeightsPlan(NamedTuple):
    """The weights: a forward pass for the maximum and the sum of each row, then exp(score - maximum) / sum."""

    forward: ForwardPlan
    weights: Step
    q_tiles: int
    kv_tiles: int
    workspace: int
    why: str


@lru_cache(maxsize=1024)
def plan_forward(problem: Problem, gpu: Gpu, totals: Totals = None, with_lse: bool = False) -> ForwardPlan:
    """A forward pass."""
    check_sizes(problem, totals)
    few = _plan_few_queries(problem, gpu, with_lse) if totals is None else None
    return few or _plan_tiles(problem, gpu, totals, may_cut=True)


def _plan_tiles(problem: Problem, gpu: Gpu, totals: Totals, may_cut: bool) -> ForwardPlan:
    """A block for each tile of queries of a head, and part of the keys."""
    p = problem
    variant = _choose(p, gpu)
    tile = variant.tiles
    q_tiles = count_tiles(p.lq, tile.q_tile, p, totals and totals[0])
    tiles = q_tiles * p.hq * count_entries(p, totals)
    parts, part_keys = _cut_keys(p, gpu, tiles, variant) if may_cut else (1, ALL_KEYS)
    step = make_step(p, variant, tiles * parts)
    why = (
        f"{variant.spec.kernel}: a block owns {tile.q_tile} queries of one head and walks the keys that they see, "
        f"{tile.kv_tile} at a time; {say_busy(step, gpu)}"
    )
    return _with_parts(p, gpu, totals, variant, ForwardPlan(step, None, q_tiles, parts, part_keys, 0, why))


def _plan_few_queries(problem: Problem, gpu: Gpu, with_lse: bool) -> ForwardPlan | None:
    """A block for the queries that share a key/value head, and part of the keys; None where that does not serve.

    Nor does it in float32 where the lse is wanted: gradients, which start from it, compute scores again, and must round
    them as the forward pass has. (Of 16 bits they do not, and results are too coarse to show it.)
    """
    p = problem
    rows = p.group * p.lq
    axes = len(p.batch) > BATCH_AXES or prod(p.batch[:-1]) != 1  # more than one that counts
    if p.mask or p.ragged or axes or rows > _tuning.FEW_QUERIES:
        return None
    variant = choose_decode(p, gpu, rows)
    tile = variant.tiles
    reads = -(-rows // tile.q_tile)  # of each key; tiles of one head read it for each head
    kernel = variant.spec.kernel
    if kernel == "decode_simt" or reads > p.group or (kernel == "decode_fma" and with_lse):
        return None
    tiles = prod(p.batch) * p.hk * reads
    parts, part_keys = _cut_keys(p, gpu, tiles, variant)
    step = make_step(p, variant, tiles * parts)
    why = f"{kernel}: a block owns {say_queries(rows, tile.q_tile)}; {say_busy(step, gpu)}"
    return _with_parts(p, gpu, None, variant, ForwardPlan(step, None, 0, parts, part_keys, 0, why))


def _choose(problem: Problem, gpu: Gpu) -> Variant:
    """Tensor cores for 16-bit numbers, as far as there are tiles for the dims."""
    p = problem
    variant = _configs.best_fwd_mma(p.dtype, p.d, p.dv, gpu.smem_block) if p.d and p.dv else None
    if variant and runs_on(variant.spec, gpu.arch):
        return variant
    return _configs.fwd_simt(p.dtype, p.d, p.dv)


def _cut_keys(problem: Problem, gpu: Gpu, tiles: int, variant: Variant) -> tuple[int, int]:
    """Parts of the keys for so many tiles of queries, and keys of each: as many blocks as run at once."""
    p, tile = problem, variant.tiles
    reach = p.lk  # keys that the queries of a tile see, and those before them in their first tile of keys
    if p.left is not None and p.right is not None:
        reach = min(reach, p.left + p.right + min(p.lq, tile.q_tile) + tile.kv_tile)
    resident = gpu.sms * _configs.blocks_at_once(tile, gpu.smem_block)
    parts = min(resident // max(1, tiles), reach // _tuning.PART_KEYS_LEAST)
    if not 0 < tiles < gpu.sms or parts < 2:
        return 1, ALL_KEYS
    part_keys = -(-reach // (parts * tile.kv_tile)) * tile.kv_tile
    return -(-reach // part_keys), part_keys


def _with_parts(problem: Problem, gpu: Gpu, totals: Totals, variant: Variant, plan: ForwardPlan) -> ForwardPlan:
    """The plan with what its parts take."""
    p, units = problem, say_units(problem, gpu, variant)
    if plan.parts == 1:
        return plan._replace(why=f"{plan.why}; {units}")
    rows = count_entries(p, totals) * p.hq * (totals[0] if totals else p.lq)
    workspace = plan.parts * rows * (p.dv + 2) * number_bytes(p)
    why = (
        f"{plan.why}; keys cut every {plan.part_keys}, and merge: a warp for each row of up to {plan.parts} parts, for "
        f"which a workspace of {workspace} bytes is taken; {units}"
    )
    merge = merge_step(p.dtype, rows, arithmetic(p))
    return plan._replace(merge=merge, workspace=workspace, why=why)


@lru_cache(maxsize=1024)
def plan_weights(problem: Problem, gpu: Gpu) -> WeightsPlan:
    """The weights of a problem whose dv is 0."""
    check_sizes(problem, None)
    forward = _plan_tiles(problem, gpu, None, may_cut=False)
    variant = _configs.weights_simt(problem.dtype, problem.d)
    q_tiles = count_tiles(problem.lq, variant.tiles.q_tile, problem, None)
    kv_tiles = count_tiles(problem.lk, variant.tiles.kv_tile, problem, None)
    step = make_step(problem, variant, kv_tiles * q_tiles * problem.hq * count_entries(problem, None))
    why = f"{forward.why}; that is for the maximum and the sum of each row, then weights_simt: a block writes a tile"
    workspace = 2 * count_entries(problem, None) * problem.hq * problem.lq * number_bytes(problem)
    return WeightsPlan(forward, step, q_tiles, kv_tiles, workspace, why)
