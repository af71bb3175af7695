"""Blocks of work: which rows of which heads a thread takes at once, and which keys those rows can see."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from cuflash._plan import CpuPlan
from cuflash._problem.attention import Operands, Problem


class Block(NamedTuple):
    """Some rows of some heads: of one key/value head, or of several with all their query heads.

    Where batch entries are small, a block is the same rows and heads of several that follow on the last batch axis.
    """

    entry: tuple[int, ...]  # index of the first batch entry
    entries: int
    heads: slice
    rows: slice
    keys: slice  # the keys to visit: a part of those that any of the rows can see

    @property
    def batch(self) -> tuple[int | slice, ...]:
        """Index of its entries on the batch axes."""
        if not self.entry:
            return ()
        return (*self.entry[:-1], slice(self.entry[-1], self.entry[-1] + self.entries))

    @property
    def place(self) -> tuple[int | slice, ...]:
        """Index of its rows on the axes (*batch, heads, rows)."""
        return (*self.batch, self.heads, self.rows)


def visible_keys(problem: Problem, operands: Operands, entry: tuple[int, ...], rows: slice) -> slice:
    """From the first key that any of the rows sees to the last; masks given as arrays are not looked at."""
    first, stop = 0, of_entry(operands.kv_lengths, entry)
    offset = of_entry(operands.q_offset, entry)
    if problem.left is not None:
        first = max(0, rows.start + offset - problem.left)
    if problem.right is not None:
        stop = min(stop, rows.stop + offset + problem.right)
    return slice(first, max(first, stop))


def of_entry(values: Any, entry: tuple[int, ...]) -> int:
    """The number that belongs to a batch entry."""
    return values if type(values) is int else int(values[entry])


def tiles(span: slice, size: int) -> list[slice]:
    """A span cut into tiles of `size`, the last one shorter."""
    if span.start < span.stop <= span.start + size:
        return [span]
    return [slice(start, min(start + size, span.stop)) for start in range(span.start, span.stop, size)]


def walk(problem: Problem, operands: Operands, plan: CpuPlan) -> list[Block]:
    """Every block of a problem once."""
    heads = tiles(slice(0, problem.hq), plan.heads)
    rows = tiles(slice(0, problem.lq), plan.q_tile)
    return [
        Block(entry, entries, some_heads, some_rows, visible_keys(problem, operands, entry, some_rows))
        for entry, entries in walk_batch(problem, plan.entries)
        for some_heads in heads
        for some_rows in rows
    ]


def walk_batch(problem: Problem, entries: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """The batch in runs of up to `entries` along its last axis: the index of the first, and how many."""
    if not problem.batch:
        yield (), 1
        return
    *leading, last = problem.batch
    for index in product(*map(range, leading), range(0, last, entries)):
        yield index, min(entries, last - index[-1])
