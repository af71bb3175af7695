"""Making a cache, appending to it, and moving the ends of its sequences; `decoding` reads the calls that look at it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from cuflash._problem import arrays, options
from cuflash._problem.arrays import Array
from cuflash._problem.attention import heads_first
from cuflash._problem.match import match, match_exact
from cuflash.errors import CacheFullError, ProblemError

QUANTISED = ("int8", "float8_e4m3fn")
TOKENS_MOST = 1 << 62
_STORED = f"{arrays.FLOATS}, or int8 or float8_e4m3fn"
_APPENDED = ("float16", "bfloat16", "float32")  # what a quantised cache takes, and decodes for


class Store(NamedTuple):
    """The arrays of a cache. A row is a sequence, or a page where there is a page table."""

    k: Array  # (rows, tokens, hk, d)
    v: Array  # (rows, tokens, hk, dv)
    k_scale: Array | None  # (rows, tokens, hk) float32, of a quantised cache
    v_scale: Array | None
    page_table: Array | None  # (sequences, entries) int32
    lengths: Array  # (sequences,) int32
    dtype: Any  # of k and v, which keep float8 as plain bytes on a device
    kept: Any  # what the backend of a device keeps for the cache between calls, else None


class CacheShape(NamedTuple):
    """Checked sizes of a cache to be made; `rows` and `tokens` as in `Store`."""

    rows: int
    tokens: int
    kv_heads: int
    head_dim: int
    value_dim: int


def cache_shape(function: str, sizes: dict[str, Any], value_dim: Any) -> CacheShape:
    """Sizes of a cache by name, in the order of `CacheShape`: integers, and no fewer than a cache can do with."""
    least = {"kv_heads": 1, "page_size": 1}
    given = {**sizes, "value_dim": sizes["head_dim"] if value_dim is None else value_dim}
    read = {name: options.read_integer(function, name, size) for name, size in given.items()}
    for name, size in read.items():
        if size < least.get(name, 0):
            raise ProblemError(f"{function}: `{name}` is {size}, but must be {least.get(name, 0)} or more")
    return CacheShape(*read.values())


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
    if isinstance(dtype, str) and dtype in ("bfloat16", "float8_e4m3fn"):  # NumPy knows them from that import on
        try:
            import_module("ml_dtypes")
        except ImportError:
            raise TypeError(
                f'{function}: `dtype`="{dtype}" needs the package ml_dtypes; install cuflash[bf16]'
            ) from None
    try:
        chosen = np.dtype(like.dtype if dtype is None else dtype)
    except TypeError:
        raise TypeError(f"{function}: `dtype` is {dtype!r}, but must be {_STORED}") from None
    if arrays.known_float(chosen) is None and chosen.name not in QUANTISED:
        raise TypeError(f"{function}: `dtype` is {chosen}, but must be {_STORED}")
    return chosen


def stored_dtype(dtype: Any, home: str) -> Any:
    """The dtype of a cache's arrays: CuPy has no float8, whose codes are kept as bytes there."""
    return np.dtype(np.uint8) if home != "numpy" and dtype.name == "float8_e4m3fn" else dtype


def check_dtype(function: str, cache: Any, first: str, **given: Array) -> str:
    """Arrays that meet a cache have its dtype or, where that is quantised, agree on a float of at most 32 bits.

    Returns the name of their dtype; `first` is one of them.
    """
    if not quantised(cache):
        return arrays.same_float(function, "cache", **{"cache": cache.k, "cache.v": cache.v}, **given)
    name = arrays.same_float(function, first, **given)
    if name not in _APPENDED:
        raise TypeError(
            f"{function}: `{first}` has dtype {name}, but `cache` is quantised ({cache.dtype}) and computes in "
            f"float32; convert it, for example {first}.astype(numpy.float32)"
        )
    return name


def quantised(cache: Any) -> bool:
    """Whether a cache keeps small codes and a scale for each vector."""
    return getattr(cache, "k_scale", None) is not None


