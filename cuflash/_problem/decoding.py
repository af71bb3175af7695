"""One decoding step over a cache, and what may be written into a cache."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from cuflash._bias import Alibi
from cuflash._problem import arrays, options
from cuflash._problem.arrays import Array
from cuflash._problem.attention import Call, Operands, Problem, check_bias_array, heads_first, read_sinks, read_slopes
from cuflash._problem.match import match, match_broadcast, match_exact
from cuflash.errors import CacheFullError, ProblemError


def decode_call(
    function: str, q: Array, cache: Any, *, seqs: Any = None, causal: Any = True, window: Any = None, bias: Any = None,
    sinks: Any = None, softcap: Any = None, scale: Any = None, splits: Any = None, validate: Any = None,
    layout: Any = "bhld", out: Any = None, return_lse: Any = False,
) -> Call:  # fmt: skip
    """Check and normalise `decode`."""
    for name in ("k", "v", "lengths"):
        if not hasattr(cache, name):
            raise TypeError(f"{function}: `cache` must be a KVCache, got {type(cache).__name__}")
    home = arrays.same_library(function, "q", q=q, cache=cache.k)
    arrays.check_optional(function, home, "q", sinks=sinks, out=out)
    dtype = arrays.same_float(function, "cache", **{"cache": cache.k, "cache.v": cache.v, "q": q})
    form = options.read_layout(function, layout)
    if q.ndim not in (3, 4):
        raise ProblemError(
            f"{function}: `q` must have 4 axes, or 3 (b, hq, d) for one token, got {q.ndim}: shape {q.shape}"
        )
    form = "token" if q.ndim == 3 else form
    q4 = heads_first(q, form)
    k, v = cache.k.swapaxes(1, 2), cache.v.swapaxes(1, 2)
    dims = match(function, ("q", q4.shape[1:], ("hq", "lq", "d")), ("cache", k.shape[1:], ("hk", "capacity", "d")))
    b, hq, lq = q4.shape[:3]
    if dims["hk"] == 0 or hq % dims["hk"]:
        raise ProblemError(f"{function}: `cache` has hk={dims['hk']} heads, which does not divide hq={hq} of `q`")
    rows = _read_rows(function, seqs, b, cache.k.shape[0])
    _check_lengths_array(function, cache)
    lengths = cache.lengths if rows is None else cache.lengths[rows]
    if validate is None or options.read_flag(function, "validate", validate):
        _check_lengths(function, lengths, dims["capacity"])

    left, right = options.read_span(function, causal, window, None)
    operands = Operands(
        q=q4, k=k, v=v, q_offset=lengths - lq, kv_lengths=lengths,
        bias=_read_cache_bias(function, bias, (b, hq, lq, dims["capacity"]), lengths, home, q.dtype),
        mask=_hide_before_start(lengths, (b, hq, lq, dims["capacity"])),
        slopes=read_slopes(function, bias, hq), sinks=read_sinks(function, sinks, hq, q.dtype), seqs=rows,
    )  # fmt: skip
    problem = Problem(
        function, dtype, (b,), hq, dims["hk"], lq, dims["capacity"], dims["d"], v.shape[-1],
        options.read_scale(function, scale, dims["d"], dtype), options.read_softcap(function, softcap, dtype),
        left, right, operands.mask is not None,
        None if operands.bias is None else bias.shape, operands.slopes is not None, sinks is not None, True, True, (b,),
        _read_splits(function, splits),
    )  # fmt: skip
    out_shape = (*q.shape[:-1], v.shape[-1])
    if out is not None:
        inputs = {"q": q, "cache": cache.k, "cache.v": cache.v, "cache.lengths": cache.lengths, "sinks": sinks,
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


def _read_rows(function: str, seqs: Any, b: int, batch: int) -> Array | None:
    """Rows of the cache, one for each of the b entries handed in; None where they are simply all rows."""
    if seqs is None:
        if b != batch:
            raise ProblemError(
                f"{function}: got b={b} rows, but the cache has batch={batch}; name the rows with `seqs`"
            )
        return None
    rows = np.asarray(seqs)
    if rows.dtype.kind not in "iu" and rows.size:
        raise TypeError(f"{function}: `seqs` must hold integers, got dtype {rows.dtype}")
    match_exact(function, "seqs", rows.shape, (b,), "(b,)")
    wrong = rows[(rows < 0) | (rows >= batch)] if rows.size else rows
    if wrong.size:
        raise ProblemError(f"{function}: `seqs` names row {int(wrong[0])}, but the cache has rows 0 to {batch - 1}")
    return rows.astype(np.intp)


def _check_lengths_array(function: str, cache: Any) -> None:
    """`lengths` is an attribute that users may write: still integers, one for each row."""
    arrays.library(function, "cache.lengths", cache.lengths)
    if cache.lengths.dtype.kind not in "iu":
        raise TypeError(f"{function}: `cache.lengths` must hold integers, got dtype {cache.lengths.dtype}")
    match_exact(function, "cache.lengths", cache.lengths.shape, cache.k.shape[:1], "(b,) of the cache")


def _check_lengths(function: str, lengths: Array, capacity: int) -> None:
    wrong = lengths[(lengths < 0) | (lengths > capacity)]
    if wrong.size:
        raise ProblemError(
            f"{function}: `cache.lengths` holds {int(wrong[0])}, but must lie in 0..{capacity}, the cache's capacity"
        )


def _hide_before_start(lengths: Array, scores: tuple[int, ...]) -> Array | None:
    """A mask where a sequence is shorter than lq: queries at negative positions see nothing, causal or not."""
    lq = scores[2]
    if lq == 1 or (lengths >= lq).all():
        return None
    positions = np.arange(lq) + (lengths[:, None] - lq)
    return np.broadcast_to((positions >= 0)[:, None, :, None], scores)


def _read_cache_bias(
    function: str, bias: Any, target: tuple[int, ...], lengths: Array, home: str, dtype: Any
) -> Array | None:
    """A bias by absolute position in the cache: its last axis is 1, or as long as the longest sequence or longer."""
    if bias is None or isinstance(bias, Alibi):
        return None
    check_bias_array(function, bias, home, dtype)
    longest = int(lengths.max()) if lengths.size else 0
    keys = bias.shape[-1] if bias.ndim else 1
    if keys != 1 and keys < longest:
        raise ProblemError(
            f"{function}: `bias` has {keys} keys on its last axis, but the longest sequence of `cache` has {longest}"
        )
    keys = target[-1] if keys == 1 else keys
    return match_broadcast(function, "bias", bias, (*target[:-1], keys), "(b, hq, lq, keys)")


class CacheShape(NamedTuple):
    """Checked sizes of a cache to be made."""

    batch: int
    capacity: int
    kv_heads: int
    head_dim: int
    value_dim: int


def cache_shape(function: str, batch: Any, capacity: Any, kv_heads: Any, head_dim: Any, value_dim: Any) -> CacheShape:
    """Sizes of a cache: all integers, none negative, at least one head."""
    value_dim = head_dim if value_dim is None else value_dim
    given = {
        "batch": batch, "capacity": capacity, "kv_heads": kv_heads, "head_dim": head_dim, "value_dim": value_dim
    }  # fmt: skip
    sizes = {name: options.read_integer(function, name, size) for name, size in given.items()}
    for name, size in sizes.items():
        least = 1 if name == "kv_heads" else 0
        if size < least:
            raise ProblemError(f"{function}: `{name}` is {size}, but must be {least} or more")
    return CacheShape(**sizes)


def cache_home(function: str, xp: Any, like: Any) -> str:
    """The array library of a cache: that of `like`, else the module `xp`."""
    if like is not None:
        return arrays.library(function, "like", like)
    if not isinstance(xp, ModuleType):
        raise TypeError(f"{function}: `xp` must be an array library such as numpy, got {xp!r}")
    return xp.__name__


def cache_dtype(function: str, dtype: Any, like: Any) -> Any:
    """The dtype of a cache: given, or that of `like`."""
    if dtype is None and like is None:
        raise TypeError(f"{function}: `dtype` is missing; give it, or an array of that dtype as `like`")
    chosen = np.dtype(like.dtype if dtype is None else dtype)
    if arrays.known_float(chosen) is None:
        raise TypeError(f"{function}: `dtype` is {chosen}, but must be {arrays.FLOATS}")
    return chosen


class Append(NamedTuple):
    """Checked new tokens: where each row of k and v goes, and how many of its tokens are real."""

    k: Array  # (b, hk, l, d)
    v: Array  # (b, hk, l, dv)
    rows: Array | None  # (b,) rows of the cache; None is all, in order
    counts: Array  # (b,) int32


def append_call(cache: Any, k: Array, v: Array, seqs: Any, lengths: Any, layout: Any) -> Append:
    """Check and normalise `KVCache.append`; nothing is said yet about room."""
    function = "KVCache.append"
    home = arrays.same_library(function, "k", k=k, v=v, cache=cache.k)
    arrays.same_float(function, "cache", **{"cache": cache.k, "cache.v": cache.v, "k": k, "v": v})
    form = options.read_layout(function, layout)
    for name, array in (("k", k), ("v", v)):
        if array.ndim != 4:
            raise ProblemError(f"{function}: `{name}` must have 4 axes, got {array.ndim}: shape {array.shape}")
    k, v = heads_first(k, form), heads_first(v, form)
    heads, d, dv = cache.kv_heads, cache.head_dim, cache.value_dim
    for name, array, dim in (("k", k, d), ("v", v, dv)):
        if (array.shape[1], array.shape[3]) != (heads, dim):
            raise ProblemError(
                f"{function}: `{name}` has {array.shape[1]} heads of {array.shape[3]}, "
                f"but the cache holds {heads} heads of {dim} (layout {layout!r})"
            )
    dims = match(function, ("k", k.shape, ("b", "hk", "l", "d")), ("v", v.shape, ("b", "hk", "l", "dv")))
    rows = _read_rows(function, seqs, dims["b"], cache.batch)
    if rows is not None:
        _check_distinct(function, "seqs", rows)
    _check_lengths_array(function, cache)
    _check_lengths(function, cache.lengths, cache.capacity)
    counts: Any = dims["l"]
    if lengths is not None:
        counts = options.read_integers(function, "lengths", lengths, (dims["b"],), home, 0, dims["l"])
    return Append(k, v, rows, np.broadcast_to(np.asarray(counts, np.int32), (dims["b"],)))


def _check_distinct(function: str, name: str, rows: Array) -> None:
    if len(set(rows.tolist())) != len(rows):
        raise ProblemError(f"{function}: `{name}` names a row twice: {rows.tolist()}")


def check_room(cache: Any, needed: int) -> None:
    """The longest sequence after an append must fit."""
    if needed > cache.capacity:
        raise CacheFullError(
            f"KVCache.append: a sequence would have {needed} tokens, but the cache has capacity={cache.capacity}; "
            "truncate it, make it larger, or make it with grow=True"
        )


def truncate_call(cache: Any, seq: Any, length: Any) -> tuple[Array, Array]:
    """Check and normalise `KVCache.truncate`: distinct rows, and a length for each that is no longer than now."""
    function = "KVCache.truncate"
    if seq is None:
        rows = np.arange(cache.batch)
    else:
        several = isinstance(seq, (list, tuple)) or (isinstance(seq, np.ndarray) and seq.ndim > 0)
        given = seq if several else [options.read_integer(function, "seq", seq)]
        rows = np.asarray(given, dtype=None if len(given) else np.intp)
        if rows.dtype.kind not in "iu" or rows.ndim != 1:
            raise TypeError(f"{function}: `seq` must be a row, rows, or None for all, got {seq!r}")
        for row in rows.tolist():
            if not 0 <= row < cache.batch:
                raise ProblemError(f"{function}: `seq` names row {row}, but the cache has rows 0 to {cache.batch - 1}")
    _check_distinct(function, "seq", rows)
    lengths = options.read_integers(function, "length", length, rows.shape, "numpy", 0)
    lengths = np.broadcast_to(lengths, rows.shape)
    for row, now, wanted in zip(rows.tolist(), cache.lengths[rows].tolist(), lengths.tolist()):
        if wanted > now:
            raise ProblemError(f"{function}: `length` is {wanted} for row {row}, but it has only {now} tokens")
    return rows, lengths
