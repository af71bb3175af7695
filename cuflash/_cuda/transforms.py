"""Calls that are no attention: merging of parts, and rotary embedding."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from cuflash._cuda.operands import (
    Numbers,
    constant,
    converted,
    dtype_name,
    empty_like,
    in_elements,
    launch,
    merge_batch,
)
from cuflash._cuda.parts import launch_merge
from cuflash._gpu_plan import merge_step, rotary_step
from cuflash._params import BATCH_AXES, MERGE_ARRAYS, NUMBER_KINDS, ROTARY
from cuflash._problem.transforms import RotaryCall
from cuflash._runtime import Runtime

Array = Any


def merge(runtime: Runtime, outs: list[Array] | Array, lses: list[Array] | Array) -> tuple[Array, Array]:
    """Output and lse of all parts together; a part that saw no key adds nothing, whatever it holds."""
    parts, stacked = len(outs), type(outs) is not list and type(lses) is not list
    if not stacked and parts > MERGE_ARRAYS:
        outs, lses, stacked = _stack(runtime, outs), _stack(runtime, lses), True
    pairs = [(outs[i], lses[i]) for i in range(1 if stacked else parts)]
    for i, (one, other) in enumerate(pairs):
        runtime.check_current("merge", **{f"outs[{i}]": one, f"lses[{i}]": other})
    out, lse = (runtime.empty(array.shape, array.dtype) for array in pairs[0])
    launch_merge(runtime, merge_step(dtype_name(out), lse.size), (outs, lses) if stacked else pairs, (out, lse))
    return out, lse


def _stack(runtime: Runtime, parts: list[Array] | Array) -> Array:
    """One array of more parts than a launch takes."""
    stack = runtime.empty((len(parts), *parts[0].shape), parts[0].dtype)
    for i in range(len(parts)):
        runtime.assign(stack[i], parts[i])
    return stack


def rotary(runtime: Runtime, call: RotaryCall) -> Array:
    """The turned array, in `call.out` or in a new one; angles are taken in float64."""
    arrays = {"x": call.x, "positions": call.positions, "freqs": call.freqs, "out": call.out}
    lying = {name: x for name, x in arrays.items() if x is not None and type(x) is not np.ndarray}
    runtime.check_current("rotary", **lying)
    out = empty_like(runtime, call.x, call.x.shape) if call.out is None else call.out
    x, target = call.canonical(call.x), call.canonical(out)
    positions, freqs = _numbers_on_device(runtime, call.positions), _numbers_on_device(runtime, call.freqs)
    batch = merge_batch("rotary", x.shape[:-3], ((x, 3), (target, 3), (positions, 2)))
    heads, rows, d = x.shape[-3:]
    launch(
        runtime, rotary_step(dtype_name(x), prod(batch.sizes), heads, rows, d, call.dim), ROTARY,
        x=runtime.pointer(x), out=runtime.pointer(target), x_strides=batch.strides(x),
        out_strides=batch.strides(target), positions=_numbers(runtime, positions, batch.strides(positions, 2)),
        freqs=_numbers(runtime, freqs, (*(0,) * (BATCH_AXES + 2), *in_elements(freqs.strides, freqs))),
        entries=prod(batch.sizes), batch=batch.sizes, heads=heads, rows=rows, d=d, dim=call.dim,
        interleaved=int(call.interleaved),
    )  # fmt: skip
    return out


def _numbers_on_device(runtime: Runtime, numbers: Array) -> Array:
    """Real numbers on the device, of a dtype that kernels read."""
    if type(numbers) is np.ndarray:
        return constant(runtime, numbers)
    if numbers.dtype.name in NUMBER_KINDS:
        return numbers
    return converted(runtime, numbers, np.int64 if numbers.dtype.kind in "iu" else np.float64)


def _numbers(runtime: Runtime, numbers: Array, strides: tuple[int, ...]) -> Numbers:
    return (runtime.pointer(numbers), *strides, NUMBER_KINDS[numbers.dtype.name])
