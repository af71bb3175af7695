"""What a NumPy user writes today: standard attention with the whole score matrix, plainly and in place.

In the dtype of the input, with BLAS on all threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any

# Keys of one product in `decode_in_place`. The rows of a head lie hk * d numbers apart; taking all heads of a run of
# keys before the next run reads every page of the cache once. 2048 was the best of 64 to 16384, 15 % before the last.
RUN = 2048
# The same where keys are converted first: what was just written should still be in the core's cache.
CONVERTED_RUN = 256


def naive(q: Array, k: Array, v: Array, causal: bool) -> Array:
    """softmax(q k^T / sqrt(d)) v as it stands in textbooks."""
    from scipy.special import softmax

    scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        scores = np.where(_visible(scores), scores, -np.inf)
    return softmax(scores, axis=-1) @ v


def in_place(q: Array, k: Array, v: Array, causal: bool) -> Array:
    """The same without a second array of the scores' size."""
    scores = _scaled(q) @ k.swapaxes(-1, -2)
    if causal:
        np.copyto(scores, -np.inf, where=~_visible(scores))
    total = _exponentials(scores)
    out = scores @ v
    out /= total
    return out


def decode_in_place(q: Array, k: Array, v: Array) -> Array:
    """One query per sequence, (b, hq, d), over a cache (b, l, hk, d) that is full: all scores of a token at once.

    The arithmetic is in the dtype of q; NumPy has no product for 16-bit types, so a cache of them is converted.
    The best of six: with one product for all keys, with a loop over heads, with keys as the rows of the product, with
    one product for all heads, and with einsum it was 1.1 to 4 times slower.
    """
    b, hq, d = q.shape
    l, hk = k.shape[1:3]
    queries = _scaled(q).reshape(b, hk, hq // hk, d)
    scores = np.empty((*queries.shape[:3], l), q.dtype)
    run = RUN if k.dtype == q.dtype else CONVERTED_RUN
    runs = [slice(start, start + run) for start in range(0, l, run)]
    for keys in runs:
        tile = k[:, keys].astype(q.dtype, copy=False)
        np.matmul(queries, tile.transpose(0, 2, 3, 1), out=scores[..., keys])
    total = _exponentials(scores)
    out = np.zeros((*queries.shape[:3], v.shape[-1]), q.dtype)
    for keys in runs:
        tile = v[:, keys].astype(q.dtype, copy=False)
        out += scores[..., keys] @ tile.transpose(0, 2, 1, 3)
    out /= total
    return out.reshape(b, hq, -1)


def _scaled(q: Array) -> Array:
    return q * q.dtype.type(q.shape[-1] ** -0.5)


def _exponentials(scores: Array) -> Array:
    """Scores become exp(score - row's maximum); the sums of the rows are returned."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    return scores.sum(axis=-1, keepdims=True)


def _visible(scores: Array) -> Array:
    lq, lk = scores.shape[-2:]
    return np.arange(lk) <= np.arange(lq)[:, None] + (lk - lq)
