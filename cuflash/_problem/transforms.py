"""Calls that are no attention: rotary embedding and merging."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cuflash._problem import arrays, options
from cuflash._problem.arrays import Array
from cuflash._problem.attention import heads_first
from cuflash._problem.match import match_broadcast, match_exact
from cuflash.errors import ProblemError


class RotaryCall(NamedTuple):
    """A checked rotation."""

    x: Array  # as the caller gave it
    positions: Array  # (..., 1, l): broadcasts against the heads; float64, on a device any real numbers
    freqs: Array  # (dim / 2,) radians per position; likewise
    dim: int
    interleaved: bool
    home: str
    form: str
    out: Array | None

    def canonical(self, array: Array) -> Array:
        """A caller's array as a view (..., heads, length, dim)."""
        return heads_first(array, self.form)


def rotary_call(
    function: str, x: Array, positions: Any, *, layout: Any, dim: Any, base: Any, freqs: Any, interleaved: Any, out: Any
) -> RotaryCall:
    """Check and normalise `rotary`."""
    home = arrays.same_library(function, "x", x=x)
    arrays.check_optional(function, home, "x", out=out)
    arrays.float_name(function, "x", x)
    form = options.read_layout(function, layout)
    if x.ndim < 2:
        raise ProblemError(f"{function}: `x` must have 2 axes or more, got shape {x.shape}")
    form = "flat" if x.ndim == 2 else form
    leading = (x.shape[0],) if form == "flat" else (*x.shape[:-3], x.shape[-3 if form == "blhd" else -2])
    turned = x.shape[-1] if dim is None else options.read_integer(function, "dim", dim)
    if turned % 2 or not 0 <= turned <= x.shape[-1]:
        raise ProblemError(
            f"{function}: `dim` is {turned}, but must be even and lie in 0..{x.shape[-1]}, x's last axis"
        )
    angles = _read_freqs(function, freqs, base, turned, home)

    given = _read_numbers(function, "positions", positions, home)
    where = _in_float64(match_broadcast(function, "positions", given, leading, "(..., l)"), home)[..., None, :]
    if out is not None:
        beside = {"x": x, "positions": given} if home == "numpy" or type(given) is not np.ndarray else {"x": x}
        arrays.check_output(function, "out", out, x.shape, "x", x.dtype, **beside)
    paired = options.read_flag(function, "interleaved", interleaved)
    return RotaryCall(x, where, angles, turned, paired, home, form, out)


def _read_numbers(function: str, name: str, numbers: Any, home: str) -> Array:
    """Real numbers as an array: of the library `home`, or NumPy's where they are no array yet."""
    if home == "numpy" or isinstance(numbers, (list, tuple, range, int, float, np.generic)):
        numbers = np.asarray(numbers)
    else:
        arrays.check_library(function, name, numbers, home, "x")
    if numbers.dtype.kind not in "iuf":
        raise TypeError(f"{function}: `{name}` must hold real numbers, got dtype {numbers.dtype}")
    return numbers


def _in_float64(numbers: Array, home: str) -> Array:
    return numbers.astype(np.float64) if home == "numpy" or type(numbers) is np.ndarray else numbers


def _read_freqs(function: str, freqs: Any, base: Any, dim: int, home: str) -> Array:
    if freqs is None:
        number = options.read_number(function, "base", base)
        if number <= 0:
            raise ProblemError(f"{function}: `base` is {number}, but must be positive")
        return number ** (-np.arange(0, dim, 2) / max(dim, 1))
    values = _read_numbers(function, "freqs", freqs, home)
    match_exact(function, "freqs", values.shape, (dim // 2,), "(dim / 2,)")
    return _in_float64(values, home)


class MergeCall(NamedTuple):
    """Checked parts: outputs (..., dv) and lses (...), as a list of each or stacked along the first axis."""

    outs: list[Array] | Array
    lses: list[Array] | Array
    home: str


def merge_call(function: str, outs: Any, lses: Any, axis: Any) -> MergeCall:
    """Check and normalise `merge`; parts may be stacked along `axis`, or come as sequences."""
    axis = options.read_integer(function, "axis", axis)
    out_parts, lse_parts = _read_parts(function, "outs", outs, axis, 1), _read_parts(function, "lses", lses, axis, 0)
    if not len(out_parts):
        raise ProblemError(f"{function}: `outs` is empty, but there must be at least one part")
    if len(out_parts) != len(lse_parts):
        raise ProblemError(f"{function}: `outs` has {len(out_parts)} parts, but `lses` has {len(lse_parts)}")
    home = arrays.same_library(function, "outs", outs=out_parts[0], lses=lse_parts[0])
    dtype = arrays.lse_dtype(arrays.float_name(function, "outs", out_parts[0]))
    stacked = type(out_parts) is not list and type(lse_parts) is not list
    for number in range(1 if stacked else len(out_parts)):
        out, lse = out_parts[number], lse_parts[number]
        arrays.same_library(function, "outs[0]", **{"outs[0]": out_parts[0], f"outs[{number}]": out})
        match_exact(function, f"outs[{number}]", out.shape, out_parts[0].shape, "outs[0]")
        match_exact(function, f"lses[{number}]", lse.shape, out_parts[0].shape[:-1], "outs[0] without its last axis")
        if out.dtype != out_parts[0].dtype or lse.dtype != dtype:
            raise TypeError(
                f"{function}: part {number} has dtypes {out.dtype} and {lse.dtype}, "
                f"but must have {out_parts[0].dtype} and {np.dtype(dtype)}"
            )
    return MergeCall(out_parts, lse_parts, home)


def _read_parts(function: str, name: str, parts: Any, axis: int, trailing: int) -> list[Array] | Array:
    """Parts as `MergeCall` has them; a negative axis counts from the last axis of the lse's shape."""
    if isinstance(parts, (list, tuple)):
        for number, part in enumerate(parts):
            arrays.library(function, f"{name}[{number}]", part)
            if part.ndim < trailing:
                raise ProblemError(f"{function}: `{name}[{number}]` has shape {part.shape}, but needs a last axis dv")
        if axis:
            raise ProblemError(f"{function}: `axis` is {axis}, but `{name}` is a sequence: its parts are already apart")
        return list(parts)
    arrays.library(function, name, parts)
    axes = parts.ndim - trailing
    if not -axes <= axis < axes:
        raise ProblemError(f"{function}: `axis` is {axis}, but `{name}` has shape {parts.shape}")
    axis %= axes
    return parts.transpose((axis, *(other for other in range(parts.ndim) if other != axis)))