def paged(cache: Any) -> bool:
    """Whether a cache keeps its tokens in pages."""
    return getattr(cache, "page_table", None) is not None


def read_rows(function: str, seqs: Any, b: int, cache: Any) -> Array | None:
    """The sequence that each of the b entries handed in belongs to; None where they are all rows of a KVCache."""
    if seqs is None:
        known = cache.seqs if paged(cache) else None
        count = cache.k.shape[0] if known is None else len(known)
        if b != count:
            has = f"batch={count}" if known is None else f"{count} sequence(s)"
            raise ProblemError(f"{function}: got b={b} rows, but the cache has {has}; name the rows with `seqs`")
        return None if known is None else np.array(known, np.intp)
    if hasattr(seqs, "dtype") and (home := arrays.library(function, "seqs", seqs)) != "numpy":
        raise TypeError(f"{function}: `seqs` is a {home} array, but the host must know the rows: name them in a list")
    rows = np.asarray(seqs)
    if rows.dtype.kind not in "iu" and rows.size:
        raise TypeError(f"{function}: `seqs` must hold integers, got dtype {rows.dtype}")
    match_exact(function, "seqs", rows.shape, (b,), "(b,), one for each of the b rows handed in,")
    check_seqs(function, "seqs", rows.tolist(), cache)
    return rows.astype(np.intp)


def check_seqs(function: str, name: str, seqs: Sequence[int], cache: Any) -> None:
    """Each must be a row of a KVCache, or a sequence that a PagedKVCache has."""
    known = set(cache.seqs) if paged(cache) else range(cache.k.shape[0])
    for seq in seqs:
        if seq not in known:
            if paged(cache):
                raise ProblemError(
                    f"{function}: `{name}` names sequence {seq}, which was never added or was freed; "
                    f"the cache has {_listed(cache.seqs)}"
                )
            raise ProblemError(
                f"{function}: `{name}` names row {seq}, but the cache has rows 0 to {cache.k.shape[0] - 1}"
            )


def _listed(seqs: Sequence[int]) -> str:
    """Sequences in words, the first few."""
    few = ", ".join(map(str, seqs[:8]))
    return f"{few}, and {len(seqs) - 8} more" if len(seqs) > 8 else few or "none"


def check_distinct(function: str, name: str, rows: Sequence[int]) -> None:
    """No row may be named twice."""
    if len(set(rows)) != len(rows):
        raise ProblemError(f"{function}: `{name}` names a row twice: {list(rows)}")


def check_lengths_array(function: str, cache: Any) -> None:
    """`lengths` is an attribute that users may write: still integers, one for each row."""
    arrays.library(function, "cache.lengths", cache.lengths)
    if cache.lengths.dtype.kind not in "iu":
        raise TypeError(f"{function}: `cache.lengths` must hold integers, got dtype {cache.lengths.dtype}")
    rows = cache.page_table if paged(cache) else cache.k
    match_exact(function, "cache.lengths", cache.lengths.shape, rows.shape[:1], "(b,) of the cache")


def check_lengths(function: str, lengths: Array, room: int | Array) -> None:
    """Lengths, as users may have written them, lie within what their rows have room for."""
    wrong = (lengths < 0) | (lengths > room)
    if wrong.any():
        where = int(wrong.argmax())
        most = room if isinstance(room, int) else int(room[where])
        said = "the cache's capacity" if isinstance(room, int) else "what its pages have room for: reserve first"
        raise ProblemError(
            f"{function}: `cache.lengths` holds {int(lengths[where])}, but must lie in 0..{most}, {said}"
        )


