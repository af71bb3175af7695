"""The contiguous key/value cache that `decode` reads: plain arrays and a length for each sequence."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module
from typing import Any

import numpy as np

from cuflash._dispatch import backend
from cuflash._problem import decoding

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of `batch` sequences, each with room for `capacity` tokens.

    Parameters
    ----------
    batch, capacity, kv_heads, head_dim : int
        Sequences, tokens of each, key/value heads and their features.
    value_dim : int, optional
        Features of a value, by default `head_dim`.
    dtype : dtype, optional
        float16, bfloat16, float32 or float64. Required unless `like` gives it.
    grow : bool
        Whether an append that does not fit enlarges the cache, to at least twice its capacity. `k` and `v` are then
        new arrays.
    xp : module
        The array library, `numpy`.
    like : array, optional
        Take library and dtype from this array.

    Attributes
    ----------
    k : array, shape (b, capacity, hk, d)
    v : array, shape (b, capacity, hk, dv)
        Plain arrays. Whatever lies behind a sequence's length is never read.
    lengths : int32 array, shape (b,)
        Tokens of each sequence.

    Raises
    ------
    TypeError, ProblemError
        For sizes that are no integers or negative, or an unsupported dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> cache = cuflash.KVCache(batch=1, capacity=8, kv_heads=2, head_dim=4, dtype=np.float32)
    >>> k = v = np.ones((1, 2, 3, 4), dtype=np.float32)
    >>> cache.append(k, v)
    >>> cache.lengths
    array([3], dtype=int32)
    >>> q = np.ones((1, 4, 4), dtype=np.float32)  # one new token, four query heads
    >>> cuflash.decode(q, cache).shape
    (1, 4, 4)
    >>> cache.truncate(0, 1)
    >>> cache
    KVCache(batch=1, capacity=8, kv_heads=2, head_dim=4, dtype=float32, 512 bytes)
    """

    def __init__(
        self, batch: int, capacity: int, kv_heads: int, head_dim: int, *, value_dim: int | None = None,
        dtype: Any = None, grow: bool = False, xp: Any = np, like: Any = None,
    ) -> None:  # fmt: skip
        shape = decoding.cache_shape("KVCache", batch, capacity, kv_heads, head_dim, value_dim)
        self.grow = decoding.options.read_flag("KVCache", "grow", grow)
        self._home = decoding.cache_home("KVCache", xp, like)
        backend("KVCache", self._home)
        library = import_module(self._home)
        dtype = decoding.cache_dtype("KVCache", dtype, like)
        self.k = library.zeros((shape.batch, shape.capacity, shape.kv_heads, shape.head_dim), dtype)
        self.v = library.zeros((shape.batch, shape.capacity, shape.kv_heads, shape.value_dim), dtype)
        self.lengths = library.zeros(shape.batch, library.int32)

    @property
    def batch(self) -> int:
        """Sequences."""
        return int(self.k.shape[0])

    @property
    def capacity(self) -> int:
        """Tokens that each sequence has room for."""
        return int(self.k.shape[1])

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
        """dtype of keys and values."""
        return self.k.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of `k` and `v` together."""
        return int(self.k.nbytes + self.v.nbytes)

    def __repr__(self) -> str:
        return (
            f"KVCache(batch={self.batch}, capacity={self.capacity}, kv_heads={self.kv_heads}, "
            f"head_dim={self.head_dim}, dtype={self.dtype}, {self.nbytes} bytes)"
        )

    def __copy__(self) -> KVCache:
        """A cache of its own: two caches that shared arrays would disagree about lengths after an append."""
        return deepcopy(self)

    def append(self, k: Any, v: Any, /, *, seqs: Any = None, lengths: Any = None, layout: str = "bhld") -> None:
        """Put new tokens behind those that each sequence already has.

        Parameters
        ----------
        k : array, shape (b, hk, l, d)
            New keys, of the cache's dtype; (b, l, hk, d) with ``layout="blhd"``.
        v : array, shape (b, hk, l, dv)
            New values.
        seqs : integers, shape (b,), optional
            Row i of `k` goes to row ``seqs[i]`` of the cache; each row once. By default all rows, in order.
        lengths : int or integers, shape (b,), optional
            How many of the l tokens are real, from the first; by default all.
        layout : {"bhld", "blhd"}

        Raises
        ------
        CacheFullError
            If a sequence would outgrow the capacity and the cache may not grow. Nothing is written then.
        TypeError, ProblemError
            For arrays that do not fit the cache.

        Examples
        --------
        >>> import numpy as np
        >>> import cuflash
        >>> cache = cuflash.KVCache(2, 4, kv_heads=1, head_dim=2, dtype=np.float64)
        >>> new = np.ones((2, 1, 3, 2))
        >>> cache.append(new, new, lengths=[3, 1])
        >>> cache.lengths
        array([3, 1], dtype=int32)
        """
        new = decoding.append_call(self, k, v, seqs, lengths, layout)
        starts = self.lengths if new.rows is None else self.lengths[new.rows]
        needed = int((starts + new.counts).max(initial=0))
        if self.grow and needed > self.capacity:
            self._enlarge(max(needed, 2 * self.capacity))
        decoding.check_room(self, needed)
        backend("KVCache.append", self._home).append(new, self.k, self.v, starts)
        if new.rows is None:
            self.lengths += new.counts
        else:
            self.lengths[new.rows] += new.counts

    def _enlarge(self, capacity: int) -> None:
        old, library = (self.k, self.v), import_module(self._home)
        k, v = (library.zeros((array.shape[0], capacity, *array.shape[2:]), array.dtype) for array in old)
        k[:, : self.capacity], v[:, : self.capacity] = old
        self.k, self.v = k, v

    def truncate(self, seq: Any, length: Any) -> None:
        """Forget the tokens of some sequences from position `length` on.

        Parameters
        ----------
        seq : int, integers or None
            A row, rows, or None for all.
        length : int or integers
            Tokens to keep; never more than there are.

        Raises
        ------
        TypeError, ProblemError
            For rows that are not there, or a length beyond the present one. Nothing is changed then.

        Examples
        --------
        >>> import numpy as np
        >>> import cuflash
        >>> cache = cuflash.KVCache(2, 4, kv_heads=1, head_dim=2, dtype=np.float64)
        >>> cache.append(np.ones((2, 1, 3, 2)), np.ones((2, 1, 3, 2)))
        >>> cache.truncate(1, 0)
        >>> cache.lengths
        array([3, 0], dtype=int32)
        """
        rows, kept = decoding.truncate_call(self, seq, length)
        self.lengths[rows] = kept
