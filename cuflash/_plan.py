"""From a Problem and a Device to a plan: tile sizes, parts, threads, and why. Pure; nothing is computed or allocated.

What a plan says about tiles and parts never depends on the number of threads, so neither do the bits of a result. For
`decode` it depends on the group, lq, d and dtype alone, so the bits of a sequence do not depend on its batch either.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    load: int  # keys read at once: all of a tile, or less where there are few queries and memory sets the pace
    product_rows: int  # of one product with the keys: all that share them
    bounded: bool  # look whether scores lie so close together that they need no maximum
    score_tile: int  # elements of a score tile, at most
    part: int | None  # keys of a part; None: the keys are not cut
    parts: int | None  # a fixed number of parts, where asked for
    work: int  # multiply-adds
    threads: int  # 0: the caller's alone, and so little work that BLAS does not thread it either
    why: str


@lru_cache(maxsize=1024)
def make_plan(problem: Problem, device: Device, siblings: int = 1) -> CpuPlan:
    """Tiles, parts and threads of a forward pass or a decoding step, one of several that run together."""
    why: list[str] = []
    few = _few_queries(problem)
    shape = _pack(problem, few)
    if not few:
        shape = _shrink(problem, shape, siblings)
    why.append(f"a block holds {shape} of queries")
    part, kv_tile, load = None, _kv_tile(problem, shape), 0
    if few:
        part = kv_tile = _part(problem, shape)
        load = _load(problem, shape)
        cut = "" if problem.splits else f": keys cut every {part}, read {load} at a time"
        why.append(f"few queries over many keys{cut}")
    elif _count_blocks(problem, shape) * siblings < _tuning.BLOCKS_WANTED and problem.lk > _tuning.PART_KEYS:
        part = _tuning.PART_KEYS
        why.append(f"few blocks over many keys: keys cut every {part}")
    if problem.splits is not None:
        part = None
        why.append(f"keys cut into {problem.splits} part(s) as asked; results may differ in rounding from the default")
    why.append(f"score tile {shape.rows} x {kv_tile} stays in a core's cache")
    bounded = not few and _bounded(problem, shape)
    if bounded:
        why.append("no maximum is sought where |q| |k - mean k| <= 32 holds the scores together")
    work = _work(problem)
    threads = _threads(work, device, why)
    return CpuPlan(
        *shape, kv_tile, load or kv_tile, _product_rows(problem, shape), bounded, shape.rows * kv_tile, part,
        problem.splits, work, threads, "; ".join(why),
    )  # fmt: skip


def threads_for(plans: Sequence[CpuPlan | CpuBackwardPlan], device: Device) -> int:
    """Threads for problems that run together."""
    if len(plans) == 1:
        return plans[0].threads
    return _threads(sum(plan.work for plan in plans), device, [])


class CpuBackwardPlan(NamedTuple):
    """How the NumPy backend computes the gradient of one problem."""

    entries: int  # all up to `score_tile` as in the forward pass
    heads: int
    q_tile: int
    kv_tile: int
    load: int
    product_rows: int  # as in the forward pass, or fewer than share the keys here
    bounded: bool
    score_tile: int
    part: int  # keys of a part; each part has a dq of its own, added in order
    parts: int
    work: int
    threads: int
    why: str


@lru_cache(maxsize=1024)
def make_backward_plan(problem: Problem, device: Device, siblings: int = 1) -> CpuBackwardPlan:
    """Tiles, parts and threads of a backward pass, one of several that run together."""
    shape = _pack(problem, few=False)
    # BLAS rounds otherwise at the edges of a product. A weight exp(score - lse) is as good as its score is the one that
    # the lse was made of, so products end at the same rows as in the forward pass.
    forward = _shrink(problem, shape, siblings)
    if shape.heads == 1:
        shape = shape._replace(q_tile=-(-shape.q_tile // forward.q_tile) * forward.q_tile)
    while (
        _count_owners(problem, shape) * siblings < _tuning.BLOCKS_WANTED
        and (shape.entries > 1 or shape.heads > problem.group)
        and _block_work(problem, shape) > _tuning.BLOCK_WORK_LEAST
    ):
        shape = _smaller(problem, shape)
    owners = _count_owners(problem, shape) * siblings
    most = max(1, min(_tuning.BACKWARD_PARTS_MOST, problem.lk // _tuning.BACKWARD_PART_KEYS_LEAST))
    part = max(1, -(-problem.lk // min(-(-_tuning.BLOCKS_WANTED // owners), most)))
    parts = max(1, -(-problem.lk // part))
    why = [
        f"a block holds {shape} of queries",
        f"{owners // siblings} x {parts} chains: a thread owns dk and dv of its key/value heads and of {part} keys",
    ]
    if parts > 1:
        why.append(f"dq is kept {parts} times and added in order, so that bits do not depend on threads")
    kv_tile = _kv_tile(problem, shape)
    why.append(f"score tile {shape.rows} x {kv_tile} stays in a core's cache")
    bounded = _bounded(problem, shape)
    work = _work(problem)
    threads = _threads(work, device, why)
    return CpuBackwardPlan(
        *shape, kv_tile, kv_tile, _product_rows(problem, forward), bounded, shape.rows * kv_tile, part, parts, work,
        threads, "; ".join(why),
    )  # fmt: skip


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


def _product_rows(problem: Problem, shape: _Shape) -> int:
    """Rows of a block that share their keys."""
    return max(1, min(shape.heads, problem.group) * shape.q_tile)


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


def _few_queries(problem: Problem) -> bool:
    """Whether reading the keys takes longer than the arithmetic; decoding is always planned so, for its bits."""
    if problem.function == "decode":
        return True
    rows = problem.lq * max(1, problem.group)
    return problem.lk > _tuning.PART_KEYS and rows < _tuning.BOUNDED_ROWS_LEAST and _read(problem) > _tuning.LOAD_TILE


def _part(problem: Problem, shape: _Shape) -> int:
    """Keys of a part where queries are few: a fixed number for decoding, else enough that parts are few as well."""
    part = _tuning.PART_KEYS
    if problem.function != "decode":
        while part * _tuning.BLOCKS_WANTED < problem.lk and 2 * part * shape.rows <= _tuning.SCORE_TILE:
            part *= 2
    return part


def _load(problem: Problem, shape: _Shape) -> int:
    """Keys read at once where queries are few, for all heads; decoding takes a number that depends on d alone."""
    heads = _tuning.LOAD_HEADS if problem.function == "decode" else max(1, shape.heads // problem.group) * shape.entries
    keys = _tuning.LOAD_TILE // (heads * max(1, problem.d))
    return max(_tuning.LOAD_KEYS_LEAST, 1 << max(0, keys.bit_length() - 1))


def _bounded(problem: Problem, shape: _Shape) -> bool:
    """Whether a look at the norms of queries and keys is worth its time, and nothing else enters the scores."""
    plain = problem.bias is None and not problem.alibi and problem.softcap is None
    enough = problem.lq * problem.group * problem.lk >= _tuning.BOUNDED_SCORES_LEAST
    return plain and enough and shape.q_tile * min(shape.heads, problem.group) >= _tuning.BOUNDED_ROWS_LEAST


def _pack(problem: Problem, few: bool) -> _Shape:
    """As much as fits: whole batch entries, else whole groups, else heads of one group, else a tile of one head.

    More than BLOCK_ROWS rows only share what NumPy spends on a call: they are taken where keys are so few that all
    their scores fit a tile.
    """
    lq, group = max(1, problem.lq), max(1, problem.group)
    if few:  # a part is one tile whatever the number of heads, which must not change its bits
        tile_rows = most = _tuning.SCORE_TILE // _tuning.PART_KEYS
    else:
        tile_rows = most = max(_tuning.BLOCK_ROWS, _tuning.SCORE_TILE // max(1, problem.lk))
    if lq >= tile_rows:
        return _Shape(1, 1, -(-lq // -(-lq // tile_rows)))
    fitting = most // lq
    if fitting < group:
        return _Shape(1, max(heads for heads in range(1, fitting + 1) if group % heads == 0), lq)
    heads = max(1, min(problem.hq, fitting // group * group))
    if heads < problem.hq or problem.ragged or problem.bias is not None or not problem.batch:
        return _Shape(1, heads, lq)
    return _Shape(max(1, min(problem.batch[-1], fitting // heads)), heads, lq)


def _shrink(problem: Problem, shape: _Shape, siblings: int) -> _Shape:
    """Smaller blocks where there are too few to keep the cores busy and each is worth a thread's while."""
    while (
        _count_blocks(problem, shape) * siblings < _tuning.BLOCKS_WANTED
        and _block_work(problem, shape) > _tuning.BLOCK_WORK_LEAST
    ):
        smaller = _smaller(problem, shape)
        if smaller == shape:
            break
        shape = smaller
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


def _kv_tile(problem: Problem, shape: _Shape) -> int:
    """Keys of a score tile: all, or a power of two, so that every full tile is the same product."""
    keys = max(1, _tuning.SCORE_TILE // shape.rows)
    if problem.lk > keys:
        keys = 1 << (keys.bit_length() - 1)
    return min(_tuning.KV_TILE_MOST, keys)


def _read(problem: Problem) -> int:
    """Elements of keys and values."""
    return prod(problem.batch) * problem.hk * problem.lk * (problem.d + problem.dv)


def _work(problem: Problem) -> int:
    """Multiply-adds, or what takes as long: a core reads an element in the time of a dozen of them."""
    products = problem.group * problem.lq * _read(problem)
    return products if products <= _tuning.TINY_WORK else max(products, 12 * _read(problem))


def _threads(work: int, device: Device, why: list[str]) -> int:
    if work <= _tuning.TINY_WORK:
        why.append("tiny: in the caller's thread, BLAS as it is")
        return 0
    if work < _tuning.SMALL_WORK:
        why.append("one thread: too little work to wake another")
        return 1
    why.append(f"{device.threads} thread(s)")
    return device.threads
