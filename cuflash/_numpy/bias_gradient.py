"""The gradient of an additive bias: the score gradients, summed over the axes along which the bias was broadcast.

Two cases keep memory at what the caller's own bias takes, or O(lq + lk) a head:

- A bias over both queries and keys gets its gradient in place. Heads and batch entries that share a slice of it then
  form one chain, worked on by one thread in a fixed order.
- Any other bias is reduced tile by tile to one row, one column or one number for each head of each batch entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash._numpy.scores import Block
from cuflash._problem.attention import Problem

Array = Any


class BiasGradient:
    """Collects tiles of score gradients in the shape of the bias."""

    def __init__(self, problem: Problem) -> None:
        assert problem.bias is not None
        self._problem = problem
        batch = problem.batch
        shape = (1,) * (len(batch) + 3 - len(problem.bias)) + problem.bias
        self._in_place = shape[-2] == problem.lq > 1 and shape[-1] == problem.lk > 1
        if self._in_place:
            self._shape = shape
        else:
            self._shape = (*batch, problem.hq, *shape[-2:])
        self._sums = np.zeros((1, *self._shape), problem.accumulator)

    def prepare(self, parts: int) -> None:
        """Make room for parts of the keys, unless they write different elements anyway."""
        if not self._in_place and self._shape[-1] == 1 < parts:
            self._sums = np.zeros((parts, *self._shape), self._sums.dtype)

    @property
    def shared(self) -> tuple[bool, ...]:
        """For each batch axis and the heads, whether all along it write the same elements."""
        return tuple(self._in_place and size == 1 for size in self._shape[:-2])

    def add(self, ds: Array, block: Block, keys: slice, part: int) -> None:
        """Take in the score gradients (..., heads, rows, keys) of a block of one batch entry at `keys`."""
        spans = (*(slice(i, i + 1) for i in block.entry), block.heads, block.rows, keys)
        where = tuple(slice(None) if size == 1 else span for size, span in zip(self._shape, spans))
        ds = ds.reshape(*(1 for _ in block.entry), *ds.shape[-3:])
        axes = tuple(axis for axis, size in enumerate(self._shape) if size == 1 and ds.shape[axis] != 1)
        self._sums[part if len(self._sums) > 1 else 0][where] += ds.sum(axis=axes, keepdims=True) if axes else ds

    def total(self) -> Array:
        """The sum of all parts; axes that the bias was broadcast along may still be left to sum."""
        return self._sums.sum(axis=0) if len(self._sums) > 1 else self._sums[0]
