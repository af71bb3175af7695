"""Keys and values of a sequence whose tokens lie in pages, or are codes with a scale for each vector.

Scales multiply scores and weights: there are fewer of those than numbers in the vectors. What is gathered from pages
has the order of memory that it would have in a contiguous cache, and so gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash._numpy.blocks import Block
from cuflash._numpy.kv_tiles import KeyValueTiles, as_operand
from cuflash._numpy.scratch import Scratch
from cuflash._numpy.widen import widen
from cuflash._plan import CpuPlan
from cuflash._problem.attention import Operands, Problem

Array = Any

# Of a block's pages, up to so many bytes are gathered at once: fewer calls. Of more, a load at a time is.
GATHER_BYTES = 1 << 20


class CacheKeyValues:
    """The keys and values of a cache, handed out for each block, as `KeyValues` does of arrays."""

    def __init__(self, problem: Problem, operands: Operands, plan: CpuPlan) -> None:
        self._problem, self._operands, self._plan = problem, operands, plan

    def of(self, block: Block, scratch: Scratch) -> CacheTiles:
        """Those of the sequence of a block, and of the key/value heads that its queries share."""
        return CacheTiles(self._problem, self._operands, block, scratch, self._plan)


class CacheTiles(KeyValueTiles):
    """The keys and values that one block reads, (1, hk, keys, dim)."""

    def __init__(self, problem: Problem, operands: Operands, block: Block, scratch: Scratch, plan: CpuPlan) -> None:
        super().__init__(operands.k, operands.v, scratch, plan.load, None, plan.product_rows)
        self._k_scale, self._v_scale = operands.k_scale, operands.v_scale
        self._heads = slice(block.heads.start // problem.group, -(-block.heads.stop // problem.group))
        (entry,) = block.entry
        self._row = entry if operands.seqs is None else int(operands.seqs[entry])
        self._start = block.keys.start
        self._places: Array | None = None  # of the block's keys among the tokens of all pages
        if operands.page_table is not None and problem.page_size is not None:
            size = problem.page_size
            entry, before = divmod(block.keys.start, size)
            pages = operands.page_table[self._row, entry : -(-block.keys.stop // size)].astype(np.intp)
            np.maximum(pages, 0, out=pages)  # with validate=False, whatever page there is in place of a missing one
            places = (pages[:, None] * size + np.arange(size)).ravel()
            self._places = places[before : before + block.keys.stop - block.keys.start]
        self._gathered: dict[str, Array] = {}  # all that the block reads of an array, where that is little

    def k(self, keys: slice) -> Array:
        """Keys as BLAS takes them; not yet scaled, if they are codes. The next load may overwrite them."""
        return self._operand("k", self._k, keys)

    def v(self, keys: slice) -> Array:
        """Values likewise."""
        return self._operand("v", self._v, keys)

    def products(self, q: Array, keys: slice, out: Array, center: Array | None = None) -> None:
        """As in `KeyValueTiles`, and scaled."""
        super().products(q, keys, out, center)
        if self._k_scale is not None:
            out *= self._scales("k_scale", self._k_scale, keys)

    def weighted(self, weights: Array, keys: slice) -> Array:
        """As in `KeyValueTiles`, and scaled."""
        if self._v_scale is not None:
            weights = weights * self._scales("v_scale", self._v_scale, keys)
        return super().weighted(weights, keys)

    def _operand(self, name: str, array: Array, keys: slice) -> Array:
        tokens = self._tokens(name, array, keys)
        if self._k_scale is None:
            return as_operand(tokens.swapaxes(0, 1)[None], self._scratch)
        wide = self._scratch.room("load", tokens.shape)
        return widen(tokens, wide).swapaxes(0, 1)[None]

    def _scales(self, name: str, array: Array, keys: slice) -> Array:
        return self._tokens(name, array, keys).T[:, None]

    def _tokens(self, name: str, array: Array, keys: slice) -> Array:
        """The tokens at `keys` of an array (rows, hk, tokens, ...) as (keys, hk, ...).

        They lie as if all heads did, beside each other: products of other strides may round differently.
        """
        array = array.swapaxes(1, 2)
        if self._places is None:
            return array[self._row, keys, self._heads]
        here = slice(keys.start - self._start, keys.stop - self._start)
        if name in self._gathered:
            return self._gathered[name][here, self._heads]
        flat = array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
        if len(self._places) * flat[:1].nbytes <= GATHER_BYTES:
            whole = self._gathered[name] = self._gather(name, flat, self._places)
            return whole[here, self._heads]
        return self._gather(name, flat, self._places[here])[:, self._heads]

    def _gather(self, name: str, flat: Array, places: Array) -> Array:
        first, last = int(places[0]), int(places[-1])
        if last - first == len(places) - 1 and (places[1:] > places[:-1]).all():
            return flat[first : last + 1]
        room = self._scratch.room(f"gathered {name}", (len(places), *flat.shape[1:]), flat.dtype)
        return flat.take(places, axis=0, out=room, mode="clip")
