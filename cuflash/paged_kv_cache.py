"""The paged key/value cache: sequences of any length take pages as they grow, share them, and give them back."""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash._dispatch import backend
from cuflash._problem import caches
from cuflash._storage import Storage, keep_pages

__all__ = ["PagedKVCache"]


class PagedKVCache(Storage):
    """Keys and values of any number of sequences, in pages of `page_size` tokens that are taken as they are needed.

    A sequence takes a page when it grows into it, so one pool serves short sequences and long ones. Forked sequences
    share the pages of what they have in common, and one that writes into a shared page gets a copy of it first.

    Parameters
    ----------
    pages, page_size : int
        Pages of the pool, and tokens in each.
    kv_heads, head_dim : int
        Key/value heads and their features.
    value_dim : int, optional
        Features of a value, by default `head_dim`.
    dtype : dtype, optional
        As in `KVCache`, quantised ones among them. Required unless `like` gives it.
    xp : module
        The array library, `numpy` or `cupy`.
    like : array, optional
        Take library and dtype from this array.

    Attributes
    ----------
    k : array, shape (pages, page_size, hk, d)
    v : array, shape (pages, page_size, hk, dv)
        Plain arrays. What lies in free pages and behind a sequence's length is never read.
    k_scale, v_scale : float32 arrays, shape (pages, page_size, hk), or None
        Of a quantised cache: what each vector of `k` and `v` is to be multiplied by.
    lengths : int32 array, shape (rows,)
        Tokens of each sequence: ``lengths[seq]``.
    page_table : int32 array, shape (rows, entries)
        Token i of a sequence is in page ``page_table[seq, i // page_size]``, at ``i % page_size``; -1 is no page.

    Raises
    ------
    TypeError, ProblemError
        For sizes that are no integers or too small, or an unsupported dtype.

    Notes
    -----
    `lengths` and `page_table` are new arrays whenever `add`, `fork` or a longer sequence needs more of them. On a
    device they are made for 256 sequences of 32768 tokens, unless there are fewer pages, and double from there; what
    would make them anew when a captured graph reads them is a CacheFullError. There the host knows bounds of the
    lengths, and nothing but `sync` and `check` waits: see the guide's page on caches.

    References
    ----------
    Kwon et al., "Efficient memory management for large language model serving with PagedAttention", 2023.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> cache = cuflash.PagedKVCache(pages=6, page_size=4, kv_heads=2, head_dim=8, dtype=np.float32)
    >>> first, second = cache.add(), cache.add()
    >>> k = v = np.ones((2, 2, 5, 8), dtype=np.float32)
    >>> cache.append(k, v, lengths=[5, 1])
    >>> third = cache.fork(first)
    >>> cache.append(k[:1, :, :1], v[:1, :, :1], seqs=[third])  # into a page that is shared: it is copied
    >>> cache.page_table[[first, second, third], :2]
    array([[ 0,  1],
           [ 2, -1],
           [ 0,  3]], dtype=int32)
    >>> q = np.ones((3, 4, 8), dtype=np.float32)  # one new token of each sequence, four query heads
    >>> cuflash.decode(q, cache).shape
    (3, 4, 8)
    >>> cache
    PagedKVCache(pages=6, page_size=4, kv_heads=2, head_dim=8, dtype=float32, 3 sequences, 2 pages free, 3072 bytes)
    """

    def __init__(
        self, pages: int, page_size: int, kv_heads: int, head_dim: int, *, value_dim: int | None = None,
        dtype: Any = None, xp: Any = np, like: Any = None,
    ) -> None:  # fmt: skip
        sizes = {"pages": pages, "page_size": page_size, "kv_heads": kv_heads, "head_dim": head_dim}
        shape = caches.cache_shape("PagedKVCache", sizes, value_dim)
        super().__init__(shape, dtype, xp, like)
        self._pages, self._lengths = keep_pages(self._home, shape, self.dtype)

    @property
    def pages(self) -> int:
        """Pages of the pool."""
        return int(self.k.shape[0])

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return int(self.k.shape[1])

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return self._pages.free_pages

    @property
    def seqs(self) -> tuple[int, ...]:
        """The sequences, in the order in which they were added; what ``seqs=None`` means."""
        return tuple(self._pages.live)

    @property
    def page_table(self) -> Any:
        """int32 array, (rows, entries): the pages of each sequence in the order of its tokens; -1 is no page."""
        return self._pages.page_table

    def __repr__(self) -> str:
        return (
            f"PagedKVCache(pages={self.pages}, page_size={self.page_size}, kv_heads={self.kv_heads}, "
            f"head_dim={self.head_dim}, dtype={self.dtype}, {len(self.seqs)} sequences, {self.free_pages} pages free, "
            f"{self.nbytes} bytes)"
        )

    def add(self) -> int:
        """Begin a sequence without tokens. It takes no page yet.

        Returns
        -------
        int
            What names the sequence: its row of `lengths` and `page_table`.

        Examples
        --------
        >>> import cuflash
        >>> cache = cuflash.PagedKVCache(4, 16, kv_heads=1, head_dim=8, dtype="float32")
        >>> cache.add(), cache.add()
        (0, 1)
        """
        self._lengths.check_operation("PagedKVCache.add")
        seq = self._pages.add()
        self._lengths.grow(self._pages.rows)
        self._lengths.assign(seq, 0)
        return seq

    def fork(self, seq: int) -> int:
        """Begin a sequence with all tokens of another, which stays as it is: beam search, a shared prompt.

        The pages are shared until one of the two is appended to in a page that is not full: that one then gets a copy
        of the page, which takes a free page. On a device reserved pages are shared, too, since tokens may lie there
        that the host does not know of: reserve again before a graph that appends is replayed.

        Parameters
        ----------
        seq : int
            The sequence to continue in two ways.

        Returns
        -------
        int
            The new sequence.

        Raises
        ------
        TypeError, ProblemError
            For what is no sequence of this cache.

        Examples
        --------
        >>> import numpy as np
        >>> import cuflash
        >>> cache = cuflash.PagedKVCache(4, 16, kv_heads=1, head_dim=8, dtype="float32")
        >>> seq = cache.add()
        >>> cache.append(*np.zeros((2, 1, 1, 20, 8), np.float32))
        >>> cache.lengths[cache.fork(seq)], cache.free_pages
        (np.int32(20), 2)
        """
        function = "PagedKVCache.fork"
        self._lengths.check_operation(function)
        parent = caches.read_seq(function, self, seq)
        self._bounds(function, [parent])
        tokens = self._lengths.may_reach(parent, self._pages.held.item(parent) * self.page_size)
        child = self._pages.fork(parent, tokens)
        self._lengths.grow(self._pages.rows)
        self._lengths.copy(parent, child)
        return child

    def free(self, seq: int) -> None:
        """End a sequence: pages that no other shares are free, and its number may be given again.

        Parameters
        ----------
        seq : int

        Raises
        ------
        TypeError, ProblemError
            For what is no sequence of this cache.

        Examples
        --------
        >>> import cuflash
        >>> cache = cuflash.PagedKVCache(4, 16, kv_heads=1, head_dim=8, dtype="float32")
        >>> cache.free(cache.add())
        >>> cache.seqs
        ()
        """
        function = "PagedKVCache.free"
        self._lengths.check_operation(function)
        seq = caches.read_seq(function, self, seq)
        self._pages.free(seq)
        self._lengths.assign(seq, 0)

    def append(self, k: Any, v: Any, /, *, seqs: Any = None, lengths: Any = None, layout: str = "bhld") -> None:
        """Put new tokens behind those that each sequence already has, in new pages where the last is full.

        Parameters
        ----------
        k : array, shape (b, hk, l, d)
            New keys, of the cache's dtype, or float16, bfloat16 or float32 where it is quantised; (b, l, hk, d) with
            ``layout="blhd"``.
        v : array, shape (b, hk, l, dv)
            New values.
        seqs : integers, shape (b,), optional
            Row i of `k` goes to sequence ``seqs[i]``; each once. By default all, in the order they were added.
        lengths : int or integers, shape (b,), optional
            How many of the l tokens are real, from the first; by default all. Integers on the device are left to the
            kernel, which takes 0 to l of them; pages are then taken for l.
        layout : {"bhld", "blhd"}

        Raises
        ------
        CacheFullError
            If too few pages are free. Nothing is written or taken then.
        TypeError, ProblemError
            For arrays that do not fit the cache, or sequences that it does not have.

        Examples
        --------
        >>> import numpy as np
        >>> import cuflash
        >>> cache = cuflash.PagedKVCache(4, 2, kv_heads=1, head_dim=2, dtype=np.float64)
        >>> seqs = [cache.add(), cache.add()]
        >>> new = np.ones((2, 1, 3, 2))
        >>> cache.append(new, new, lengths=[3, 1])
        >>> cache.lengths[seqs], cache.free_pages
        (array([3, 1], dtype=int32), 1)
        """
        self._append("PagedKVCache.append", k, v, seqs, lengths, layout)

    def _bounds(self, function: str, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """At least and at most so many tokens have these sequences, and they have pages for those."""
        bounds = self._lengths.bounds(rows)
        if self._lengths.exact:
            caches.check_lengths(function, bounds[1], self._pages.held[rows] * self.page_size)
        return bounds

    def _make_room(self, function: str, rows: Any, tokens: Any) -> None:
        """Give sequences pages of their own for so many more tokens; all of them, or nothing changes."""
        least, most = self._bounds(function, rows)
        most = np.add(most, tokens, dtype=np.int64)
        if self._pages.owned(rows, least, most):
            return
        seqs, starts, stops = (np.asarray(each).tolist() for each in (rows, least, most))
        missing = self._pages.missing(zip(seqs, starts, stops))
        if missing:
            self._lengths.check_operation(function)
            caches.check_pages(function, len(missing), self.free_pages, self.pages, self._lengths.exact)
            if copies := self._pages.take(missing):
                backend(function, self._home).copy_pages(self._store(), *zip(*copies))
        self._pages.grant(seqs, starts, stops)

    def reserve(self, seq: int, tokens: int) -> None:
        """Take the pages that `tokens` more tokens of a sequence need, so that appending them cannot fail.

        That holds until the sequence is truncated, which frees what was reserved too, or forked, after which it shares
        its last page. On a device replayed graphs, and lengths written by hand, go no further than what is reserved.

        Parameters
        ----------
        seq : int
        tokens : int
            Tokens beyond the present length.

        Raises
        ------
        CacheFullError
            If too few pages are free. None is taken then.
        TypeError, ProblemError
            For no sequence of this cache, or a negative number.

        Examples
        --------
        >>> import cuflash
        >>> cache = cuflash.PagedKVCache(4, 16, kv_heads=1, head_dim=8, dtype="float32")
        >>> seq = cache.add()
        >>> cache.reserve(seq, 40)
        >>> cache.free_pages
        1
        """
        function = "PagedKVCache.reserve"
        self._lengths.check_operation(function)
        seq, tokens = caches.read_seq(function, self, seq), caches.read_tokens(function, "tokens", tokens)
        self._make_room(function, [seq], tokens)

    def truncate(self, seq: Any, length: Any) -> None:
        """Forget the tokens of some sequences from position `length` on, and free the pages behind.

        Parameters
        ----------
        seq : int, integers or None
            A sequence, several, or None for all.
        length : int or integers
            Tokens to keep; never more than there are, nor, on a device, than the host knows of.

        Raises
        ------
        TypeError, ProblemError
            For sequences that are not there, a length beyond the present one, or one that ends in a page which `trim`
            has freed. Nothing is changed then.

        Examples
        --------
        >>> import numpy as np
        >>> import cuflash
        >>> cache = cuflash.PagedKVCache(4, 2, kv_heads=1, head_dim=2, dtype=np.float64)
        >>> seq = cache.add()
        >>> cache.append(np.ones((1, 1, 7, 2)), np.ones((1, 1, 7, 2)))
        >>> cache.truncate(seq, 3)
        >>> cache.lengths[seq], cache.free_pages
        (np.int32(3), 2)
        """
        function = "PagedKVCache.truncate"
        self._lengths.check_operation(function)
        self._bounds(function, list(self.seqs))
        rows, kept = caches.truncate_call(function, self, seq, length)
        for row, tokens in zip(rows.tolist(), kept.tolist()):
            self._pages.truncate(row, tokens)
        self._lengths.assign(rows, kept)

    def trim(self, seq: int, keep_first: int, keep_last: int) -> None:
        """Free the pages of a sequence that lie wholly between its first `keep_first` and its last `keep_last` tokens.

        Neither positions nor the length change; the keys and values in those pages are gone. So from then on `decode`
        needs a window that does not reach them: with ``window=(left, 0)`` and lq new tokens, keep the last
        ``left + lq`` or more. A `decode` that would look at a freed page is a ProblemError.

        Parameters
        ----------
        seq : int
        keep_first, keep_last : int
            Tokens to keep at either end, 0 or more.

        Raises
        ------
        TypeError, ProblemError
            For no sequence of this cache, or a negative number.

        Notes
        -----
        The first tokens are for what looks at them beside the window, as StreamingLLM does: fork the sequence, truncate
        the fork to `keep_first` tokens, whose pages it shares, and merge what decoding over each of the two gives.

        References
        ----------
        Xiao et al., "Efficient streaming language models with attention sinks", 2023.

        Examples
        --------
        >>> import numpy as np
        >>> import cuflash
        >>> cache = cuflash.PagedKVCache(8, 4, kv_heads=1, head_dim=2, dtype=np.float64)
        >>> seq = cache.add()
        >>> cache.append(np.ones((1, 1, 30, 2)), np.ones((1, 1, 30, 2)))
        >>> cache.trim(seq, 4, 9)
        >>> cache.page_table[seq], cache.free_pages
        (array([ 0, -1, -1, -1, -1,  5,  6,  7], dtype=int32), 4)
        >>> cuflash.decode(np.ones((1, 1, 2)), cache, window=(8, 0))
        array([[[1., 1.]]])
        """
        function = "PagedKVCache.trim"
        self._lengths.check_operation(function)
        seq = caches.read_seq(function, self, seq)
        first = caches.read_tokens(function, "keep_first", keep_first)
        last = caches.read_tokens(function, "keep_last", keep_last)
        least, _ = self._bounds(function, [seq])
        self._pages.trim(seq, first, int(least[0]) - last)

    def _read_lengths(self, function: str) -> np.ndarray:
        caches.check_lengths_array(function, self)
        lengths, rows = self._lengths.read(), list(self.seqs)
        caches.check_lengths(function, lengths[rows], self._pages.held[rows] * self.page_size)
        return lengths

    def _find_fault(self) -> str | None:
        return self._pages.find_fault()
