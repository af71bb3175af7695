"""Probes of tests/mutants.py around caches: what appends, what decodes, and what shares pages."""

import numpy as np
from backends import host

import cuflash


def decode(p):
    """Parts, more queries than tokens, sinks, a window; twice, since tickets must be as they were."""
    lengths = np.array([70, 0, 1, 33])
    cache, model = both(p, cuflash.KVCache, 4, 100, 2, 40, value_dim=9, dtype="float64")
    fill(p, cache, model, lengths)
    few, more = (p.normal(4, 4, lq, 40).astype(np.float64) for lq in (1, 3))
    for _ in range(2):
        p.decode(few, cache, model)
    p.decode(few, cache, model, splits=3, sinks=p.normal(4))
    p.decode(more, cache, model, window=(33, None), splits=3, sinks=p.normal(4))
    p.decode(more, cache, model, causal=False)


def decode_wide(p):
    """Values of two chunks."""
    cache, model = both(p, cuflash.KVCache, 2, 80, 1, 8, value_dim=40, dtype="float64")
    fill(p, cache, model, np.array([70, 3]))
    p.decode(p.normal(2, 2, 1, 8).astype(np.float64), cache, model)


def decode_pages(p):
    """Sequences in pages of 5 tokens."""
    cache, model = paged(p, 8, "float64")
    p.decode(p.normal(3, 4, 1, 8).astype(np.float64), cache, model)


def decode_codes(p):
    """Keys and values of one byte."""
    cache, model = both(p, cuflash.KVCache, 2, 40, 2, 8, dtype="int8")
    fill(p, cache, model, np.array([37, 5]))
    p.decode(p.normal(2, 4, 1, 8), cache, model)


def decode_streams(p, dtype):
    """As `decode`: several tiles for some warps, none for others. What no sequence has is NaN."""
    lengths = np.array([150, 0, 1, 33])
    cache, model = both(p, cuflash.KVCache, 4, 160, 2, 40, value_dim=24, dtype=dtype)
    fill(p, cache, model, lengths)
    for array in (cache.k, cache.v):
        for row, length in zip(host(array), lengths, strict=True):
            row[length:] = np.nan
    few, more = (p.normal(4, 4, lq, 40).astype(dtype) for lq in (1, 3))
    p.decode(few, cache, model, splits=1)
    p.decode(few, cache, model, sinks=p.normal(4))
    p.decode(more, cache, model, window=(33, None), splits=2)


def decode_stream_pages(p, d, dtype):
    """Pages of 5 tokens, with what a score passes through."""
    cache, model = paged(p, d, dtype)
    few = [p.normal(3, 4, 1, d).astype(dtype) for _ in range(2)]
    p.decode(few[0], cache, model, splits=1)
    p.decode(few[1], cache, model, softcap=2.0, bias=p.normal(1, 4, 1, 37))


def decode_tensor_codes(p):
    """int8: keys in no vectors, values of three chunks, up to the last there is. Scales behind them are NaN."""
    lengths = np.array([33, 0, 1, 150])
    cache, model = both(p, cuflash.KVCache, 4, 150, 2, 24, value_dim=48, dtype="int8")
    fill(p, cache, model, lengths)
    for scales in (cache.k_scale, cache.v_scale):
        for row, length in zip(host(scales), lengths, strict=True):
            row[length:] = np.nan
    p.decode(p.normal(4, 4, 1, 24).astype(np.float16), cache, model, splits=1)


def decode_tensor_float8(p):
    """In pages of 5 tokens, with what a score passes through."""
    cache, model = both(p, cuflash.PagedKVCache, 40, 5, 2, 64, dtype="float8_e4m3fn")
    for _ in range(3):
        cache.add(), model.add()
    fill(p, cache, model, np.array([37, 5, 12]))
    p.decode(p.normal(3, 4, 1, 64).astype(np.float16), cache, model, splits=1, softcap=2.0, bias=p.normal(1, 4, 1, 37))


