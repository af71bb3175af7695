"""Rotary position embedding: each pair of features turned by position times its frequency."""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash._numpy.forward import empty_like
from cuflash._problem.transforms import RotaryCall

Array = Any


def rotary(call: RotaryCall) -> Array:
    """The turned array, in `call.out` or in a new one; angles are taken in float64."""
    x, dim = call.x, call.dim
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    angles = call.positions[..., None] * call.freqs
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)

    out = empty_like(x, x.shape) if call.out is None else call.out
    first, second = _halves(call.canonical(x), dim, call.interleaved)
    first, second = first.astype(dtype, copy=False), second.astype(dtype, copy=False)
    target = call.canonical(out)
    to_first, to_second = _halves(target, dim, call.interleaved)
    to_first[...] = first * cos - second * sin
    to_second[...] = second * cos + first * sin
    target[..., dim:] = call.canonical(x)[..., dim:]
    return out


def _halves(x: Array, dim: int, interleaved: bool) -> tuple[Array, Array]:
    """The first and the second feature of every pair."""
    if interleaved:
        return x[..., 0:dim:2], x[..., 1:dim:2]
    return x[..., : dim // 2], x[..., dim // 2 : dim]
