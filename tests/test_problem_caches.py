"""Every wrong call of a paged or quantised cache, by the text of its error; those of a plain KVCache are in test_problem."""

import re
import sys

import numpy as np
import pytest

import cuflash
from cuflash import CacheFullError, KVCache, PagedKVCache, ProblemError, UnsupportedError

F32, F64 = np.float32, np.float64


def arr(*shape, dtype=F32):
    return np.zeros(shape, dtype)


def cache(dtype=F32):
    """Sequences 0 (trimmed), 1 and 3 of 11, 6 and 1 tokens, and 0 of 8 pages of 2 tokens free."""
    made = PagedKVCache(8, 2, 2, 64, dtype=dtype)
    for _ in range(4):
        made.add()
    made.free(2)
    made.append(arr(3, 2, 11, 64), arr(3, 2, 11, 64), lengths=[6, 6, 1])
    made.append(arr(1, 2, 5, 64), arr(1, 2, 5, 64), seqs=[0], lengths=0)
    made.trim(0, 0, 2)
    made.append(arr(1, 2, 5, 64), arr(1, 2, 5, 64), seqs=[0])
    return made


def paged(name, *args, dtype=F32, **options):
    return lambda: getattr(cache(dtype), name)(*args, **options)


def append(k=None, v=None, dtype=F32, **options):
    k = arr(3, 2, 1, 64) if k is None else k
    return lambda: cache(dtype).append(k, k if v is None else v, **options)


def decode(q=None, dtype=F32, lengths=None, **options):
    def call():
        given = cache(dtype)
        if lengths is not None:
            given.lengths = lengths
        return cuflash.decode(arr(3, 8, 64) if q is None else q, given, **({"window": (2, 0)} | options))

    return call


def listing(page):
    """A cache whose page table was written to."""

    def call():
        given = cache()
        given.page_table[1, 0] = page
        given.check()

    return call


TYPES = {
    "PagedKVCache: `dtype` is 'float7', but must be float16, bfloat16, float32 or float64, or int8 or float8_e4m3fn": lambda: PagedKVCache(1, 1, 1, 1, dtype="float7"),
    "PagedKVCache: `dtype` is missing; give it, or an array of that dtype as `like`": lambda: PagedKVCache(1, 1, 1, 1),
    "PagedKVCache: `dtype` is uint8, but must be float16, bfloat16, float32 or float64, or int8 or float8_e4m3fn": lambda: PagedKVCache(1, 1, 1, 1, dtype=np.uint8),
    "PagedKVCache: `page_size` must be an integer, got 16.0": lambda: PagedKVCache(1, 16.0, 1, 1, dtype=F32),
    "PagedKVCache: `xp` must be an array library such as numpy, got None": lambda: PagedKVCache(1, 1, 1, 1, dtype=F32, xp=None),
    "PagedKVCache.append: `k` has dtype float64, but `cache` has float32; nothing is promoted silently": append(k=arr(3, 2, 1, 64, dtype=F64)),
    "PagedKVCache.append: `k` has dtype float64, but `cache` is quantised (int8) and computes in float32; convert it, for example k.astype(numpy.float32)": append(k=arr(3, 2, 1, 64, dtype=F64), dtype="int8"),
    "PagedKVCache.append: `v` has dtype float32, but `k` has float16": append(k=arr(3, 2, 1, 64, dtype=np.float16), v=arr(3, 2, 1, 64), dtype="int8"),
    "PagedKVCache.append: `k` has dtype int8, but must be float16, bfloat16, float32 or float64": append(k=arr(3, 2, 1, 64, dtype=np.int8), dtype="int8"),
    "PagedKVCache.append: `seqs` must hold integers, got dtype float64": append(seqs=[0.0, 1.0, 3.0]),
    "PagedKVCache.fork: `seq` must be an integer, got None": paged("fork", None),
    "PagedKVCache.free: `seq` must be an integer, got [0, 1]": paged("free", [0, 1]),
    "PagedKVCache.reserve: `tokens` must be an integer, got 1.5": paged("reserve", 0, 1.5),
    "PagedKVCache.trim: `keep_first` must be an integer, got None": paged("trim", 0, None, 1),
    "PagedKVCache.truncate: `seq` must be a row, rows, or None for all, got [0.5]": paged("truncate", [0.5], 0),
    "decode: `q` has dtype float64, but `cache` has float32": decode(q=arr(3, 8, 64, dtype=F64)),
    "decode: `q` has dtype float64, but `cache` is quantised (int8) and computes in float32; convert it, for example q.astype(numpy.float32)": decode(q=arr(3, 8, 64, dtype=F64), dtype="int8"),
    "decode: `q` has dtype int8, but must be float16, bfloat16, float32 or float64": decode(q=arr(3, 8, 64, dtype=np.int8), dtype="int8"),
    "decode: `bias` has dtype float64, but must be float32 as `q` is, or float32": decode(bias=arr(11, dtype=F64), dtype="int8"),
    "decode: `out` has dtype float16, but must be float32": decode(out=arr(3, 8, 64, dtype=np.float16), dtype="int8"),
    "decode: `cache.lengths` must hold integers, got dtype float64": decode(lengths=np.zeros(8)),
}  # fmt: skip

