"""Writing new keys and values behind those a cache already holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash._problem.decoding import Append

Array = Any


def append(new: Append, k_cache: Array, v_cache: Array, starts: Array) -> None:
    """The first `counts[i]` tokens of row i go to its row of the caches (b, capacity, hk, d), from `starts[i]` on."""
    rows = np.arange(len(k_cache)) if new.rows is None else new.rows
    for row, (seq, start, count) in enumerate(zip(rows.tolist(), starts.tolist(), new.counts.tolist())):
        k_cache[seq, start : start + count] = new.k[row, :, :count].swapaxes(0, 1)
        v_cache[seq, start : start + count] = new.v[row, :, :count].swapaxes(0, 1)
