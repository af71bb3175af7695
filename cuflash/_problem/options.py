"""The small options: numbers, windows, lengths, layout. Each comes out in the one form the rest of the house uses."""

from __future__ import annotations

from math import inf, isfinite, sqrt
from numbers import Real
from operator import index
from typing import Any

import numpy as np

from cuflash import masks
from cuflash._problem.arrays import Array, check_library, lse_dtype
from cuflash._problem.match import match_broadcast
from cuflash.errors import ProblemError, UnsupportedError


def read_layout(function: str, layout: Any) -> str:
    """One of the two orders of heads (h) and length (l)."""
    if layout in ("bhld", "blhd"):
        return str(layout)
    raise ProblemError(f'{function}: `layout` is {layout!r}, but must be "bhld" or "blhd"')


def read_integer(function: str, name: str, value: Any) -> int:
    """A Python or NumPy integer; booleans and floats are not."""
    if type(value) is int:
        return value
    if not isinstance(value, (bool, np.bool_)):
        try:
            return index(value)
        except TypeError:
            pass
    raise TypeError(f"{function}: `{name}` must be an integer, got {_said(value)}")


def read_number(function: str, name: str, value: Any) -> float:
    """A finite real number of Python or NumPy."""
    if type(value) is not float:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
            raise TypeError(f"{function}: `{name}` must be a real number of Python or NumPy, got {_said(value)}")
        try:
            value = float(value)
        except OverflowError:
            value = inf
    if not isfinite(value):
        raise ProblemError(f"{function}: `{name}` is {value}, but must be finite")
    return value


def read_flag(function: str, name: str, value: Any) -> bool:
    """True or False, and nothing that merely counts as one: causal=16 is a mistake for window=16."""
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{function}: `{name}` must be True or False, got {_said(value)}")


def read_scale(function: str, scale: Any, d: int, dtype: str) -> float:
    """`scale`, by default 1/sqrt(d), within the range of the arithmetic."""
    if scale is None:
        return 1.0 / sqrt(d) if d else 1.0
    factor = read_number(function, "scale", scale)
    check_range(function, "scale", factor, dtype)
    return factor


def read_softcap(function: str, softcap: Any, dtype: str) -> float | None:
    """A positive cap within the range of the arithmetic, or None."""
    if softcap is None:
        return None
    cap = read_number(function, "softcap", softcap)
    if cap <= 0:
        raise ProblemError(f"{function}: `softcap` is {cap}, but must be positive; None caps nothing")
    check_range(function, "softcap", cap, dtype, least=float(np.finfo(lse_dtype(dtype)).tiny))
    return cap


def check_range(function: str, name: str, number: float, dtype: str, said: str = "is", least: float = 0.0) -> None:
    """A number must be one of those that a dtype is computed in, and no less than `least`."""
    if not least <= abs(number) <= float(np.finfo(lse_dtype(dtype)).max):
        raise ProblemError(f"{function}: `{name}` {said} {number}, beyond the numbers that {dtype} is computed in")


def read_precision(function: str, precision: Any) -> None:
    """None is IEEE arithmetic; "tf32" needs a kernel that is not here."""
    if precision is None:
        return
    if precision == "tf32":
        raise UnsupportedError(f'{function}: `precision`="tf32" has no kernel; None computes in IEEE float32')
    raise ProblemError(f'{function}: `precision` is {precision!r}, but must be None or "tf32"')


def read_span(function: str, causal: Any, window: Any, mask: Any) -> tuple[int | None, int | None]:
    """How far a query sees (left, right) of its position: causal, window and a structured mask together."""
    left, right = read_window(function, window)
    if read_flag(function, "causal", causal):
        right = masks.narrower(right, 0)
    if isinstance(mask, masks.Window):
        left, right = masks.narrower(left, mask.left), masks.narrower(right, mask.right)
    return left, right


def read_window(function: str, window: Any) -> tuple[int | None, int | None]:
    """None, a width for both sides, or (left, right)."""
    if window is None:
        return None, None
    if isinstance(window, masks.Window):
        raise TypeError(f"{function}: `window` is {window!r}, a mask: pass it as `mask`, or window=(left, right)")
    sides = tuple(window) if isinstance(window, (tuple, list)) else (window, window)
    if len(sides) != 2:
        raise ProblemError(f"{function}: `window` is {window!r}, but must be None, an integer or (left, right)")
    left, right = (None if side is None else read_integer(function, "window", side) for side in sides)
    for width in (left, right):
        if width is not None and width < 0:
            raise ProblemError(
                f"{function}: `window` is {window!r}, but a side reaches 0 or more positions; None is unlimited"
            )
    return left, right


def read_integers(
    function: str,
    name: str,
    value: Any,
    batch: tuple[int, ...],
    home: str,
    low: int | None = None,
    high: int | None = None,
    axes: str = "the batch axes",
) -> int | Array:
    """An integer, or integers broadcast to `batch`, named `axes`; each must lie in [low, high] where given.

    An array on a device is not looked into: kernels take what lies below `low` or above `high` for that bound.
    """
    if type(value) is int or isinstance(value, np.integer):
        values: Any = np.asarray(int(value))
    elif isinstance(value, (list, tuple)):
        values = list_to_array(function, name, value)
    elif isinstance(value, (bool, np.bool_, float, complex, str)):
        raise TypeError(f"{function}: `{name}` must be an integer or an array of integers, got {_said(value)}")
    else:
        check_library(function, name, value, home)
        values = value
    if values.dtype.kind not in "iu":
        raise TypeError(not_integers(function, name, values.dtype))
    if home == "numpy" or values is not value:
        _check_range(function, name, values, low, high)
        if values.ndim == 0:
            return int(values)
    return match_broadcast(function, name, values, batch, axes)


def list_to_array(function: str, name: str, values: Any) -> Array:
    """A list of integers, nested or not, as an array."""
    try:
        return np.asarray(values, dtype=None if values else np.int64)
    except ValueError:
        raise ProblemError(f"{function}: `{name}` is a list of lists of different lengths") from None


def not_integers(function: str, name: str, dtype: Any) -> str:
    """What to say of an array of another dtype."""
    return (
        f"{function}: `{name}` must hold integers of at most 64 bits, got dtype {dtype}; "
        "convert them, for example .astype(numpy.int64)"
    )


def _check_range(function: str, name: str, values: Array, low: int | None, high: int | None) -> None:
    if low is None:
        return
    wrong = values < low
    if high is not None:
        wrong |= values > high
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        at = f" at {where}" if where else ""
        bounds = f"be {low} or more" if high is None else f"lie in {low}..{high}"
        raise ProblemError(f"{function}: `{name}` is {int(values[where])}{at}, but must {bounds}")


def _said(value: Any) -> str:
    """A short word for a value in a message: itself if it is small, else its type."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else type(value).__name__
