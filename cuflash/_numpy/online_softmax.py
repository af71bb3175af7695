"""The running state of a softmax over tiles of keys: maximum, sum and output of each row.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao, "FlashAttention-2", 2023.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash._numpy.kv_tiles import KeyValueTiles, ones

Array = Any

_CHAIN = 16  # numbers added one after another
_LIMITS = {np.dtype(dtype): np.finfo(dtype) for dtype in (np.float32, np.float64)}


class OnlineSoftmax:
    """What a block of rows has seen so far, (..., hk, rows, ...) as its scores are.

    `maximum` (..., 1) is what was subtracted from the scores: the largest of them, or a `shift` that none is far from.
    `total` (..., 1) and `output` (..., dv) are the sums of exp(score - maximum) and of its products with the values.
    The maximum never falls below the lowest finite number: a hidden key is then exp(-inf) = 0 in every row, and no -inf
    is ever subtracted from another.
    """

    __slots__ = ("maximum", "output", "total")

    def __init__(self, shift: Array | None = None) -> None:
        self.maximum: Array = shift
        self.total: Array = None  # nothing was seen
        self.output: Array = None

    @classmethod
    def of_nothing(cls, rows: tuple[int, ...], dv: int, dtype: Any) -> OnlineSoftmax:
        """The state of rows that see no key."""
        self = cls(np.full((*rows, 1), _LIMITS[np.dtype(dtype)].min, dtype))
        self.total, self.output = np.zeros((*rows, 1), dtype), np.zeros((*rows, dv), dtype)
        return self

    def step(self, scores: Array, kv: KeyValueTiles, keys: slice) -> None:
        """Take in a tile of scores (..., hk, rows, keys), which is overwritten, and the values of its keys."""
        self._raise_maximum(scores.max(axis=-1, keepdims=True, initial=_LIMITS[scores.dtype].min))
        np.subtract(scores, self.maximum, out=scores)
        np.exp(scores, out=scores)
        self.add(scores, kv, keys)

    def add(self, powers: Array, kv: KeyValueTiles, keys: slice) -> None:
        """Take in a tile of exp(score - maximum) and the values of its keys."""
        total, output = row_sums(powers), kv.weighted(powers, keys)
        if self.total is None:
            self.total, self.output = total, output
        else:
            self.total += total
            self.output += output

    def merge(self, other: OnlineSoftmax) -> None:
        """Take in what another state has seen of other keys."""
        self._raise_maximum(other.maximum)
        weight = np.exp(other.maximum - self.maximum)
        self.total += weight * other.total
        self.output += weight * other.output

    def add_sinks(self, sinks: Array) -> None:
        """One more key per row with the score `sinks` (..., 1) and no value."""
        self._raise_maximum(sinks)
        self.total += np.exp(sinks - self.maximum)

    def _raise_maximum(self, candidate: Array) -> None:
        """Raise the maximum and rescale the sums to it."""
        if self.maximum is None:
            self.maximum = candidate
            return
        maximum = np.maximum(self.maximum, candidate)
        keep = np.exp(self.maximum - maximum)
        self.total *= keep
        self.output *= keep
        self.maximum = maximum

    def share(self) -> Array:
        """1 / total; a large number for 0, whose output is 0 as well."""
        return 1 / np.maximum(self.total, _LIMITS[self.total.dtype].tiny)

    def finish(self, out: Array, lse: Array) -> None:
        """Write out (heads, rows, dv) and the natural-log lse (heads, rows); 0 and -inf where no key was seen."""
        np.multiply(
            self.output.reshape(out.shape), self.share().reshape(*lse.shape, 1), out=out, casting="same_kind"
        )  # fmt: skip
        logs = np.log(self.total)  # of 0 where no key was seen; `threads.run` expects that
        logs += self.maximum
        lse[...] = logs.reshape(lse.shape)


def row_sums(tile: Array) -> Array:
    """Sums (..., rows, 1) of tiles (..., rows, keys), in chains as short as NumPy's pairwise ones.

    Where the numbers of a key lie side by side, products of 16 keys with ones add twice as fast as a sum does. All keys
    in one product would lose what is small behind a large first number.
    """
    keys = tile.shape[-1]
    if keys <= _CHAIN or tile.strides[-1] == tile.itemsize:
        return tile.sum(axis=-1, keepdims=True)
    *lead, rows, _ = tile.shape
    whole = keys // _CHAIN * _CHAIN
    chains = tile.swapaxes(-1, -2)[..., :whole, :].reshape(*lead, whole // _CHAIN, _CHAIN, rows)
    sums = row_sums((ones(_CHAIN, tile.dtype) @ chains)[..., 0, :].swapaxes(-1, -2))
    if whole < keys:
        sums += tile[..., whole:].sum(axis=-1, keepdims=True)
    return sums
