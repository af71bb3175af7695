"""Calls that are no attention: merging of parts, and rotary embedding."""

from __future__ import annotations

from itertools import chain
from math import prod
from typing import Any

import numpy as np

from cuflash._cuda.operands import (
    NO_STRIDES,
    Numbers,
    constant,
    dtype_name,
    empty_like,
    fill_axes,
    in_elements,
    launch,
    merge_batch,
)
from cuflash._gpu_plan import merge_step, rotary_step
from cuflash._params import BATCH_AXES, MERGE, MERGE_ARRAYS, NUMBER_KINDS, ROTARY
from cuflash._problem.transforms import RotaryCall
from cuflash._runtime import Runtime

Array = Any

ROW_AXES = BATCH_AXES + 2  # the batch, heads and rows: one row has nothing to do with another


def merge(runtime: Runtime, outs: list[Array] | Array, lses: list[Array] | Array) -> tuple[Array, Array]:
    """Output and lse of all parts together; a part that saw no key adds nothing, whatever it holds."""
    parts, stacked = len(outs), type(outs) is not list and type(lses) is not list
    if not stacked and parts > MERGE_ARRAYS:
        outs, lses, stacked = _stack(runtime, outs), _stack(runtime, lses), True
    given = [(outs[i], lses[i]) for i in range(1 if stacked else parts)]
    for i, (one, other) in enumerate(given):
        runtime.check_current("merge", **{f"outs[{i}]": one, f"lses[{i}]": other})
    shape = given[0][0].shape
    out, lse = runtime.empty(shape, given[0][0].dtype), runtime.empty(shape[:-1], given[0][1].dtype)

    pairs = [*given, (out, lse)]
    steps = [array.strides[: len(shape) - 1] for pair in pairs for array in pair]
    sizes, *merged = fill_axes("merge", (shape[:-1], *steps), ROW_AXES)
    strides = [
        (
            *in_elements(merged[2 * i], one),
            *in_elements(one.strides[-1:], one),
            *in_elements(merged[2 * i + 1], other),
            0,
        )
        for i, (one, other) in enumerate(pairs)
    ]
    numbers = [(runtime.pointer(one), runtime.pointer(other), *own) for (one, other), own in zip(given, strides)]
    numbers += [(0, 0, *NO_STRIDES, *NO_STRIDES)] * (MERGE_ARRAYS - len(given))
    whole: tuple[Array, Array] = (outs, lses)
    out_step, lse_step = (in_elements(array.strides[:1], array)[0] if stacked else 0 for array in whole)
    launch(
        runtime, merge_step(dtype_name(out), lse.size), MERGE, given=chain.from_iterable(numbers),
        out_step=out_step, lse_step=lse_step, out=runtime.pointer(out), lse=runtime.pointer(lse),
        out_strides=strides[-1][:7], lse_strides=strides[-1][7:], entries=prod(sizes[:BATCH_AXES]),
        batch=sizes[:BATCH_AXES], heads=sizes[-2], rows=sizes[-1], dv=shape[-1], parts=parts, arrays=len(given),
    )  # fmt: skip
    return out, lse


def _stack(runtime: Runtime, parts: list[Array] | Array) -> Array:
    """One array of more parts than a launch takes."""
    stack = runtime.empty((len(parts), *parts[0].shape), parts[0].dtype)
    for i in range(len(parts)):
        stack[i] = parts[i]
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
    return numbers.astype(np.int64 if numbers.dtype.kind in "iu" else np.float64)


def _numbers(runtime: Runtime, numbers: Array, strides: tuple[int, ...]) -> Numbers:
    return (runtime.pointer(numbers), *strides, NUMBER_KINDS[numbers.dtype.name])
