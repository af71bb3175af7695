"""What both caches are made of: arrays of keys and values, and of scales where they are quantised."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from operator import is_not
from typing import Any

import numpy as np

from cuflash._dispatch import backend, find_prepared
from cuflash._lengths import Lengths
from cuflash._pages import Pages
from cuflash._problem import caches


class Storage:
    """Keys and values of tokens, by row (a sequence or a page) and place in the row."""

    k: Any  # (rows, tokens, hk, d)
    v: Any  # (rows, tokens, hk, dv)
    k_scale: Any  # (rows, tokens, hk) float32 of a quantised cache, else None
    v_scale: Any
    page_table: Any = None
    _lengths: Lengths

    def __init__(self, shape: caches.CacheShape, dtype: Any, xp: Any, like: Any) -> None:
        name = type(self).__name__
        self._home = caches.cache_home(name, xp, like)
        zeros = backend(name, self._home).zeros
        self._dtype = caches.cache_dtype(name, dtype, like)
        stored = caches.stored_dtype(self._dtype, self._home)
        places = shape.rows, shape.tokens, shape.kv_heads
        self.k, self.v = (zeros((*places, dim), stored) for dim in (shape.head_dim, shape.value_dim))
        quantised = self._dtype.name in caches.QUANTISED
        self.k_scale, self.v_scale = (zeros(places, np.float32) if quantised else None for _ in "kv")
        self._calls: dict[Any, Any] = {}  # what `_prepared` returns
        self._seen: tuple[Any, ...] = ()  # the arrays that these know

    @property
    def lengths(self) -> Any:
        """int32 array, (b,): tokens of each sequence."""
        return self._lengths.array

    @lengths.setter
    def lengths(self, array: Any) -> None:
        self._lengths.replace(array)

    @property
    def kv_heads(self) -> int:
        """Key/value heads."""
        return int(self.k.shape[2])

    @property
    def head_dim(self) -> int:
        """Features of a key."""
        return int(self.k.shape[3])

    @property
    def value_dim(self) -> int:
        """Features of a value."""
        return int(self.v.shape[3])

    @property
    def dtype(self) -> Any:
        """dtype of keys and values as they are stored."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes of `k` and `v` together, and of their scales."""
        return sum(int(x.nbytes) for x in (self.k, self.v, self.k_scale, self.v_scale) if x is not None)

    def _store(self) -> caches.Store:
        known = self._lengths
        return caches.Store(
            self.k, self.v, self.k_scale, self.v_scale, self.page_table, known.array, self._dtype, known.kept
        )

    def _prepared(self) -> tuple[dict[Any, Any], tuple[int, ...]] | None:
        """Calls that are prepared for the arrays as they are, and numbers that they depend on, too; on a device."""
        if self._lengths.exact:
            return None
        pages = self._lengths.kept.pages
        return self._known_calls(), () if pages is None else (pages.changes, pages.reach)

    def _known_calls(self) -> dict[Any, Any]:
        """Those that know the arrays as they are: none any more where an array has taken the place of another.

        What a backend keeps beside them gives way together with one of these, or stays as long as it is pointed to.
        """
        now = (self.k, self.v, self.k_scale, self.v_scale, self.page_table, self.lengths)
        if not self._seen or any(map(is_not, now, self._seen)):
            self._seen, self._calls = now, {}
        return self._calls

    def _append(self, function: str, k: Any, v: Any, seqs: Any, lengths: Any, layout: Any) -> None:
        """Put new tokens behind those that sequences have; on a device a call that is known is not checked again."""
        read = partial(caches.append_call, function, self, k, v, seqs, lengths, layout)
        found = find_prepared(_put, (k, v, self, seqs, lengths, layout, function), {})
        new = read() if found is None else found.value()
        known = self._calls
        self._make_room(function, new.rows, new.most)
        if found is not None and self._known_calls() is known:
            found.run()
        else:  # not known, or to find room the cache has taken other arrays
            backend(function, self._home).append(new if found is None else read(), self._store())
        self._lengths.appended(new)

    def _make_room(self, function: str, rows: Any, tokens: Any) -> None:
        """Have room for so many more tokens of some sequences, or raise CacheFullError."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_calls": {}, "_seen": ()}

    def __copy__(self) -> Any:
        """A cache of its own: two caches that shared arrays would disagree about lengths after an append."""
        return deepcopy(self)

    def sync(self) -> None:
        """Make what the host knows of lengths exact. In the host's memory it always is, and nothing is done.

        Of lengths on a device the host keeps bounds, which are exact until `append` is given `lengths` that lie on the
        device, too. A replayed graph and lengths written by hand go past the host altogether: call this after them,
        before the host changes anything. It waits for the device.

        Raises
        ------
        ProblemError
            For a length outside what its sequence has room for, or while a graph is captured.

        Examples
        --------
        >>> import cuflash
        >>> cuflash.KVCache(1, 8, kv_heads=1, head_dim=4, dtype="float32").sync()
        """
        if not self._lengths.exact:
            function = f"{type(self).__name__}.sync"
            self._lengths.check_operation(function)
            self._lengths.settle(self._read_lengths(function))

    def check(self) -> None:
        """Look whether `lengths` and `page_table`, if written by hand, are sound, and whether all tokens found room.

        Where they lie on a device, this waits for it.

        Raises
        ------
        ProblemError
            For a length beyond the capacity, or beyond the pages of its sequence; or a table that lists other pages
            than were taken.
        CacheFullError
            If kernels dropped tokens that went beyond the capacity, or for which a sequence had no page of its own, as
            replayed graphs and lengths written by hand can make them. Each is told once.

        Examples
        --------
        >>> import cuflash
        >>> cache = cuflash.KVCache(2, 4, kv_heads=1, head_dim=2, dtype="float32")
        >>> cache.lengths[:] = 3
        >>> cache.check()
        """
        function = f"{type(self).__name__}.check"
        self._lengths.check_operation(function)
        self._read_lengths(function)
        caches.check_table(function, self._find_fault())
        caches.check_dropped(function, self._lengths.dropped())

    def _read_lengths(self, function: str) -> np.ndarray:
        """The lengths themselves, found sound."""
        raise NotImplementedError

    def _find_fault(self) -> str | None:
        """What is wrong with the page table, if there is one."""
        return None


def _put(k: Any, v: Any, cache: Storage, seqs: Any, lengths: Any, layout: Any, function: str) -> caches.Append:
    """What an append checks and launches where there is room."""
    new = caches.append_call(function, cache, k, v, seqs, lengths, layout)
    backend(function, cache._home).append(new, cache._store())
    return new


def keep_lengths(home: str, shape: caches.CacheShape, dtype: Any) -> Lengths:
    """What the host knows of sequences that are rows of a cache."""
    if home == "numpy":
        return Lengths(shape.rows)
    from cuflash._device_cache import BoundedLengths

    return BoundedLengths(home, shape.rows, shape, dtype)


def keep_pages(home: str, shape: caches.CacheShape, dtype: Any) -> tuple[Pages, Lengths]:
    """What the host knows of sequences in pages: who holds which, and lengths."""
    if home == "numpy":
        pages = Pages(shape.rows, shape.tokens)
        return pages, Lengths(pages.rows)
    from cuflash._device_cache import BoundedLengths, MirroredPages

    lengths = BoundedLengths(home, MirroredPages.FIRST_ROWS, shape, dtype)
    return MirroredPages(home, shape.rows, shape.tokens, lengths.kept), lengths
