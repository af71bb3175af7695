"""From a Problem and a Device to a plan: tile sizes, parts, threads, and why. Pure; nothing is computed or allocated.

What a plan says about tiles and parts never depends on the number of threads, so neither do the bits of a result. For
`decode` it depends on the group, lq, d and dtype alone, so the bits of a sequence do not depend on its batch either.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from cuflash import _tuning
from cuflash._device import Device
from cuflash._problem.attention import Problem


class CpuPlan(NamedTuple):
    """How the NumPy backend computes one problem."""

    heads: int  # query heads packed in a block: some of one key/value head, or all of several
    q_tile: int  # query rows of each head in a block
    kv_tile: int  # keys of one score tile
    part: int | None  # keys of a part; None: the keys are not cut
    parts: int | None  # a fixed number of parts, where asked for
    threads: int  # 0: the caller's alone, and so little work that BLAS does not thread it either
    why: str


@lru_cache(maxsize=1024)
def make_plan(problem: Problem, device: Device) -> CpuPlan:
    """Tiles, parts and threads of a forward pass or a decoding step."""
    heads, q_tile = _pack(problem)
    why = [f"{heads} head(s) x {q_tile} rows fill a block of up to {_tuning.BLOCK_ROWS} rows"]
    part = None
    if problem.function == "decode":
        part = _tuning.PART_KEYS
        why.append(f"keys cut every {part}, so that the parts of a sequence depend on its own length only")
    else:
        heads, q_tile = _shrink(problem, heads, q_tile, why)
        if _count_blocks(problem, heads, q_tile) < _tuning.BLOCKS_WANTED and problem.lk > _tuning.PART_KEYS:
            part = _tuning.PART_KEYS
            why.append(f"few queries over many keys: keys cut every {part}")
    if problem.splits is not None:
        part = None
        why.append(f"keys cut into {problem.splits} part(s) as asked; results may differ in rounding from the default")
    kv_tile = _kv_tile(heads * q_tile)
    why.append(f"score tile {heads * q_tile} x {kv_tile} stays in a core's cache")
    threads = _threads(problem, device, why)
    return CpuPlan(heads, q_tile, kv_tile, part, problem.splits, threads, "; ".join(why))


class CpuBackwardPlan(NamedTuple):
    """How the NumPy backend computes the gradient of one problem."""

    heads: int  # query heads of a block, as in the forward pass
    q_tile: int
    kv_tile: int
    part: int  # keys of a part; each part has a dq of its own, added in order
    parts: int
    threads: int
    why: str


@lru_cache(maxsize=1024)
def make_backward_plan(problem: Problem, device: Device) -> CpuBackwardPlan:
    """Tiles, parts and threads of a backward pass."""
    heads, q_tile = _pack(problem)
    owners = _count_owners(problem, heads)
    while (
        owners < _tuning.BLOCKS_WANTED
        and heads > problem.group
        and _block_work(problem, heads, q_tile) > _tuning.SMALL_WORK
    ):
        heads = _fewer_heads(problem, heads)
        owners = _count_owners(problem, heads)
    most = max(1, min(_tuning.BACKWARD_PARTS_MOST, problem.lk // _tuning.BACKWARD_PART_KEYS_LEAST))
    part = max(1, -(-problem.lk // min(-(-_tuning.BLOCKS_WANTED // owners), most)))
    parts = max(1, -(-problem.lk // part))
    kv_tile = _kv_tile(heads * q_tile)
    why = [f"{heads} head(s) x {q_tile} rows in a block",
           f"{owners} x {parts} chains: a thread owns dk and dv of its key/value heads and of {part} keys"]  # fmt: skip
    if parts > 1:
        why.append(f"dq is kept {parts} times and added in order, so that bits do not depend on threads")
    why.append(f"score tile {heads * q_tile} x {kv_tile} stays in a core's cache")
    threads = _threads(problem, device, why)
    return CpuBackwardPlan(heads, q_tile, kv_tile, part, parts, threads, "; ".join(why))


def _count_owners(problem: Problem, heads: int) -> int:
    """Chains that can run side by side over the same keys: heads that write one slice of a bias gradient cannot."""
    sizes = (*problem.batch, -(-problem.hq // max(heads, problem.group, 1)))
    bias = problem.bias or ()
    if bias[-2:] == (problem.lq, problem.lk) and problem.lq > 1 and problem.lk > 1:
        leading = (1,) * (len(sizes) + 2 - len(bias)) + bias[:-2]
        sizes = tuple(1 if own == 1 else size for size, own in zip(sizes, leading))
    return max(1, prod(sizes))


def _pack(problem: Problem) -> tuple[int, int]:
    """Heads and rows of a block: whole groups as long as they fit, else heads of one group, else a tile of one head."""
    lq, group = max(1, problem.lq), max(1, problem.group)
    if lq >= _tuning.BLOCK_ROWS:
        return 1, _tuning.BLOCK_ROWS
    fitting = _tuning.BLOCK_ROWS // lq
    if fitting >= group:
        return max(1, min(problem.hq, fitting // group * group)), lq
    return max(heads for heads in range(1, fitting + 1) if group % heads == 0), lq


def _shrink(problem: Problem, heads: int, q_tile: int, why: list[str]) -> tuple[int, int]:
    """Smaller blocks where there are too few to keep the cores busy and each is worth a thread's while."""
    while (_count_blocks(problem, heads, q_tile) < _tuning.BLOCKS_WANTED
           and _block_work(problem, heads, q_tile) > _tuning.SMALL_WORK):  # fmt: skip
        if heads > 1:
            heads = _fewer_heads(problem, heads)
        elif q_tile > _tuning.BLOCK_ROWS_LEAST:
            q_tile = (q_tile + 1) // 2
        else:
            break
        why.append(f"cut to {heads} x {q_tile}: fewer than {_tuning.BLOCKS_WANTED} blocks leave cores idle")
    return heads, q_tile


def _fewer_heads(problem: Problem, heads: int) -> int:
    """About half as many: whole groups, or a divisor of one."""
    if heads > problem.group:
        return max(1, heads // problem.group // 2) * problem.group
    return max(fewer for fewer in range(1, heads) if problem.group % fewer == 0)


def _block_work(problem: Problem, heads: int, q_tile: int) -> int:
    return heads * q_tile * problem.lk * (problem.d + problem.dv)


def _count_blocks(problem: Problem, heads: int, q_tile: int) -> int:
    return prod(problem.batch) * -(-problem.hq // heads) * -(-problem.lq // q_tile)


def _kv_tile(rows: int) -> int:
    """Keys of a score tile: a power of two, so that every full tile is the same product."""
    keys = _tuning.SCORE_TILE // rows
    return min(_tuning.KV_TILE_MOST, 1 << (keys.bit_length() - 1))


def _threads(problem: Problem, device: Device, why: list[str]) -> int:
    work = prod(problem.batch) * problem.hq * problem.lq * problem.lk * (problem.d + problem.dv)
    if work <= _tuning.TINY_WORK:
        why.append("tiny: in the caller's thread, BLAS as it is")
        return 0
    if work < _tuning.SMALL_WORK * 2:
        why.append("one thread: too little work to wake another")
        return 1
    why.append(f"{device.threads} thread(s)")
    return device.threads
