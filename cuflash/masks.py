"""Structured masks: small frozen values that say which keys a query sees, without an (lq, lk) array.

``mask.visible(q_idx, kv_idx)`` is the definition; the backends never visit a tile that shows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from cuflash.errors import ProblemError

__all__ = ["Causal", "Window"]


@dataclass(frozen=True, eq=False)
class Window:
    """Keys at most `left` positions before a query and at most `right` after it, both inclusive.

    The same as ``window=(left, right)`` of `cuflash.attention`.

    Parameters
    ----------
    left, right : int or None
        Positions, counted from the query's own position ``i + q_offset``; None is unlimited.

    Raises
    ------
    TypeError
        For a width that is not an integer.
    ProblemError
        For a negative width.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> mask = cuflash.masks.Window(1, 0)
    >>> mask.visible(np.arange(4)[:, None], np.arange(4)).astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 1, 1]])

    Masks of this family are closed under ``&``:

    >>> cuflash.masks.Window(8, None) & cuflash.masks.Causal()
    Window(left=8, right=0)
    """

    left: int | None
    right: int | None

    def __post_init__(self) -> None:
        for side in ("left", "right"):
            object.__setattr__(self, side, _width(side, getattr(self, side)))

    def visible(self, q_idx: Any, kv_idx: Any) -> Any:
        """Whether the query at position `q_idx` (``i + q_offset``) sees the key at `kv_idx`; the two broadcast."""
        distance = np.asarray(kv_idx) - np.asarray(q_idx)
        seen = np.ones(distance.shape, dtype=bool)
        if self.left is not None:
            seen &= distance >= -self.left
        if self.right is not None:
            seen &= distance <= self.right
        return seen

    def __eq__(self, other: object) -> bool:
        """Whether both show the same keys: ``Causal() == Window(None, 0)``."""
        if not isinstance(other, Window):
            return NotImplemented
        return (self.left, self.right) == (other.left, other.right)

    def __hash__(self) -> int:
        return hash((self.left, self.right))

    def __and__(self, other: Window) -> Window:
        """The keys that both show."""
        if not isinstance(other, Window):
            return NotImplemented
        return Window(narrower(self.left, other.left), narrower(self.right, other.right))


class Causal(Window):
    """No key after the query: the same as ``causal=True``, or ``Window(None, 0)``.

    Examples
    --------
    >>> import cuflash
    >>> bool(cuflash.masks.Causal().visible(3, 4))
    False
    """

    def __init__(self) -> None:
        super().__init__(None, 0)

    def __repr__(self) -> str:
        return "Causal()"


def narrower(one: int | None, other: int | None) -> int | None:
    """The smaller of two widths, where None is unlimited."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _width(side: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"Window: `{side}` must be an integer or None, got {value!r}")
    try:
        width = index(value)
    except TypeError:
        raise TypeError(f"Window: `{side}` must be an integer or None, got {value!r}") from None
    if width < 0:
        raise ProblemError(f"Window: `{side}` is {width}, but a window reaches 0 or more positions; None is unlimited")
    return width
