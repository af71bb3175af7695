"""One decoding step over a cache: which sequence each query belongs to, and that the keys it sees are there."""

from __future__ import annotations

from typing import Any

from cuflash._bias import Alibi
from cuflash._problem import arrays, caches, options
from cuflash._problem.arrays import Array
from cuflash._problem.attention import Call, Operands, Problem, check_bias_array, heads_first, read_sinks, read_slopes
from cuflash._problem.match import match, match_broadcast
from cuflash.errors import ProblemError


def decode_call(
    function: str, q: Array, cache: Any, *, seqs: Any = None, causal: Any = True, window: Any = None, bias: Any = None,
    sinks: Any = None, softcap: Any = None, scale: Any = None, splits: Any = None, validate: Any = None,
    layout: Any = "bhld", out: Any = None, return_lse: Any = False,
) -> Call:  # fmt: skip
    """Check and normalise `decode`."""
    for name in ("k", "v", "lengths"):
        if not hasattr(cache, name):
            raise TypeError(f"{function}: `cache` must be a KVCache or PagedKVCache, got {type(cache).__name__}")
    home = arrays.same_library(function, "q", q=q, cache=cache.k)
    arrays.check_optional(function, home, "q", sinks=sinks, out=out)
    dtype = caches.check_dtype(function, cache, "q", q=q)
    form = options.read_layout(function, layout)
    if q.ndim not in (3, 4):
        raise ProblemError(
            f"{function}: `q` must have 4 axes, or 3 (b, hq, d) for one token, got {q.ndim}: shape {q.shape}"
        )
    form = "token" if q.ndim == 3 else form
    q4 = heads_first(q, form)
    paged, quantised = caches.paged(cache), caches.quantised(cache)
    k, v = cache.k.swapaxes(1, 2), cache.v.swapaxes(1, 2)
    dims = match(function, ("q", q4.shape[1:], ("hq", "lq", "d")), ("cache", k.shape[1:], ("hk", "tokens", "d")))
    (b, hq, lq), hk, d = q4.shape[:3], dims["hk"], dims["d"]
    if hk == 0 or hq % hk:
        raise ProblemError(f"{function}: `cache` has hk={hk} heads, which does not divide hq={hq} of `q`")
    rows = caches.read_rows(function, seqs, b, cache)
    caches.check_lengths_array(function, cache)
    known = cache._lengths
    lengths = known.of(rows)
    left, right = options.read_span(function, causal, window, None)
    if known.exact if validate is None else options.read_flag(function, "validate", validate):
        caches.check_visible(function, cache, rows, known.looked_at(lengths, rows), lq, left)
    lk = dims["tokens"] * (cache.page_table.shape[1] if paged else 1)
    offsets, mask = known.positions(lengths, (b, hq, lq, lk))
    operands = Operands(
        q=q4, k=k, v=v, q_offset=offsets, kv_lengths=lengths,
        bias=_read_cache_bias(function, bias, (b, hq, lq, lk), cache, rows, home, q.dtype),
        mask=mask, slopes=read_slopes(function, bias, hq, dtype),
        sinks=read_sinks(function, sinks, hq, q.dtype), seqs=rows, page_table=cache.page_table if paged else None,
        k_scale=cache.k_scale.swapaxes(1, 2) if quantised else None,
        v_scale=cache.v_scale.swapaxes(1, 2) if quantised else None,
        store=None if known.exact else cache._store(),
    )  # fmt: skip
    problem = Problem(
        function, dtype, (b,), hq, hk, lq, lk, d, v.shape[-1],
        options.read_scale(function, scale, d, dtype), options.read_softcap(function, softcap, dtype),
        left, right, operands.mask is not None,
        None if operands.bias is None else bias.shape, operands.slopes is not None, sinks is not None, True, True, (b,),
        _read_splits(function, splits), stored=cache.dtype.name if quantised else None,
        page_size=dims["tokens"] if paged else None,
    )  # fmt: skip
    out_shape = (*q.shape[:-1], v.shape[-1])
    if out is not None:
        inputs = {"q": q, "cache": cache.k, "cache.v": cache.v, "cache.k_scale": operands.k_scale,
                  "cache.v_scale": operands.v_scale, "cache.lengths": cache.lengths, "sinks": sinks,
                  "bias": operands.bias}  # fmt: skip
        arrays.check_output(function, "out", out, out_shape, "the output", q.dtype, **inputs)
    lse_shape = (b, hq) if form == "token" else (b, hq, lq)
    wanted = options.read_flag(function, "return_lse", return_lse)
    return Call(problem, operands, home, q, form, out_shape, lse_shape, wanted, out)


def _read_splits(function: str, splits: Any) -> int | None:
    if splits is None:
        return None
    parts = options.read_integer(function, "splits", splits)
    if parts < 1:
        raise ProblemError(f"{function}: `splits` is {parts}, but the keys are cut into 1 part or more; None chooses")
    return parts


def _read_cache_bias(
    function: str, bias: Any, target: tuple[int, ...], cache: Any, rows: Array | None, home: str, dtype: Any
) -> Array | None:
    """A bias by absolute position in the cache: its last axis is 1, or as long as the longest sequence or longer."""
    if bias is None or isinstance(bias, Alibi):
        return None
    check_bias_array(function, bias, home, dtype)
    longest = cache._lengths.longest(rows)
    keys = bias.shape[-1] if bias.ndim else 1
    if keys != 1 and keys < longest:
        raise ProblemError(
            f"{function}: `bias` has {keys} keys on its last axis, but the longest sequence of `cache` has {longest}"
        )
    keys = target[-1] if keys == 1 else keys
    return match_broadcast(function, "bias", bias, (*target[:-1], keys), "(b, hq, lq, keys)")
