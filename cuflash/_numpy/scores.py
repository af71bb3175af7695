"""Score tiles of one block of queries: scale, softcap, bias, mask, in that order."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from cuflash._numpy.blocks import Block, of_entry
from cuflash._numpy.kv_tiles import KeyValueTiles, longest_row
from cuflash._numpy.scratch import Scratch
from cuflash._problem.attention import Operands, Problem

Array = Any

# Scores that stay within 32 of a number need no maximum: sums of exp(32) = 8e13 leave 25 decades to values.
BOUND = 32.0

# Of fewer rows than this over many keys NumPy seeks the maximum far faster where the keys of a row lie side by side: 4
# rows x 1024 keys of 8 heads in 5 us in place of 224, and the copy takes 9.
FEW_ROWS = 64


class QueryBlock:
    """The queries of a block, scaled (and divided by the softcap) in the arithmetic's dtype, and their score tiles.

    Arrays lead with the block's entries, if there are batch axes, and its key/value heads: `q` is (..., hk, rows, d),
    where rows counts every row of every query head that shares the key/value head.
    """

    def __init__(
        self, problem: Problem, operands: Operands, block: Block, kv: KeyValueTiles, scratch: Scratch
    ) -> None:  # fmt: skip
        self._problem, self._operands, self.kv, self._scratch = problem, operands, kv, scratch
        self._place, self._heads, self._rows = block.place, block.heads, block.rows
        self._offset = of_entry(operands.q_offset, block.entry)
        self.dtype = problem.accumulator
        prescale = self.dtype(problem.scale / (problem.softcap or 1.0))
        q = np.multiply(operands.q[self._place], prescale, dtype=self.dtype)
        count = -(-block.heads.stop // problem.group) - block.heads.start // problem.group
        *self._lead, heads, rows, _ = q.shape
        self._split = (count, heads // count, rows)  # key/value heads, query heads of each, rows of those
        self.q = q.reshape(*self._lead, count, heads // count * rows, problem.d)

    @property
    def shape(self) -> tuple[int, ...]:
        """(entries of the batch,) key/value heads, query heads of each, rows of those."""
        return (*self._lead, *self._split)

    def center(self) -> Array | None:
        """The score (..., hk, rows, 1) of the center of the keys, if no score can be further than BOUND from it.

        |q . (k - center)| <= |q| |k - center| bounds them all without a look at any.
        """
        spread = self.kv.spread
        if spread is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            if not longest_row(self.q) * spread.radius <= BOUND:  # NaN is not
                return None
        if spread.center is None:
            return np.zeros((*self.q.shape[:-1], 1), self.dtype)
        return self.q @ spread.center.swapaxes(-1, -2)

    def scores(self, keys: slice, tanh_out: Array | None = None) -> Array:
        """The final scores of all rows against the keys at `keys`, as (..., hk, rows, keys) in scratch memory.

        Hidden keys are -inf. With a softcap, `tanh_out` takes the tanh that the gradient needs.
        """
        problem = self._problem
        tile = self.tile(keys.stop - keys.start, "scores")
        self.kv.products(self.q, keys, tile)
        if 1 < tile.shape[-2] < FEW_ROWS and tile.shape[-1] > 4 * FEW_ROWS:
            rows_apart = self._scratch.room("rows apart", tile.shape)
            np.copyto(rows_apart, tile)
            tile = rows_apart
        if problem.softcap is not None:
            np.tanh(tile, out=tile)
            if tanh_out is not None:
                tanh_out[...] = tile
            tile *= self.dtype(problem.softcap)
        if problem.bias is not None or problem.alibi:
            self._add_bias(self._by_heads(tile), keys)
        self._hide(tile, keys, -np.inf)
        return tile

    def powers(self, keys: slice) -> Array:
        """exp(score - center) where there is a `center`, 0 for hidden keys: shaped as `scores`."""
        assert self.kv.spread is not None
        tile = self.tile(keys.stop - keys.start, "scores")
        self.kv.products(self.q, keys, tile, self.kv.spread.center)
        np.exp(tile, out=tile)
        self._hide(tile, keys, 0)
        return tile

    def tile(self, count: int, name: str) -> Array:
        """An array (..., hk, rows, count) in scratch memory.

        A key's numbers lie side by side, which is what BLAS writes fastest and what sums over the keys read fastest;
        where a bias or a mask is an array, a row's do, as there. (A decoding step has a mask only where some sequence
        is shorter than lq, which must not change others' bits.)
        """
        *lead, rows, _ = self.q.shape
        if self._problem.bias is not None or (self._problem.mask and self._problem.function != "decode"):
            return self._scratch.room(name, (*lead, rows, count))
        return self._scratch.room(name, (*lead, count, rows)).swapaxes(-1, -2)

    def _by_heads(self, tile: Array) -> Array:
        """A view of a tile with the query heads of a key/value head on an axis of their own."""
        return tile.reshape(*self.shape, tile.shape[-1])

    def _of_block(self, array: Array, keys: slice) -> Array:
        """What belongs to a tile of an array (*batch, hq, lq, lk), shaped as `_by_heads`."""
        return array[(*self._place, keys)].reshape(*self.shape, keys.stop - keys.start)

    def _add_bias(self, tile: Array, keys: slice) -> None:
        operands = self._operands
        if operands.bias is not None:
            tile += self._of_block(operands.bias, keys)
        if operands.slopes is not None:
            slopes = operands.slopes[self._heads].astype(self.dtype).reshape(*self._split[:2], 1, 1)
            first = self._rows.start + self._offset - keys.start  # position of the first row, from the first key
            positions = np.arange(first, first + self._split[2]).astype(self.dtype)
            distance = (np.arange(keys.stop - keys.start, dtype=self.dtype)[:, None] - positions).T
            tile -= slopes * np.abs(distance, out=distance)

    def _hide(self, tile: Array, keys: slice, value: float) -> None:
        """Write `value` where a query does not see a key."""
        problem, rows = self._problem, self._rows
        first = rows.start + self._offset  # position of the first row among the keys
        if problem.mask:
            assert self._operands.mask is not None
            np.copyto(self._by_heads(tile), value, where=~self._of_block(self._operands.mask, keys))
        count = rows.stop - rows.start
        if problem.left is not None and keys.start < first + count - 1 - problem.left:
            stop = min(keys.stop, first + count - 1 - problem.left)
            beyond = later_keys(count, stop - keys.start, first - problem.left - keys.start - 1)
            np.copyto(self._by_heads(tile)[..., : stop - keys.start], value, where=~beyond)
        if problem.right is not None and keys.stop - 1 > first + problem.right:
            start = max(keys.start, first + problem.right + 1)
            beyond = later_keys(count, keys.stop - start, first + problem.right - start)
            np.copyto(self._by_heads(tile)[..., start - keys.start :], value, where=beyond)


@lru_cache(maxsize=16)
def later_keys(rows: int, keys: int, shift: int) -> Array:
    """Whether key j > row i + shift, (rows, keys), a key's answers side by side: most edges of a call are alike."""
    return (np.arange(keys)[:, None] > np.arange(rows) + shift).T
