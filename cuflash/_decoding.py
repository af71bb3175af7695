"""Decoding: the newest queries of each sequence against everything its cache holds."""

from __future__ import annotations

from typing import Any

from cuflash._dispatch import backend, prepared
from cuflash._problem import decoding
from cuflash.kv_cache import KVCache
from cuflash.paged_kv_cache import PagedKVCache


@prepared
def decode(
    q: Any, cache: KVCache | PagedKVCache, /, *, seqs: Any = None, causal: bool = True, window: Any = None,
    bias: Any = None, sinks: Any = None, softcap: float | None = None, scale: float | None = None,
    splits: int | None = None, validate: bool | None = None, layout: str = "bhld", out: Any = None,
    return_lse: bool = False,
) -> Any:  # fmt: skip
    """Attention of a few new tokens over a cache, with the keys cut into parts that run side by side.

    The keys and values of the new tokens are in the cache already (append first): query i sits at position
    ``lengths - lq + i`` of its sequence and sees keys up to its own.

    The bits of a sequence depend on its own length, hq / hk, lq, d, dv, dtype and options, not on the batch, the
    capacity, the pages or the number of threads; giving `splits` gives that up.

    Parameters
    ----------
    q : array, shape (b, hq, lq, d) or (b, hq, d)
        New queries, of the cache's dtype, or float16, bfloat16 or float32 where it is quantised; (b, lq, hq, d) with
        ``layout="blhd"``. Three axes are one token.
    cache : KVCache or PagedKVCache
    seqs : integers, shape (b,), optional
        Row i of `q` belongs to row, or sequence, ``seqs[i]`` of the cache. By default all, in order, or in that of add.
        On the host always.
    causal : bool
        False: every query sees all keys of its sequence.
    window, sinks, softcap, scale
        As in `attention`.
    bias : array or Alibi, optional
        Broadcasts to (b, hq, lq, n); keys by their position in the cache, n = 1 or at least the longest sequence. On a
        device, where the host may not know how long that is, no key from position n on is looked at.
    splits : int, optional
        Cut each sequence's keys into so many parts, or into one for each key where these are fewer.
    validate : bool, optional
        Whether to look that ``cache.lengths`` lies in 0..capacity, and that no key is seen whose page `trim` has
        freed; NumPy looks unless told False. On a device that waits for it, and is done if told True only: a key
        without a page counts as zeros else, and so does its value.
    layout : {"bhld", "blhd"}
    out : array, optional
        Where to put the output: q's shape with dv in place of d.
    return_lse : bool
        Whether to return the log-sum-exp as well.

    Returns
    -------
    out : array, shape (b, hq, lq, dv) or (b, hq, dv)
        Of q's rank. 0 for a query that sees no key, as one at a negative position does.
    lse : array, shape (b, hq, lq) or (b, hq), if `return_lse`

    Raises
    ------
    TypeError, ProblemError, UnsupportedError
        As `attention`.

    References
    ----------
    Dao, Haziza, Massa, Sizov: "Flash-Decoding for long-context inference", 2023.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> rng = np.random.default_rng(0)
    >>> k, v = rng.standard_normal((2, 1, 2, 9, 4))  # batch 1, 2 key/value heads, 9 tokens
    >>> q = rng.standard_normal((1, 4, 9, 4))
    >>> cache = cuflash.KVCache(1, 16, kv_heads=2, head_dim=4, dtype=np.float64)
    >>> cache.append(k, v)
    >>> last = cuflash.decode(q[:, :, -1], cache)
    >>> np.allclose(last, cuflash.attention(q, k, v, causal=True)[:, :, -1])
    True
    """
    call = decoding.decode_call(
        "decode", q, cache, seqs=seqs, causal=causal, window=window, bias=bias, sinks=sinks, softcap=softcap,
        scale=scale, splits=splits, validate=validate, layout=layout, out=out, return_lse=return_lse,
    )  # fmt: skip
    output, lse = backend("decode", call.home).decode(call)
    return (output, lse) if call.return_lse else output
