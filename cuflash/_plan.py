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

    entries: int  # batch entries of a block; more than one only with all their heads and rows
    heads: int  # query heads of a block: some of one key/value head, or all of several
    q_tile: int  # query rows of each head in a block
    kv_tile: int  # keys of one score tile
    score_tile: int  # elements of a score tile, at most
    part: int | None  # keys of a part; None: the keys are not cut
    parts: int | None  # a fixed number of parts, where asked for
    threads: int  # 0: the caller's alone, and so little work that BLAS does not thread it either
    why: str


@lru_cache(maxsize=1024)
def make_plan(problem: Problem, device: Device) -> CpuPlan:
    """Tiles, parts and threads of a forward pass or a decoding step."""
    shape = _pack(problem)
    why = [f"a block holds {shape} of queries"]
    part = None
    if problem.function == "decode":
        part = _tuning.PART_KEYS
        why.append(f"keys cut every {part}, so that the parts of a sequence depend on its own length only")
    else:
        shape = _shrink(problem, shape, why)
        if _count_blocks(problem, shape) < _tuning.BLOCKS_WANTED and problem.lk > _tuning.PART_KEYS:
            part = _tuning.PART_KEYS
            why.append(f"few queries over many keys: keys cut every {part}")
    if problem.splits is not None:
        part = None
        why.append(f"keys cut into {problem.splits} part(s) as asked; results may differ in rounding from the default")
    kv_tile = _kv_tile(problem, shape, why)
    threads = _threads(problem, device, why)
    return CpuPlan(*shape, kv_tile, shape.rows * kv_tile, part, problem.splits, threads, "; ".join(why))


class CpuBackwardPlan(NamedTuple):
    """How the NumPy backend computes the gradient of one problem."""

    entries: int  # the first five as in the forward pass
    heads: int
    q_tile: int
    kv_tile: int
    score_tile: int
    part: int  # keys of a part; each part has a dq of its own, added in order
    parts: int
    threads: int
    why: str


