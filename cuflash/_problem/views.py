"""Shapes, addresses and memory order of arrays, told without a look at what they hold: an array of a device may be
anywhere, and nothing here brings it over.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

Array = Any


def overlap(one: Array, other: Array) -> bool:
    """Whether two arrays share an element, or may do so where that is hard to tell."""
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        (start, stop), (other_start, other_stop) = ends(one), ends(other)
        if stop <= other_start or other_stop <= start:  # in most calls: NumPy's answer takes ten times as long
            return False
        one, other = _addresses(one), _addresses(other)
    if not np.may_share_memory(one, other):
        return False
    try:
        return np.shares_memory(one, other, max_work=100_000)  # type: ignore[arg-type]  # any bound is allowed
    except np.exceptions.TooHardError:
        return True


def ends(array: Array) -> tuple[int, int]:
    """The first byte of an array on a device, and the one behind its last."""
    before, after = span(array.shape, array.strides, array.dtype.itemsize)
    at = array.data.ptr
    return at - before, at + after


@lru_cache(maxsize=1024)
def span(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Bytes before the first element, and from there to the end; none where there is no element."""
    if 0 in shape:
        return 0, 0
    steps = [(size - 1) * stride for size, stride in zip(shape, strides)]
    return -sum(step for step in steps if step < 0), sum(step for step in steps if step > 0) + itemsize


def _addresses(array: Array) -> Array:
    """A NumPy array at the addresses of an array on a device, for NumPy to compare; nobody can read it."""
    return np.asarray(_Interface(array.shape, array.strides, array.dtype.itemsize, array.data.ptr))


class _Interface:
    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, at: int) -> None:
        self.__array_interface__ = {
            "version": 3, "shape": shape, "strides": strides, "typestr": f"|V{itemsize}", "data": (at, True),
        }  # fmt: skip


@lru_cache(maxsize=1024)
def memory_order(strides: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an array from the one with the longest steps in memory to the one with the shortest."""
    return tuple(sorted(range(len(strides)), key=lambda axis: -abs(strides[axis])))
