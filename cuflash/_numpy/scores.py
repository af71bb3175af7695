"""Score tiles of one block of queries: scale, softcap, bias, mask, in that order, and which keys the block can see."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from cuflash._problem.attention import Operands, Problem

Array = Any


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


def as_operand(tile: Array, dtype: Any) -> Array:
    """Tiles (..., keys, dim) as BLAS takes them without a detour: in `dtype`, rows contiguous and apart."""
    if tile.dtype != dtype:
        return tile.astype(dtype)
    row, element = tile.strides[-2:]
    if element == tile.itemsize and row >= element * tile.shape[-1]:
        return tile
    return np.ascontiguousarray(tile)


def visible_keys(problem: Problem, operands: Operands, entry: tuple[int, ...], rows: slice) -> slice:
    """From the first key that any of the rows sees to the last; masks given as arrays are not looked at."""
    first, stop = 0, _of_entry(operands.kv_lengths, entry)
    offset = _of_entry(operands.q_offset, entry)
    if problem.left is not None:
        first = max(0, rows.start + offset - problem.left)
    if problem.right is not None:
        stop = min(stop, rows.stop + offset + problem.right)
    return slice(first, max(first, stop))


def _of_entry(values: Any, entry: tuple[int, ...]) -> int:
    return values if type(values) is int else int(values[entry])


class QueryBlock:
    """The queries of a block, scaled (and divided by the softcap) in the arithmetic's dtype, and their score tiles.

    Arrays lead with the block's entries, if there are batch axes, and its key/value heads: `q` is (..., hk, rows, d),
    where rows counts every row of every query head that shares the key/value head; `k` and `v` are (..., hk, lk, dim)
    views.
    """

    def __init__(self, problem: Problem, operands: Operands, block: Block) -> None:
        self._problem, self._operands = problem, operands
        self._place, self._heads, self._rows = block.place, block.heads, block.rows
        self._offset = _of_entry(operands.q_offset, block.entry)
        self.dtype = problem.accumulator
        prescale = self.dtype(problem.scale / (problem.softcap or 1.0))
        q = np.multiply(operands.q[self._place], prescale, dtype=self.dtype)
        self.shape = q.shape[:-1]  # (entries of the batch,) query heads, rows of each
        kv_heads = slice(block.heads.start // problem.group, -(-block.heads.stop // problem.group))
        count = kv_heads.stop - kv_heads.start
        self.q = q.reshape(*q.shape[:-3], count, q.shape[-3] // count * q.shape[-2], problem.d)
        source = block.batch
        if operands.seqs is not None:
            row = operands.seqs[block.entry]
            source = (slice(row, row + 1),)
        self.k, self.v = operands.k[(*source, kv_heads)], operands.v[(*source, kv_heads)]

    def scores(self, k: Array, keys: slice, scratch: Array, tanh_out: Array | None = None) -> Array:
        """The final scores of all rows against `k`, the keys at `keys`, as (..., hk, rows, keys) in `scratch`.

        Hidden keys are -inf. With a softcap, `tanh_out` takes the tanh that the gradient needs.
        """
        problem = self._problem
        shape = (*self.q.shape[:-1], k.shape[-2])
        tile = scratch[: prod(shape)].reshape(shape)
        np.matmul(self.q, k.swapaxes(-1, -2), out=tile)
        if problem.softcap is not None:
            np.tanh(tile, out=tile)
            if tanh_out is not None:
                tanh_out[...] = tile
            tile *= self.dtype(problem.softcap)
        crosses = self._crosses_left(keys), self._crosses_right(keys)
        if any(crosses) or problem.bias is not None or problem.alibi or problem.mask:
            self._add_bias_and_hide(tile.reshape(*self.shape, k.shape[-2]), keys, *crosses)
        return tile

    def _add_bias_and_hide(self, tile: Array, keys: slice, crosses_left: bool, crosses_right: bool) -> None:
        operands, problem = self._operands, self._problem
        where = (*self._place, keys)
        if operands.bias is not None:
            tile += operands.bias[where]
        positions = np.arange(self._rows.start, self._rows.stop)[:, None] + self._offset
        if operands.slopes is not None:
            slopes = operands.slopes[self._heads].astype(self.dtype)
            distance = np.abs(np.arange(keys.start, keys.stop) - positions)
            tile -= slopes[:, None, None] * distance.astype(self.dtype)
        if operands.mask is not None:
            np.copyto(tile, -np.inf, where=~operands.mask[where])
        if crosses_left:
            assert problem.left is not None
            stop = min(keys.stop, self._rows.stop - 1 + self._offset - problem.left)
            hidden = np.arange(keys.start, stop) < positions - problem.left
            np.copyto(tile[..., : stop - keys.start], -np.inf, where=hidden)
        if crosses_right:
            assert problem.right is not None
            start = max(keys.start, self._rows.start + self._offset + problem.right + 1)
            hidden = np.arange(start, keys.stop) > positions + problem.right
            np.copyto(tile[..., start - keys.start :], -np.inf, where=hidden)

    def _crosses_left(self, keys: slice) -> bool:
        """Whether a window hides the tile's first key from some row."""
        left = self._problem.left
        return left is not None and keys.start < self._rows.stop - 1 + self._offset - left

    def _crosses_right(self, keys: slice) -> bool:
        """Whether causal or a window hides the tile's last key from some row."""
        right = self._problem.right
        return right is not None and keys.stop - 1 > self._rows.start + self._offset + right