def turns(p):
    """A cache of more sequences than a warp has lanes, most of them short, on a GPU that runs 8 blocks."""
    cache, model = both(p, cuflash.KVCache, 34, 60, 1, 8, dtype="float32")
    fill(p, cache, model, np.where(np.arange(34) % 8 > 5, 50, np.arange(34) % 3))
    q = p.normal(34, 2, 1, 8)
    p.decode(q, cache, model, splits=2)
    p.decode(q, cache, model)


def append(p):
    """Twice, ragged, by several blocks; then more than there is room for, since the lengths were written by hand."""
    cache, model = both(p, cuflash.KVCache, 3, 40, 2, 5, dtype="float32")
    for array in (cache.k, cache.v):
        array.fill(0)
    for array in (model.k, model.v):
        array[...] = 0
    fill(p, cache, model, np.array([20, 3, 11]))
    fill(p, cache, model, np.array([1, 17, 0]))
    p.same(cache, model, ("k", "v", "lengths"))
    host(cache.lengths)[...] = 39, 20, 11
    new = p.backend.asarray(p.normal(3, 2, 3, 5))
    cache.append(new, new)
    model.lengths = np.array([40, 23, 14])
    p.same(cache, model, ("lengths",))


def append_codes(p):
    """Codes and scales are those of the host, bit by bit."""
    cache, model = both(p, cuflash.KVCache, 2, 40, 2, 5, dtype="int8")
    for array in (cache.k, cache.v, cache.k_scale, cache.v_scale):
        array.fill(0)
    for array in (model.k, model.v, model.k_scale, model.v_scale):
        array[...] = 0
    fill(p, cache, model, np.array([20, 3]))
    p.same(cache, model, ("k", "v", "k_scale", "v_scale", "lengths"))


def fork(p):
    """Two sequences share a page of 45 * 4 bytes until one of them goes on."""
    cache, model = both(p, cuflash.PagedKVCache, 9, 5, 1, 9, dtype="float32")
    for one in (cache, model):
        one.add()
    fill(p, cache, model, np.array([13]))
    for one in (cache, model):
        one.fork(one.seqs[0])
    fill(p, cache, model, np.array([3, 0]))
    p.decode(p.normal(2, 1, 1, 9), cache, model)


CACHE_PROBES = {
    "decode": decode,
    "decode_wide": decode_wide,
    "decode_pages": decode_pages,
    "decode_codes": decode_codes,
    "decode_tensor_cores": lambda p: decode_streams(p, "float16"),
    "decode_tensor_pages": lambda p: decode_stream_pages(p, 8, "float16"),
    "decode_tensor_codes": decode_tensor_codes,
    "decode_tensor_float8": decode_tensor_float8,
    "decode_float32": lambda p: decode_streams(p, "float32"),
    "decode_float32_pages": lambda p: decode_stream_pages(p, 9, "float32"),  # rows that are not whole vectors
    "turns": turns,
    "append": append,
    "append_codes": append_codes,
    "fork": fork,
}


def paged(p, d, dtype):
    """Three sequences in pages of 5 tokens; what none has is NaN."""
    cache, model = both(p, cuflash.PagedKVCache, 40, 5, 2, d, dtype=dtype)
    for array in (cache.k, cache.v):
        array.fill(np.nan)
    for _ in range(3):
        cache.add(), model.add()
    fill(p, cache, model, np.array([37, 5, 12]))
    return cache, model


def both(p, kind, *sizes, **options):
    """A cache on the device and one on the host."""
    like = p.backend.asarray(np.zeros(1, np.float32))
    return kind(*sizes, like=like, **options), kind(*sizes, **options)


def fill(p, cache, model, lengths):
    """The same new tokens for both."""
    b, hk, d = len(lengths), *model.k.shape[-2:]
    dtype = np.float32 if model.k_scale is not None else model.k.dtype
    k, v = (p.normal(b, hk, lengths.max(), columns).astype(dtype) for columns in (d, model.value_dim))
    if model.k_scale is not None:  # tokens of many sizes
        k, v = (x * p.rng.uniform(0.3, 3, (*x.shape[:3], 1)).astype(dtype) for x in (k, v))
        k[0, :, 0], v[0, :, 1] = 0, 1e-37
    cache.append(p.backend.asarray(k), p.backend.asarray(v), lengths=p.backend.asarray(lengths))
    model.append(k, v, lengths=lengths)
