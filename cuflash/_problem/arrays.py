"""Which arrays are welcome: their library, their dtype, and what may be written into."""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash._problem.match import match_exact
from cuflash._problem.views import overlap
from cuflash.errors import ProblemError

Array = Any  # numpy.ndarray, or an array type that a backend has been registered for

_LIBRARIES: dict[type, str] = {np.ndarray: "numpy"}
_FLOAT_NAMES: dict[np.dtype[Any], str] = {np.dtype(name): name for name in ("float16", "float32", "float64")}
FLOATS = "float16, bfloat16, float32 or float64"


def register(kind: type, home: str) -> None:
    """Make a type of array known as that of the library `home`: arrays of a device, which are never read here."""
    _LIBRARIES[kind] = home


def known_library(kind: type) -> str | None:
    """Name of the library of a type of array that has been met before."""
    return _LIBRARIES.get(kind)


def library(function: str, name: str, array: Array) -> str:
    """Name of the library an array belongs to; a TypeError for anything that is no array."""
    kind = type(array)
    known = _LIBRARIES.get(kind)
    if known is None:
        _LIBRARIES[kind] = known = _identify(function, name, array)
    return known


def _identify(function: str, name: str, array: Array) -> str:
    kind = type(array)
    root = kind.__module__.partition(".")[0]
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{function}: `{name}` is a numpy.ma.MaskedArray, whose hidden entries would be read; "
            "pass its .data, and what to hide as a boolean `mask` (True = takes part)"
        )
    if isinstance(array, np.matrix):
        raise TypeError(f"{function}: `{name}` is a numpy.matrix; pass numpy.asarray({name})")
    if isinstance(array, np.ndarray):
        return "numpy"
    if root == "cupy" and kind.__name__ == "ndarray":
        return "cupy"
    plain = isinstance(array, (list, tuple, int, float, np.generic))
    way_out = "use numpy.asarray" if plain else "convert it to one first"
    raise TypeError(f"{function}: `{name}` must be a numpy.ndarray or cupy.ndarray, got {_type_name(kind)}; {way_out}")


def _type_name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def same_library(function: str, first: str, **arrays: Array) -> str:
    """All arrays must belong to the library of the one named `first`; its name is returned."""
    home = library(function, first, arrays[first])
    for name, array in arrays.items():
        if library(function, name, array) != home:
            check_library(function, name, array, home, first)
    return home


def check_optional(function: str, home: str, first: str, **arrays: Any) -> None:
    """Each array that is not None must belong to the library `home` of the one named `first`."""
    for name, array in arrays.items():
        if array is not None:
            check_library(function, name, array, home, first)


def check_library(function: str, name: str, array: Array, home: str, first: str = "q") -> None:
    """An array must belong to the library `home` of the one named `first`."""
    other = library(function, name, array)
    if other != home:
        raise TypeError(
            f"{function}: `{first}` is a {home} array, but `{name}` is a {other} array; "
            "nothing is moved between host and device silently: convert with cupy.asarray or cupy.asnumpy"
        )


def float_name(function: str, name: str, array: Array) -> str:
    """The name of an array's dtype; a TypeError for unsupported ones and for foreign byte order."""
    dtype = array.dtype
    known = known_float(dtype)
    if known is not None:
        return known
    if dtype.name in _FLOAT_NAMES.values():
        raise TypeError(
            f"{function}: `{name}` has dtype {dtype.str} in foreign byte order; "
            f"convert it with {name}.astype({name}.dtype.newbyteorder('='))"
        )
    raise TypeError(
        f"{function}: `{name}` has dtype {dtype}, but must be {FLOATS}; "
        f"convert it, for example {name}.astype(numpy.float32)"
    )


def known_float(dtype: np.dtype[Any]) -> str | None:
    """The name of a supported dtype, else None."""
    known = _FLOAT_NAMES.get(dtype)
    if known is None and dtype.name == "bfloat16":
        known = _FLOAT_NAMES[dtype] = "bfloat16"
    return known


def same_float(function: str, first: str, **arrays: Array) -> str:
    """All arrays must have the dtype of the one named `first`; returns its name."""
    name = float_name(function, first, arrays[first])
    dtype = arrays[first].dtype
    for other, array in arrays.items():
        if array.dtype != dtype:
            float_name(function, other, array)
            raise TypeError(
                f"{function}: `{other}` has dtype {array.dtype}, but `{first}` has {dtype}; "
                f"nothing is promoted silently: convert one, for example {other}.astype({first}.dtype)"
            )
    return name


def float_or_float32(function: str, name: str, array: Array, first: str, dtype: Any) -> None:
    """An operand that may be float32 beside any dtype of the array named `first`."""
    if array.dtype == dtype or array.dtype == np.float32:
        return
    raise TypeError(f"{function}: `{name}` has dtype {array.dtype}, but must be {dtype} as `{first}` is, or float32")


def lse_dtype(name: str) -> Any:
    """dtype of a log-sum-exp: float32, and float64 for float64."""
    return np.float64 if name == "float64" else np.float32


def check_output(
    function: str, name: str, array: Array, shape: tuple[int, ...], axes: str, dtype: Any, **inputs: Array
) -> None:
    """An array handed in to be written: exact shape and dtype, writeable, sharing no memory with `inputs`."""
    match_exact(function, name, array.shape, shape, axes)
    if array.dtype != dtype:
        raise TypeError(f"{function}: `{name}` has dtype {array.dtype}, but must be {np.dtype(dtype)}")
    if not getattr(array.flags, "writeable", True):  # CuPy has no such flag
        raise ProblemError(f"{function}: `{name}` is read-only; pass an array that may be written")
    if array.size and any(stride == 0 and size > 1 for stride, size in zip(array.strides, array.shape)):
        raise ProblemError(f"{function}: `{name}` overlaps itself in memory (strides {array.strides})")
    for other, given in inputs.items():
        if given is not None and overlap(array, given):
            raise ProblemError(f"{function}: `{name}` overlaps `{other}` in memory; pass an array of its own")
