"""The arrays of a cache: making them, writing new keys and values behind those they hold, and copying pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cuflash._numpy.quantised import quantise
from cuflash._problem.caches import Append, Store

Array = Any


zeros = np.zeros


def append(new: Append, store: Store) -> None:
    """The first `counts[i]` tokens of entry i go behind those of its sequence, whose length rises."""
    tokens = np.arange(new.k.shape[2])
    rows, positions = new.rows[:, None], store.lengths[new.rows][:, None] + tokens
    real = None if new.whole else tokens < new.counts[:, None]
    if store.page_table is not None:
        page_size = store.k.shape[1]
        entries, positions = np.divmod(positions, page_size)
        if real is not None:
            entries[~real] = 0  # there may be no page for what is not written
        rows = store.page_table[rows, entries]
    if real is not None:
        rows, positions = np.broadcast_to(rows, real.shape)[real], positions[real]
    for vectors, stored, scales in ((new.k, store.k, store.k_scale), (new.v, store.v, store.v_scale)):
        given = vectors.swapaxes(1, 2) if real is None else vectors.swapaxes(1, 2)[real]
        if scales is None:
            stored[rows, positions] = given
        else:
            stored[rows, positions], scales[rows, positions] = quantise(given, stored.dtype)
    store.lengths[new.rows] += new.counts


def copy_pages(store: Store, sources: Sequence[int], targets: Sequence[int]) -> None:
    """Whole pages, whatever lies behind a sequence's length in them."""
    for array in (store.k, store.v, store.k_scale, store.v_scale):
        if array is not None:
            array[list(targets)] = array[list(sources)]
