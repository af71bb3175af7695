"""The shapes that benchmarks share, by name."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """Sizes of one problem; v has the features of k."""

    b: int
    hq: int
    hk: int
    lq: int
    lk: int
    d: int

    def small(self) -> Shape:
        """Of the same kind, for a look at whether results are right: odd lengths, at most two sequences."""
        return self._replace(b=min(self.b, 2), lq=min(self.lq, 65), lk=min(self.lk, 65))


# Self-attention: length x features.
ATTENTION = {f"{l}x{d}": Shape(1, 8, 8, l, l, d) for l in (512, 1024, 2048, 4096, 16384) for d in (64, 128)}

# One new token of each sequence over a cache of that many.
DECODE = {f"{b}x{l}": Shape(b, 32, 8, 1, l, 128) for b in (1, 4) for l in (1024, 4096, 16384)}

# So little that what a call costs beyond the arithmetic is all that is left.
TINY = Shape(1, 2, 2, 4, 4, 8)
