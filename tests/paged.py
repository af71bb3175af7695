"""Paged caches for the tests, and a look into them."""

import numpy as np
from backends import host


def state(cache):
    """Every byte of a cache."""
    arrays = (cache.k, cache.v, cache.k_scale, cache.v_scale, cache.lengths, cache.page_table)
    return [host(x).tobytes() for x in arrays if x is not None] + [cache.seqs, cache.free_pages]


def stored(cache, seq, name="k"):
    """Keys or values (hk, length, dim) of a sequence."""
    i = np.arange(host(cache.lengths)[seq])
    pages = host(cache.page_table)[seq, i // cache.page_size]
    return host(getattr(cache, name))[pages, i % cache.page_size].swapaxes(0, 1)


def pages_of(cache, seq):
    """The row of the page table up to its last page."""
    row = host(cache.page_table)[seq].tolist()
    while row and row[-1] < 0:
        row.pop()
    return row