def check_visible(function: str, cache: Any, rows: Array | None, lengths: Array, lq: int, left: int | None) -> None:
    """All keys that the lq newest queries of some sequences can see are in the cache, `left` before each at most."""
    page_size = cache.k.shape[1]
    if rows is None or not paged(cache):
        check_lengths(function, lengths, page_size)
        return
    table = cache._pages.table[rows]
    stop = (lengths + (page_size - 1)) // page_size  # entries of the table
    entries = np.arange(min(table.shape[1], stop.max(initial=0)))
    there = (table[:, : len(entries)] >= 0) | (entries >= stop[:, None])
    if left is not None:
        there |= entries < (lengths[:, None] - (lq + min(left, 2**30))) // page_size
    if (lq and not there.all()) or lengths.min(initial=0) < 0 or stop.max(initial=0) > table.shape[1]:
        wrong = (lengths < 0) | (stop > table.shape[1]) | ~there.all(axis=1)
        row = int(wrong.argmax())
        _refuse(function, int(rows[row]), int(lengths[row]), lq, np.flatnonzero(table[row] >= 0), page_size)


def _refuse(function: str, seq: int, length: int, lq: int, held: Array, page_size: int) -> None:
    """Say which keys of a sequence are missing, given the entries of its table row that have a page."""
    room = (int(held[-1]) + 1) * page_size if held.size else 0
    if not 0 <= length <= room:
        raise ProblemError(
            f"{function}: `cache.lengths` holds {length} for sequence {seq}, but must lie in 0..{room}, the end of its "
            "last page; reserve pages before lengths are written, and trim none that will be looked at"
        )
    gaps = np.flatnonzero(np.diff(held) > 1)
    present = int(held[gaps[-1] + 1] if gaps.size else held[0]) * page_size
    widest = length - lq - present
    way_out = f"window=({widest}, 0) sees no more than those" if widest >= 0 else f"they are too few for lq={lq}"
    raise ProblemError(
        f"{function}: `cache` has only the keys from {present} on of sequence {seq}, as trim left them; {way_out}"
    )


class Append(NamedTuple):
    """Checked new tokens: where each row of k and v goes, and how many of its tokens are real."""

    k: Array  # (b, hk, l, d)
    v: Array  # (b, hk, l, dv)
    rows: Array  # (b,) rows of the cache, each once
    counts: Array  # (b,) int32; on a device integers of any size where they came so, of which the kernel takes 0..l
    whole: bool  # all counts are l
    most: Array  # (b,) int32: the counts, or what the host knows of them
    dtype: str  # name of that of k and v
    function: str


def append_call(function: str, cache: Any, k: Array, v: Array, seqs: Any, lengths: Any, layout: Any) -> Append:
    """Check and normalise the append of a cache; nothing is said yet about room."""
    home = arrays.same_library(function, "k", k=k, v=v, cache=cache.k)
    dtype = check_dtype(function, cache, "k", k=k, v=v)
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
    b, l = dims["b"], dims["l"]
    rows = read_rows(function, seqs, b, cache)
    if rows is None:
        rows = np.arange(b)
    elif seqs is not None:
        check_distinct(function, "seqs", rows.tolist())
    check_lengths_array(function, cache)
    if lengths is None:
        counts = np.full(b, l, np.int32)
        return Append(k, v, rows, counts, True, counts, dtype, function)
    known = "numpy" if type(lengths) is np.ndarray else home  # like a list, on whatever device the cache lies
    given = options.read_integers(function, "lengths", lengths, (b,), known, 0, l)
    if home != "numpy" and type(given) not in (int, np.ndarray):
        return Append(k, v, rows, given, False, np.full(b, l, np.int32), dtype, function)
    counts = np.broadcast_to(np.array(given, np.int32), (b,))  # a copy: it may be kept longer than the call
    return Append(k, v, rows, counts, bool((counts == l).all()), counts, dtype, function)


def check_room(function: str, needed: int, capacity: int, exact: bool) -> None:
    """The longest sequence of a KVCache after an append must fit; `exact` as in `Lengths`."""
    if needed > capacity:
        raise CacheFullError(
            f"{function}: a sequence {_would(exact)} have {needed} tokens, but the cache has capacity={capacity}; "
            f"{_sync(exact)}truncate it, make it larger, or make it with grow=True"
        )