@lru_cache(maxsize=1024)
def make_backward_plan(problem: Problem, device: Device) -> CpuBackwardPlan:
    """Tiles, parts and threads of a backward pass."""
    shape = _pack(problem)
    while (
        _count_owners(problem, shape) < _tuning.BLOCKS_WANTED
        and (shape.entries > 1 or shape.heads > problem.group)
        and _block_work(problem, shape) > _tuning.SMALL_WORK
    ):
        shape = _smaller(problem, shape)
    owners = _count_owners(problem, shape)
    most = max(1, min(_tuning.BACKWARD_PARTS_MOST, problem.lk // _tuning.BACKWARD_PART_KEYS_LEAST))
    part = max(1, -(-problem.lk // min(-(-_tuning.BLOCKS_WANTED // owners), most)))
    parts = max(1, -(-problem.lk // part))
    why = [
        f"a block holds {shape} of queries",
        f"{owners} x {parts} chains: a thread owns dk and dv of its key/value heads and of {part} keys",
    ]
    if parts > 1:
        why.append(f"dq is kept {parts} times and added in order, so that bits do not depend on threads")
    kv_tile = _kv_tile(problem, shape, why)
    threads = _threads(problem, device, why)
    return CpuBackwardPlan(*shape, kv_tile, shape.rows * kv_tile, part, parts, threads, "; ".join(why))


class _Shape(NamedTuple):
    """Queries of a block."""

    entries: int
    heads: int
    q_tile: int

    @property
    def rows(self) -> int:
        return self.entries * self.heads * self.q_tile

    def __str__(self) -> str:
        batch = f"{self.entries} batch entries x " if self.entries > 1 else ""
        return f"{batch}{self.heads} head(s) x {self.q_tile} row(s)"


def _count_owners(problem: Problem, shape: _Shape) -> int:
    """Chains that can run side by side over the same keys: not those that write one slice of dk, dv or dbias."""
    sizes = (*_runs(problem.kv_batch, shape), -(-problem.hq // max(shape.heads, problem.group, 1)))
    bias = problem.bias or ()
    if bias[-2:] == (problem.lq, problem.lk) and problem.lq > 1 and problem.lk > 1:
        leading = (1,) * (len(sizes) + 2 - len(bias)) + bias[:-2]
        sizes = tuple(1 if own == 1 else size for size, own in zip(sizes, leading))
    return max(1, prod(sizes))


def _runs(batch: tuple[int, ...], shape: _Shape) -> tuple[int, ...]:
    """Runs of batch entries along each batch axis."""
    return (*batch[:-1], *(-(-last // shape.entries) for last in batch[-1:]))


def _pack(problem: Problem) -> _Shape:
    """As much as fits: whole batch entries, else whole groups, else heads of one group, else a tile of one head.

    A tile of one head has up to BLOCK_ROWS rows. More rows than that only share what NumPy spends on a call: each head
    is a product of its own, so it is enough that their scores fit a tile.
    """
    lq, group = max(1, problem.lq), max(1, problem.group)
    if problem.function == "decode":  # a part is one tile whatever the number of heads, which must not change its bits
        tile_rows = most = _tuning.SCORE_TILE // _tuning.PART_KEYS
    else:
        tile_rows = _tuning.BLOCK_ROWS
        most = max(tile_rows, _tuning.SCORE_TILE // max(1, problem.lk))
    if lq >= tile_rows:
        return _Shape(1, 1, tile_rows)
    fitting = most // lq
    if fitting < group:
        return _Shape(1, max(heads for heads in range(1, fitting + 1) if group % heads == 0), lq)
    heads = max(1, min(problem.hq, fitting // group * group))
    if heads < problem.hq or problem.ragged or problem.bias is not None or not problem.batch:
        return _Shape(1, heads, lq)
    return _Shape(max(1, min(problem.batch[-1], fitting // heads)), heads, lq)


def _shrink(problem: Problem, shape: _Shape, why: list[str]) -> _Shape:
    """Smaller blocks where there are too few to keep the cores busy and each is worth a thread's while."""
    while _count_blocks(problem, shape) < _tuning.BLOCKS_WANTED and _block_work(problem, shape) > _tuning.SMALL_WORK:
        smaller = _smaller(problem, shape)
        if smaller == shape:
            break
        shape = smaller
        why.append(f"cut to {shape}: fewer than {_tuning.BLOCKS_WANTED} blocks leave cores idle")
    return shape


def _smaller(problem: Problem, shape: _Shape) -> _Shape:
    """About half as much: of the batch, of whole groups, of one group by a divisor, or of the rows."""
    entries, heads, q_tile = shape
    if entries > 1:
        return _Shape((entries + 1) // 2, heads, q_tile)
    if heads > problem.group:
        return _Shape(1, max(1, heads // problem.group // 2) * problem.group, q_tile)
    if heads > 1:
        return _Shape(1, max(fewer for fewer in range(1, heads) if problem.group % fewer == 0), q_tile)
    return _Shape(1, 1, (q_tile + 1) // 2 if q_tile > _tuning.BLOCK_ROWS_LEAST else q_tile)


def _block_work(problem: Problem, shape: _Shape) -> int:
    return shape.rows * problem.lk * (problem.d + problem.dv)


def _count_blocks(problem: Problem, shape: _Shape) -> int:
    return prod(_runs(problem.batch, shape)) * -(-problem.hq // shape.heads) * -(-problem.lq // shape.q_tile)


def _kv_tile(problem: Problem, shape: _Shape, why: list[str]) -> int:
    """Keys of a score tile: all, or a power of two, so that every full tile is the same product."""
    if problem.function == "decode":
        keys = _tuning.PART_KEYS
    else:
        keys = max(1, _tuning.SCORE_TILE // shape.rows)
        if problem.lk > keys:
            keys = 1 << (keys.bit_length() - 1)
        keys = min(_tuning.KV_TILE_MOST, keys)
    why.append(f"score tile {shape.rows} x {keys} stays in a core's cache")
    return keys


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
