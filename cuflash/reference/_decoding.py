"""Decoding over a cache, sequence by sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash.reference._attention import attention
from cuflash.reference._steps import accumulator, heads_first

Array = Any  # an array, or what NumPy makes one of


def decode(
    q: Array, cache: Any, /, *, seqs: Any = None, causal: bool = True, bias: Any = None, layout: str = "bhld",
    return_lse: bool = False, dtype: Any = np.float64, **options: Any,
) -> Any:  # fmt: skip
    """Attention of the newest tokens of each sequence over its keys and values in a cache, sequence by sequence.

    Parameters
    ----------
    q : array, (b, hq, lq, d), or (b, hq, d) for one token
        Query i of a sequence stands at position ``length - lq + i``; at a negative one it sees nothing.
    cache : object with `k` (batch, capacity, hk, d), `v` (batch, capacity, hk, dv) and `lengths` (batch,)
        With a `page_table`, `k` and `v` are (pages, page_size, hk, ...); with `k_scale` and `v_scale`, what they hold
        is to be multiplied by those. Keys that `trim` has freed count as 0.
    seqs : sequence of int, optional
        Row i of `q` belongs to sequence ``seqs[i]`` of the cache; by default to row i, or to ``cache.seqs[i]``.
    bias : array or Alibi, optional
        Broadcastable to (b, hq, lq, n), keys by absolute position, n either 1 or at least the longest length.
    causal, layout, return_lse, dtype, **options
        As for `attention`; of the options `window`, `sinks`, `softcap` and `scale`.

    Returns
    -------
    out, lse : arrays, the rank and layout of `q`, and (b, hq, lq) or (b, hq)

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import KVCache, reference
    >>> cache = KVCache(1, 4, 1, 2, dtype=np.float64)
    >>> cache.append(np.zeros((1, 1, 2, 2)), np.array([[[[1.0, 1.0], [3.0, 3.0]]]]))
    >>> reference.decode(np.zeros((1, 1, 2)), cache)
    array([[[2., 2.]]])
    """
    one_token = np.ndim(q) == 3
    q4 = np.asarray(q)[:, :, None] if one_token else heads_first(q, layout)
    b, hq, lq, _ = q4.shape
    if bias is not None and not hasattr(bias, "slopes"):
        bias = np.broadcast_to(bias, (b, hq, lq, *np.shape(np.atleast_1d(bias))[-1:]))
    out = np.zeros((b, hq, lq, cache.v.shape[-1]), dtype)
    lse = np.zeros((b, hq, lq), accumulator(dtype))
    for i, row in enumerate(getattr(cache, "seqs", range(b)) if seqs is None else seqs):
        length = int(cache.lengths[row])
        k, v = (np.swapaxes(_tokens(cache, name, row, length), 0, 1) for name in "kv")
        exists = length - lq + np.arange(lq)[:, None] >= 0
        row_bias = bias[i, ..., :length] if isinstance(bias, np.ndarray) else bias
        own = {"causal": causal, "mask": exists, "bias": row_bias, "q_offset": length - lq, "dtype": dtype}
        out[i], lse[i] = attention(q4[i], k, v, return_lse=True, **own, **options)
    out, lse = (out[:, :, 0], lse[:, :, 0]) if one_token else (heads_first(out, layout), lse)
    return (out, lse) if return_lse else out


def _tokens(cache: Any, name: str, row: int, length: int) -> Array:
    """Keys or values of a sequence, (length, hk, dim), as the numbers that they stand for."""
    array, scale = getattr(cache, name), getattr(cache, f"{name}_scale", None)
    where: Any = (row, slice(length))
    table = getattr(cache, "page_table", None)
    if table is not None:
        i, page_size = np.arange(length), array.shape[1]
        pages = table[row, i // page_size]
        where = pages, i % page_size
    tokens = array[where] if scale is None else array[where].astype(np.float64) * scale[where][..., None]
    return tokens if table is None else np.where(pages[:, None, None] >= 0, tokens, tokens.dtype.type(0))
