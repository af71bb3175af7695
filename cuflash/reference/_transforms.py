"""Merging parts of attention, and rotary embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash.reference._steps import accumulator, heads_first, like_operand

Array = Any  # an array, or what NumPy makes one of


def merge(outs: Array, lses: Array, /, *, axis: int = 0, dtype: Any = np.float64) -> tuple[Any, Any]:
    """Attention over the union of disjoint sets of keys, from the results over each.

    ``lse = log(sum_i exp(lse_i))`` and ``out = sum_i exp(lse_i - lse) out_i`` (Milakov and Gimelshein, "Online
    normalizer calculation for softmax", 2018). A part that saw no key has lse -inf and counts for nothing.

    Parameters
    ----------
    outs, lses : arrays, (parts, ..., h, l, dv) and (parts, ..., h, l), or sequences of arrays
    axis : int
        Where stacked parts are; a negative one counts from the last axis of `lses`.

    Returns
    -------
    out, lse : arrays, (..., h, l, dv) and (..., h, l)

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import reference
    >>> reference.merge([np.array([[1.0]]), np.array([[3.0]])], [np.zeros(1), np.zeros(1)])
    (array([[2.]]), array([0.69314718]))
    """
    lses = np.asarray(lses).astype(accumulator(dtype))
    outs = np.moveaxis(np.asarray(outs).astype(lses.dtype), axis % lses.ndim, 0)
    lses = np.moveaxis(lses, axis, 0)
    top = lses.max(axis=0)
    top = np.where(np.isfinite(top), top, 0)  # -inf where no part saw anything
    weights = np.exp(lses - top)
    total = weights.sum(axis=0)
    seen = total > 0
    total_or_one = np.where(seen, total, 1)
    out = sum(w[..., None] * part for w, part in zip(weights, outs, strict=True)) / total_or_one[..., None]
    return out.astype(dtype), np.where(seen, top + np.log(total_or_one), -np.inf)


def rotary(
    x: Array, positions: Array, /, *, layout: str = "bhld", dim: int | None = None, base: float = 10000.0,
    freqs: Array = None, interleaved: bool = False, dtype: Any = np.float64,
) -> Any:  # fmt: skip
    """Rotate pairs of features by angles that grow with the position (Su et al., "RoFormer", 2021).

    Parameters
    ----------
    x : array, (..., h, l, d)
    positions : array, broadcastable to (..., l)
        No axis for the heads.
    dim : int, optional
        How many features, from the first, are rotated; even; all by default.
    base : float
        Pair i turns by ``base**(-2 * i / dim)`` radians per position.
    freqs : array, (dim / 2,), optional
        Radians per position of each pair, in place of `base`.
    interleaved : bool
        Pairs are (2 i, 2 i + 1) as in the paper; else (i, i + dim / 2) as in GPT-NeoX.

    Returns
    -------
    array, the shape of `x`

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import reference
    >>> reference.rotary(np.array([[1.0, 0.0]]), np.array([np.pi / 2])).round(6)
    array([[0., 1.]])
    """
    out = heads_first(x, layout).astype(dtype)
    dim = out.shape[-1] if dim is None else dim
    if freqs is None:
        freqs = np.asarray(base, dtype) ** (-np.arange(0, dim, 2, dtype=dtype) / dim)
    angle = np.atleast_1d(positions).astype(dtype)[..., None, :, None] * np.asarray(freqs).astype(dtype)
    pairs = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(0, dim // 2), slice(dim // 2, dim))
    first, second = (out[..., pair].copy() for pair in pairs)
    out[..., pairs[0]] = first * np.cos(angle) - second * np.sin(angle)
    out[..., pairs[1]] = first * np.sin(angle) + second * np.cos(angle)
    return like_operand(out, x, layout)
