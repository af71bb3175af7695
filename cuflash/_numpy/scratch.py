"""Memory that a thread writes tile after tile: new memory of a tile's size costs the system more than the tile does."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

Array = Any


class Scratch:
    """Arrays of one thread by name; whoever asks for a name again overwrites what was there."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self._memory: dict[str, Array] = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """An array of this shape, by default in the arithmetic's dtype, with whatever is in it."""
        size = prod(shape)
        found = self._memory.get(name)
        if found is None or found.size < size:
            found = self._memory[name] = np.empty(size, dtype or self.dtype)
        return found[:size].reshape(shape)
