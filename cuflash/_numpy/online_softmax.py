"""The running state of a softmax over tiles of keys: maximum, sum and output of each row.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao, "FlashAttention-2", 2023.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any

_LOWEST = {np.dtype(dtype): np.finfo(dtype).min for dtype in (np.float32, np.float64)}


class OnlineSoftmax:
    """What a block of rows has seen so far, (hk, rows, ...) as its scores are.

    `maximum` (..., 1) is the largest score, `total` (..., 1) and `output` (..., dv) are the sums of
    exp(score - maximum) and of its products with the values. The maximum never falls below the lowest finite number:
    a hidden key is then exp(-inf) = 0 in every row, and no -inf is ever subtracted from another.
    """

    __slots__ = ("maximum", "output", "total")

    def __init__(self, rows: tuple[int, ...], dv: int, dtype: Any) -> None:
        self.maximum = np.full((*rows, 1), _LOWEST[np.dtype(dtype)], dtype)
        self.total = np.zeros((*rows, 1), dtype)
        self.output = np.zeros((*rows, dv), dtype)

    @classmethod
    def of_tile(cls, scores: Array, v: Array) -> OnlineSoftmax:
        """The state after one tile of scores (hk, rows, keys), which is overwritten, and values (hk, keys, dv)."""
        self = cls.__new__(cls)
        self.maximum = scores.max(axis=-1, keepdims=True, initial=_LOWEST[scores.dtype])
        self.total, self.output = self._sums(scores, v)
        return self

    def step(self, scores: Array, v: Array) -> None:
        """Take in one more tile, as in `of_tile`."""
        self._raise_maximum(scores.max(axis=-1, keepdims=True))
        total, output = self._sums(scores, v)
        self.total += total
        self.output += output

    def _sums(self, scores: Array, v: Array) -> tuple[Array, Array]:
        np.subtract(scores, self.maximum, out=scores)
        np.exp(scores, out=scores)
        return scores.sum(axis=-1, keepdims=True), scores @ v

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
        maximum = np.maximum(self.maximum, candidate)
        keep = np.exp(self.maximum - maximum)
        self.total *= keep
        self.output *= keep
        self.maximum = maximum

    def finish(self, out: Array, lse: Array) -> None:
        """Write out (heads, rows, dv) and the natural-log lse (heads, rows); 0 and -inf where no key was seen."""
        np.divide(self.output, self.total, out=self.output, where=self.total != 0)
        out[...] = self.output.reshape(out.shape)
        logs = np.log(self.total)  # of 0 where no key was seen; `threads.run` expects that
        logs += self.maximum
        lse[...] = logs.reshape(lse.shape)
