"""What both caches are made of: arrays of keys and values, and of scales where they are quantised."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module
from typing import Any

from cuflash._dispatch import backend
from cuflash._problem import caches


class Storage:
    """Keys and values of tokens, by row (a sequence or a page) and place in the row."""

    k: Any  # (rows, tokens, hk, d)
    v: Any  # (rows, tokens, hk, dv)
    k_scale: Any  # (rows, tokens, hk) float32 of a quantised cache, else None
    v_scale: Any
    lengths: Any  # int32, tokens of each sequence
    page_table: Any = None

    def __init__(self, shape: caches.CacheShape, sequences: int, dtype: Any, xp: Any, like: Any) -> None:
        name = type(self).__name__
        self._home = caches.cache_home(name, xp, like)
        backend(name, self._home)
        library = import_module(self._home)
        dtype = caches.cache_dtype(name, dtype, like)
        places = shape.rows, shape.tokens, shape.kv_heads
        self.k, self.v = (library.zeros((*places, dim), dtype) for dim in (shape.head_dim, shape.value_dim))
        quantised = dtype.name in caches.QUANTISED
        self.k_scale, self.v_scale = (library.zeros(places, library.float32) if quantised else None for _ in "kv")
        self.lengths = library.zeros(sequences, library.int32)

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
        return self.k.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of `k` and `v` together, and of their scales."""
        return sum(int(x.nbytes) for x in (self.k, self.v, self.k_scale, self.v_scale) if x is not None)

    def _store(self) -> caches.Store:
        return caches.Store(self.k, self.v, self.k_scale, self.v_scale, self.page_table)

    def __copy__(self) -> Any:
        """A cache of its own: two caches that shared arrays would disagree about lengths after an append."""
        return deepcopy(self)

    def sync(self) -> None:
        """Make what the host knows of lengths exact. On NumPy it always is, and nothing is done.

        For arrays on a device the host would keep an upper bound of each length, and this would make it exact.

        Examples
        --------
        >>> import cuflash
        >>> cuflash.KVCache(1, 8, kv_heads=1, head_dim=4, dtype="float32").sync()
        """
