"""Merging partial attention: outputs over disjoint keys, weighted by the share of the softmax each has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any


def merge(outs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]:
    """Parts (..., dv) and (...), as sequences of views; a part that saw no key adds nothing, whatever it holds."""
    dtype = lses[0].dtype
    top = np.maximum.reduce(lses)
    shift = np.where(np.isneginf(top), dtype.type(0), top)
    total = np.zeros(top.shape, dtype)
    summed = np.zeros(outs[0].shape, dtype)
    for out, lse in zip(outs, lses):
        weight = np.exp(lse - shift)
        total += weight
        seen = (weight != 0)[..., None]
        np.add(summed, weight[..., None] * np.where(seen, out, 0).astype(dtype, copy=False), out=summed)
    np.divide(summed, total[..., None], out=summed, where=(total != 0)[..., None])
    with np.errstate(divide="ignore"):
        lse = shift + np.log(total)
    return summed.astype(outs[0].dtype, copy=False), lse