VALUES = {
    "PagedKVCache: `pages` is -1, but must be 0 or more": lambda: PagedKVCache(-1, 1, 1, 1, dtype=F32),
    "PagedKVCache: `page_size` is 0, but must be 1 or more": lambda: PagedKVCache(1, 0, 1, 1, dtype=F32),
    "PagedKVCache: `kv_heads` is 0, but must be 1 or more": lambda: PagedKVCache(1, 1, 0, 1, dtype=F32),
    "PagedKVCache: `value_dim` is -2, but must be 0 or more": lambda: PagedKVCache(1, 1, 1, 1, value_dim=-2, dtype=F32),
    "PagedKVCache.append: got b=2 rows, but the cache has 3 sequence(s); name the rows with `seqs`": append(k=arr(2, 2, 1, 64)),
    "PagedKVCache.append: `seqs` names sequence 2, which was never added or was freed; the cache has 0, 1, 3": append(seqs=[0, 1, 2]),
    "PagedKVCache.append: `seqs` names a row twice: [0, 1, 1]": append(seqs=[0, 1, 1]),
    "PagedKVCache.append: `k` has 1 heads of 64, but the cache holds 2 heads of 64 (layout 'blhd')": append(layout="blhd"),
    "PagedKVCache.append: `lengths` is 2 at (1,), but must lie in 0..1": append(lengths=[1, 2, 1]),
    "PagedKVCache.fork: `seq` names sequence 2, which was never added or was freed; the cache has 0, 1, 3": paged("fork", 2),
    "PagedKVCache.free: `seq` names sequence -1, which": paged("free", -1),
    "PagedKVCache.free: `seq` names sequence 0, which was never added or was freed; the cache has none": lambda: PagedKVCache(1, 1, 1, 1, dtype=F32).free(0),
    "PagedKVCache.reserve: `seq` names sequence 2, which": paged("reserve", 2, 1),
    "PagedKVCache.reserve: `tokens` is -1, but must be 0 or more": paged("reserve", 0, -1),
    "PagedKVCache.trim: `seq` names sequence 9, which": paged("trim", 9, 0, 0),
    "PagedKVCache.trim: `keep_first` is -1, but must be 0 or more": paged("trim", 0, -1, 0),
    "PagedKVCache.trim: `keep_last` is -4, but must be 0 or more": paged("trim", 0, 0, -4),
    "PagedKVCache.truncate: `length` is 7 for row 1, but it has only 6 tokens": paged("truncate", 1, 7),
    "PagedKVCache.truncate: `length` is 3 for row 0, but trim has freed the page that token 2 was in; a multiple of page_size=2 will do": paged("truncate", 0, 3),
    "PagedKVCache.truncate: `seq` names sequence 2, which was never added or was freed": paged("truncate", [0, 2], 0),
    "PagedKVCache.truncate: `seq` names a row twice: [1, 1]": paged("truncate", [1, 1], 0),
    "PagedKVCache.check: `cache.page_table` was changed from outside: page 3 is listed 0 times, but is held by 1 sequences; only the cache writes it": listing(-1),
    "PagedKVCache.check: `cache.page_table` was changed from outside: page 12 is listed, but there are 8 pages": listing(12),
    "decode: got b=2 rows, but the cache has 3 sequence(s); name the rows with `seqs`": decode(q=arr(2, 8, 64)),
    "decode: `seqs` names sequence 2, which was never added or was freed; the cache has 0, 1, 3": decode(seqs=[0, 1, 2]),
    "decode: `cache` has d=64, but `q` has d=32": decode(q=arr(3, 8, 32)),
    "decode: `cache` has hk=2 heads, which does not divide hq=3 of `q`": decode(q=arr(3, 3, 64)),
    "decode: `cache` has only the keys from 4 on of sequence 0, as trim left them; window=(6, 0) sees no more than those": decode(window=None),
    "decode: `cache` has only the keys from 4 on of sequence 0, as trim left them; they are too few for lq=8": decode(q=arr(3, 8, 8, 64)),
    "decode: `cache.lengths` holds 9 for sequence 1, but must lie in 0..6, the end of its last page; reserve pages before": decode(lengths=np.array([11, 9, 0, 1] * 2)),
    "decode: `cache.lengths` holds -1 for sequence 1, but must lie in 0..6": decode(lengths=np.array([11, -1, 0, 1] * 2)),
    "decode: `cache.lengths` holds 99 for sequence 1, but must lie in 0..6, the end": decode(lengths=np.array([11, 99, 0, 1] * 2)),
    "decode: `cache.lengths` has shape (3,), but (b,) of the cache is (8,)": decode(lengths=np.zeros(3, int)),
    "decode: `out` overlaps `cache.k_scale` in memory": lambda: cuflash.decode(
        arr(1, 1, 1), own := KVCache(1, 9, 1, 1, dtype="int8"), out=own.k_scale[:, :1]
    ),
    "decode: `bias` has 2 keys on its last axis, but the longest sequence of `cache` has 11": decode(bias=arr(2)),
}  # fmt: skip

UNSUPPORTED = {
    "PagedKVCache: sys arrays have no backend in this version": lambda: PagedKVCache(1, 1, 1, 1, dtype=F32, xp=sys),
}

FULL = {
    "PagedKVCache.append: takes more pages than the 0 that are free of the cache's 8; free or trim a sequence, or make the cache with more": append(),
    "PagedKVCache.reserve: takes more pages than the 0 that are free of the cache's 8": paged("reserve", 1, 1),
}

CASES = [
    pytest.param(error, message, call, id=message[:90])
    for error, table in (
        (TypeError, TYPES), (ProblemError, VALUES), (UnsupportedError, UNSUPPORTED), (CacheFullError, FULL),
    )
    for message, call in table.items()
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), CASES)
def test_a_wrong_call_says_so(error, message, call):
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert type(caught.value) is error


@pytest.mark.parametrize("kind", [KVCache, PagedKVCache])
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_a_dtype_of_ml_dtypes_without_that_package(dtype, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    message = f'KVCache: `dtype`="{dtype}" needs the package ml_dtypes; install cuflash[bf16]'
    with pytest.raises(TypeError, match=re.escape(message)):
        kind(1, 1, 1, 1, dtype=dtype)
