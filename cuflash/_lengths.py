"""How long the sequences of a cache are, as far as the host knows: in its own memory, exactly.

`BoundedLengths` of `_device_cache` answers the same questions about lengths on a device; which of the two a cache has
is all that its operations depend on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash._problem.caches import Append

Array = Any


class Lengths:
    """Lengths in the host's memory, which are looked up whenever they are needed."""

    exact = True  # whether looking at them costs nothing, and what the host knows is all there is to know
    kept: Any = None  # what a backend keeps for the cache between calls

    def __init__(self, sequences: int) -> None:
        self.array: Array = np.zeros(sequences, np.int32)

    def replace(self, array: Array) -> None:
        """Take another array, as a user hands it in; nothing is said yet about what it is."""
        self.array = array

    def bounds(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """At least and at most so many tokens have these sequences."""
        lengths = self.array[rows]
        return lengths, lengths

    def read(self) -> np.ndarray:
        """The lengths themselves. On a device this waits for it."""
        return self.array

    def settle(self, lengths: np.ndarray) -> None:
        """Take what `read` returned, and was found sound, for what the host knows."""

    def appended(self, new: Append) -> None:
        """A backend was told to append tokens, which raises the lengths."""

    def assign(self, rows: Any, tokens: Any) -> None:
        """Write the lengths of some sequences."""
        self.array[rows] = tokens

    def copy(self, parent: int, child: int) -> None:
        """Give one sequence the length of another."""
        self.array[child] = self.array[parent]

    def may_reach(self, seq: int, reserved: int) -> int:
        """How many tokens a sequence may have by now, given how many it has pages for."""
        return int(self.array[seq])

    def grow(self, sequences: int) -> None:
        """Have a length for so many sequences, at least."""
        more = sequences - len(self.array)
        if more > 0:
            self.array = np.concatenate([self.array, np.zeros(more, np.int32)])

    def check_operation(self, function: str) -> None:
        """Raise ProblemError where the host may not change anything now."""

    def check_replaceable(self, function: str) -> None:
        """Raise CacheFullError where larger arrays may not take the place of the cache's."""

    def dropped(self) -> np.ndarray | None:
        """For each sequence, how many tokens found no room since this was asked last; None where that cannot be."""
        return None

    # What `decode` reads.

    def of(self, rows: np.ndarray | None) -> Array:
        """The lengths of a call: of the sequences of each batch entry, or on a device of all."""
        return self.array if rows is None else self.array[rows]

    def looked_at(self, lengths: Array, rows: np.ndarray | None) -> np.ndarray:
        """What `of` returned as numbers, of each batch entry; the host knew them, or does now."""
        return lengths

    def longest(self, rows: np.ndarray | None) -> int:
        """The most tokens that one of some sequences, or of all, has as far as the host knows."""
        return int((self.array if rows is None else self.array[rows]).max(initial=0))

    def positions(self, lengths: Array, scores: tuple[int, ...]) -> tuple[Array, Array | None]:
        """Position of the first query of each batch entry, and a mask (b, hq, lq, lk) where some are negative.

        Queries at negative positions see nothing, causal or not. Kernels find both in the lengths: then None.
        """
        lq = scores[2]
        first = lengths - lq
        if lq == 1 or (lengths >= lq).all():
            return first, None
        shown = np.arange(lq) + first[:, None] >= 0
        return first, np.broadcast_to(shown[:, None, :, None], scores)
