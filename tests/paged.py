"""Paged caches for the tests, and a look into them."""

import numpy as np

import cuflash


def state(cache):
    """Every byte of a cache."""
    arrays = (cache.k, cache.v, cache.k_scale, cache.v_scale, cache.lengths, cache.page_table)
    return [x.tobytes() for x in arrays if x is not None] + [cache.seqs, cache.free_pages]


def stored(cache, seq, name="k"):
    """Keys or values (hk, length, dim) of a sequence."""
    i = np.arange(cache.lengths[seq])
    pages = cache.page_table[seq, i // cache.page_size]
    return getattr(cache, name)[pages, i % cache.page_size].swapaxes(0, 1)


def pages_of(cache, seq):
    """The row of the page table up to its last page."""
    row = cache.page_table[seq].tolist()
    while row and row[-1] < 0:
        row.pop()
    return row


def make(pages=8, page_size=4, lengths=(), dtype="float32", tokens=None):
    """A cache of sequences of these lengths."""
    cache = cuflash.PagedKVCache(pages, page_size, 2, 3, dtype=dtype)
    if lengths:
        seqs = [cache.add() for _ in lengths]
        new = tokens(len(lengths), max(lengths))
        cache.append(new, new, seqs=seqs, lengths=list(lengths))
    return cache
