"""Keys and values of a block in the arithmetic's dtype, a load at a time: only a load is ever copied or converted."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from cuflash._numpy.blocks import Block, of_entry, tiles
from cuflash._numpy.scratch import Scratch
from cuflash._numpy.widen import widen
from cuflash._plan import CpuBackwardPlan, CpuPlan
from cuflash._problem.attention import Operands, Problem

Array = Any


class KeyValues:
    """The keys and values of a problem, handed out for each block."""

    def __init__(self, problem: Problem, operands: Operands, plan: CpuPlan | CpuBackwardPlan) -> None:
        self._problem, self._operands, self._plan = problem, operands, plan
        self._spread: dict[Any, Spread] = {}

    def of(self, block: Block, scratch: Scratch) -> KeyValueTiles:
        """Those of the key/value heads that a block's queries share."""
        group, source = self._problem.group, block.batch
        heads = slice(block.heads.start // group, -(-block.heads.stop // group))
        if self._operands.seqs is not None:
            row = self._operands.seqs[block.entry]
            source = (slice(row, row + 1),)
        where = (*source, heads)
        k, v = self._operands.k[where], self._operands.v[where]
        plan = self._plan
        return KeyValueTiles(k, v, scratch, plan.load, self._of_keys(block, k, scratch), plan.product_rows)

    def _of_keys(self, block: Block, k: Array, scratch: Scratch) -> Spread | None:
        """Made once for all blocks of the same heads, where the plan asks for it."""
        if not self._plan.bounded:
            return None
        slot = (block.entry, block.entries, block.heads.start // self._problem.group)
        found = self._spread.get(slot)
        if found is None:  # two threads at once make the same
            span = slice(0, of_entry(self._operands.kv_lengths, block.entry))
            loads = [k[..., keys, :] for keys in tiles(span, self._plan.load)]
            found = self._spread[slot] = spread(loads, scratch)
        return found


class KeyValueTiles:
    """The keys and values that one block reads, (..., hk, keys, dim); a load may overwrite the one before.

    A product with the keys has `product_rows` rows.
    """

    def __init__(
        self, k: Array, v: Array, scratch: Scratch, load: int, spread: Spread | None, product_rows: int
    ) -> None:  # fmt: skip
        self._k, self._v, self._scratch, self._load, self._product_rows = k, v, scratch, load, product_rows
        self.spread = spread
        self.dv = v.shape[-1]

    def k(self, keys: slice) -> Array:
        """Keys as BLAS takes them."""
        return as_operand(self._k[..., keys, :], self._scratch)

    def v(self, keys: slice) -> Array:
        """Values as BLAS takes them."""
        return as_operand(self._v[..., keys, :], self._scratch)

    def products(self, q: Array, keys: slice, out: Array, center: Array | None = None) -> None:
        """Queries (..., rows, d) times the keys, or times what they differ from `center`: `out` (..., rows, keys)."""
        for load in tiles(keys, self._load):
            k = self.k(load)
            if center is not None:
                k = np.subtract(k, center, out=self._scratch.room("centered", k.shape))
            where = slice(load.start - keys.start, load.stop - keys.start)
            for rows in tiles(slice(0, q.shape[-2]), self._product_rows):
                np.matmul(q[..., rows, :], k.swapaxes(-1, -2), out=out[..., rows, where])

    def weighted(self, weights: Array, keys: slice) -> Array:
        """Weights (..., rows, keys) times the values: (..., rows, dv)."""
        first, *others = tiles(keys, self._load)
        total: Array = weights[..., : first.stop - keys.start] @ self.v(first)
        for load in others:
            total += weights[..., load.start - keys.start : load.stop - keys.start] @ self.v(load)
        return total


class Spread(NamedTuple):
    """Where the keys of some heads lie, and how far from there."""

    center: Array | None  # (..., hk, 1, d): their mean; None: the origin
    radius: float  # the largest Euclidean distance of a key from it; NaN or infinite where no bound can be told


def spread(loads: list[Array], scratch: Scratch) -> Spread:
    """How keys, which come in loads (..., hk, keys, d), are spread, about the origin unless they are well away from it.

    Keys of trained models share large components, which add one number to all of a query's scores; without those most
    scores can be bounded.
    """
    if not loads:
        return Spread(None, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        radius, total = 0.0, scratch.dtype(0)
        for load in loads:
            keys = as_operand(load, scratch)
            radius, total = np.maximum(radius, longest_row(keys)), total + _sum_rows(keys)
        center = total / scratch.dtype(sum(load.shape[-2] for load in loads))
        if 4 * longest_row(center) <= radius:
            return Spread(None, radius)
        distances = [longest_row(as_operand(load, scratch) - center) for load in loads]
        return Spread(center, np.max(distances))


def _sum_rows(rows: Array) -> Array:
    return ones(rows.shape[-2], rows.dtype) @ rows


@lru_cache(maxsize=64)
def ones(count: int, dtype: Any) -> Array:
    """A vector of ones, (1, count): products with it are faster sums."""
    return np.ones((1, count), dtype)


def longest_row(rows: Array) -> float:
    """The largest Euclidean norm of rows (..., dim); infinite where a square overflows, NaN where there is one."""
    return float(np.sqrt(np.einsum("...d,...d->...", rows, rows).max(initial=0)))


def as_operand(tile: Array, scratch: Scratch) -> Array:
    """Tiles (..., keys, dim) as BLAS takes them without a detour: in its dtype, rows contiguous and apart."""
    if tile.dtype == scratch.dtype:
        row, element = tile.strides[-2:]
        if element == tile.itemsize and row >= element * tile.shape[-1]:
            return tile
    return widen(tile, scratch.room("load", tile.shape))
