"""Named axes: every size has a letter, and two arrays that disagree about one are told which and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from cuflash.errors import ProblemError

Spec = tuple[str, tuple[int, ...], tuple[str, ...]]


@lru_cache(maxsize=1024)
def match(function: str, *specs: Spec) -> Mapping[str, int]:
    """Sizes of the named trailing axes of (name, shape, axes) triples, e.g. ("q", (8, 5, 64), ("hq", "lq", "d"))."""
    dims: dict[str, int] = {}
    for name, shape, axes in specs:
        if len(shape) < len(axes):
            raise ProblemError(
                f"{function}: `{name}` must end in the axes ({', '.join(axes)}), got {len(shape)} axes: shape {shape}"
            )
        for axis, size in zip(axes, shape[len(shape) - len(axes) :]):
            if dims.setdefault(axis, size) != size:
                raise ProblemError(_disagreement(function, name, axis, specs))
    return dims


def _disagreement(function: str, name: str, axis: str, specs: tuple[Spec, ...]) -> str:
    shapes = {spec_name: (shape, axes) for spec_name, shape, axes in specs}
    other = next(spec_name for spec_name, _, axes in specs if axis in axes)

    def size(of: str) -> int:
        shape, axes = shapes[of]
        return shape[len(shape) - len(axes) + axes.index(axis)]

    return (
        f"{function}: `{name}` has {axis}={size(name)}, but `{other}` has {axis}={size(other)} "
        f"(shapes {shapes[name][0]} and {shapes[other][0]})"
    )


def match_batch(function: str, **leading: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that leading axes, given by array name, broadcast to."""
    shapes = list(leading.values())
    if all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = ", ".join(f"{shape} of `{name}`" for name, shape in leading.items())
        raise ProblemError(f"{function}: the leading axes do not broadcast: {listed}") from None


def match_exact(function: str, name: str, shape: tuple[int, ...], expected: tuple[int, ...], axes: str) -> None:
    """`shape` must be `expected`, which `axes` names."""
    if shape != expected:
        raise ProblemError(f"{function}: `{name}` has shape {shape}, but {axes} is {expected}")


def match_broadcast(function: str, name: str, array: Any, target: tuple[int, ...], axes: str) -> Any:
    """`array` as a view broadcast to `target`, which `axes` names."""
    shape = array.shape
    if shape == target:
        return array
    fits = len(shape) <= len(target) and all(
        size in (1, goal) for size, goal in zip(shape, target[len(target) - len(shape) :])
    )
    if not fits:
        raise ProblemError(f"{function}: `{name}` has shape {shape}, which does not broadcast to {axes} = {target}")
    return np.broadcast_to(array, target)