def check_pages(function: str, taken: int, free: int, pages: int, exact: bool) -> None:
    """The pages that an append or a reserve takes must be free; `exact` as in `Lengths`."""
    if taken > free:
        raise CacheFullError(
            f"{function}: takes more pages than the {free} that are free of the cache's {pages}; "
            f"{_sync(exact)}free or trim a sequence, or make the cache with more"
        )


def _would(exact: bool) -> str:
    return "would" if exact else "could"


def _sync(exact: bool) -> str:
    return "" if exact else "sync() if the host may take it for longer than it is, "


def check_dropped(function: str, dropped: Array | None) -> None:
    """All tokens that kernels were told to append must have found room."""
    if dropped is not None and dropped.any():
        row = int(dropped.argmax())
        raise CacheFullError(
            f"{function}: {int(dropped[row])} token(s) of row {row} were not appended, as it had no room of its own "
            "for them; reserve before graphs are replayed or lengths are written, and after a fork"
        )


def check_table(function: str, fault: str | None) -> None:
    """The page table must be as the cache has written it."""
    if fault:
        raise ProblemError(
            f"{function}: `cache.page_table` was changed from outside: {fault}; only the cache writes it"
        )


def read_seq(function: str, cache: Any, seq: Any) -> int:
    """One sequence of a PagedKVCache."""
    read = options.read_integer(function, "seq", seq)
    check_seqs(function, "seq", [read], cache)
    return read


def read_tokens(function: str, name: str, value: Any) -> int:
    """A number of tokens, in 64 bits: one that has no place there is more than any cache holds anyway."""
    tokens = options.read_integer(function, name, value)
    if tokens < 0:
        raise ProblemError(f"{function}: `{name}` is {tokens}, but must be 0 or more")
    return min(tokens, TOKENS_MOST)


def truncate_call(function: str, cache: Any, seq: Any, length: Any) -> tuple[Array, Array]:
    """Check and normalise the truncate of a cache: distinct rows, and a length for each that is no longer than now."""
    if seq is None:
        rows = np.array(cache.seqs, np.intp) if paged(cache) else np.arange(cache.batch)
    else:
        several = isinstance(seq, (list, tuple)) or (isinstance(seq, np.ndarray) and seq.ndim > 0)
        given = seq if several else [options.read_integer(function, "seq", seq)]
        rows = np.asarray(given, dtype=None if len(given) else np.intp)
        if rows.dtype.kind not in "iu" or rows.ndim != 1:
            raise TypeError(f"{function}: `seq` must be a row, rows, or None for all, got {seq!r}")
        check_seqs(function, "seq", rows.tolist(), cache)
    check_distinct(function, "seq", rows.tolist())
    lengths = options.read_integers(function, "length", length, rows.shape, "numpy", 0)
    lengths = np.broadcast_to(lengths, rows.shape)
    least, _ = cache._lengths.bounds(rows)
    for row, now, wanted in zip(rows.tolist(), least.tolist(), lengths.tolist()):
        if wanted > now:
            unsure = "" if cache._lengths.exact else " for all that the host knows; sync() makes it look"
            raise ProblemError(f"{function}: `length` is {wanted} for row {row}, but it has only {now} tokens{unsure}")
        if paged(cache):
            _check_last_page(function, cache, row, wanted)
    return rows, lengths


def _check_last_page(function: str, cache: Any, seq: int, length: int) -> None:
    """The page that the next token goes to must be there if it is begun: trim may have given it away."""
    page_size = cache.k.shape[1]
    if length % page_size and cache._pages.table[seq, length // page_size] < 0:
        raise ProblemError(
            f"{function}: `length` is {length} for row {seq}, but trim has freed the page that token {length - 1} "
            f"was in; a multiple of page_size={page_size} will do"
        )
