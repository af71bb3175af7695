"""Numbers as a quantised cache keeps them: small codes, and one float32 scale for each vector."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any

_LARGEST = {"int8": np.float32(127), "float8_e4m3fn": np.float32(448)}
_TINY, _INFINITE = np.finfo(np.float32).tiny, np.float32(np.inf)
_REBIAS = np.float32(2.0) ** 120  # between the exponents' biases of float32 and float8_e4m3fn, 127 and 7


def quantise(vectors: Array, dtype: Any) -> tuple[Array, Array]:
    """Codes in `dtype` and scales of vectors (..., dim): code times scale is the nearest there is to the number.

    The largest magnitude of a vector gets the largest code. Vectors below 1e-36 become 0; one with a NaN or an
    infinity gets the scale NaN, so that all of it is NaN when it is read.
    """
    scaled = np.array(vectors, np.float32, order="C")
    scales = np.maximum.reduce(np.abs(scaled), axis=-1, initial=0)
    if not np.maximum.reduce(scales, axis=None, initial=0) < np.inf:
        broken = ~np.isfinite(scales)
        scaled[broken], scales[broken] = 0, np.nan
    with np.errstate(under="ignore"):
        scales /= _LARGEST[dtype.name]
        scales[scales < _TINY] = 0
        scaled /= np.where(scales > 0, scales, _INFINITE)[..., None]
        if dtype.name == "int8":
            return np.rint(scaled, out=scaled).astype(np.int8), scales
        return _to_float8(scaled).view(dtype), scales


def _to_float8(numbers: Array) -> Array:
    """The bytes of float8_e4m3fn numbers nearest to some of magnitude 448 at most, which are overwritten."""
    np.multiply(numbers, 1 / _REBIAS, out=numbers)
    bits = numbers.view(np.int32)
    bits += 0x7FFFF + ((bits >> 20) & 1)  # half of the last place that stays; ties go to even
    return (((bits >> 20) & 0x7F) | ((bits >> 24) & 0x80)).astype(np.uint8)
