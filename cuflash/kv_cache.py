"""The contiguous key/value cache that `decode` reads: plain arrays and a length for each sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash._dispatch import backend
from cuflash._problem import caches, options
from cuflash._storage import Storage, keep_lengths

__all__ = ["KVCache"]


class KVCache(Storage):
    """Keys and values of `batch` sequences, each with room for `capacity` tokens.

    Parameters
    ----------
    batch, capacity, kv_heads, head_dim : int
        Sequences, tokens of each, key/value heads and their features.
    value_dim : int, optional
        Features of a value, by default `head_dim`.
    dtype : dtype, optional
        float16, bfloat16, float32 or float64; or "int8" or "float8_e4m3fn", which keep a scale for each vector.
        Required unless `like` gives it.
    grow : bool
        Whether an append that does not fit enlarges the cache, to at least twice its capacity. `k` and `v` are then
        new arrays, and so are the scales. A cache that a captured graph reads cannot grow.
    xp : module
        The array library, `numpy` or `cupy`.
    like : array, optional
        Take library and dtype from this array.

    Attributes
    ----------
    k : array, shape (b, capacity, hk, d)
    v : array, shape (b, capacity, hk, dv)
        Plain arrays. Whatever lies behind a sequence's length is never read. CuPy has no float8: there they hold its
        bytes as uint8.
    k_scale, v_scale : float32 arrays, shape (b, capacity, hk), or None
        Of a quantised cache: what each vector of `k` and `v` is to be multiplied by.
    lengths : int32 array, shape (b,)
        Tokens of each sequence. On a device an array that is assigned to it is copied into it.

    Raises
    ------
    TypeError, ProblemError
        For sizes that are no integers or negative, or an unsupported dtype.

    Notes
    -----
    On a device the host knows bounds of the lengths, and nothing but `sync` and `check` waits: see the guide's page on
    caches.

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
        sizes = {"batch": batch, "capacity": capacity, "kv_heads": kv_heads, "head_dim": head_dim}
        shape = caches.cache_shape("KVCache", sizes, value_dim)
        self.grow = options.read_flag("KVCache", "grow", grow)
        super().__init__(shape, dtype, xp, like)
        self._lengths = keep_lengths(self._home, shape, self.dtype)

    @property
    def batch(self) -> int:
        """Sequences."""
        return int(self.k.shape[0])

    @property
    def capacity(self) -> int:
        """Tokens that each sequence has room for."""
        return int(self.k.shape[1])

    def __repr__(self) -> str:
        return (
            f"KVCache(batch={self.batch}, capacity={self.capacity}, kv_heads={self.kv_heads}, "
            f"head_dim={self.head_dim}, dtype={self.dtype}, {self.nbytes} bytes)"
        )

    def append(self, k: Any, v: Any, /, *, seqs: Any = None, lengths: Any = None, layout: str = "bhld") -> None:
        """Put new tokens behind those that each sequence already has.

        Parameters
        ----------
        k : array, shape (b, hk, l, d)
            New keys, of the cache's dtype, or float16, bfloat16 or float32 where it is quantised; (b, l, hk, d) with
            ``layout="blhd"``.
        v : array, shape (b, hk, l, dv)
            New values.
        seqs : integers, shape (b,), optional
            Row i of `k` goes to row ``seqs[i]`` of the cache; each row once. By default all rows, in order.
        lengths : int or integers, shape (b,), optional
            How many of the l tokens are real, from the first; by default all. Integers on the device are left to the
            kernel, which takes 0 to l of them; to the host each sequence may then have grown by up to l.
        layout : {"bhld", "blhd"}

        Raises
        ------
        CacheFullError
            If a sequence would outgrow the capacity, as far as the host knows, and the cache may not grow. Nothing is
            written then.
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
        self._append("KVCache.append", k, v, seqs, lengths, layout)

    def _make_room(self, function: str, rows: Any, tokens: Any) -> None:
        _, most = self._lengths.bounds(rows)
        if self._lengths.exact:
            caches.check_lengths(function, most, self.capacity)
        needed = int((most + tokens).max(initial=0))
        if self.grow and needed > self.capacity:
            self._lengths.check_replaceable(function)
            self._enlarge(max(needed, 2 * self.capacity))
        caches.check_room(function, needed, self.capacity, self._lengths.exact)

    def _enlarge(self, capacity: int) -> None:
        """All new arrays are there before the first takes its place."""
        zeros = backend("KVCache", self._home).zeros
        names = ("k", "v", "k_scale", "v_scale")
        old = {name: array for name in names if (array := getattr(self, name)) is not None}
        new = {name: zeros((len(array), capacity, *array.shape[2:]), array.dtype) for name, array in old.items()}
        for name, array in old.items():
            new[name][:, : array.shape[1]] = array
        vars(self).update(new, _calls={}, _seen=())

    def truncate(self, seq: Any, length: Any) -> None:
        """Forget the tokens of some sequences from position `length` on.

        Parameters
        ----------
        seq : int, integers or None
            A row, rows, or None for all.
        length : int or integers
            Tokens to keep; never more than there are, nor, on a device, than the host knows of.

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
        function = "KVCache.truncate"
        self._lengths.check_operation(function)
        rows, kept = caches.truncate_call(function, self, seq, length)
        self._lengths.assign(rows, kept)

    def _read_lengths(self, function: str) -> np.ndarray:
        caches.check_lengths_array(function, self)
        lengths = self._lengths.read()
        caches.check_lengths(function, lengths, self.capacity)
        return lengths
