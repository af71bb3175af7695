"""Partial results over parts of the keys: where those of a forward pass lie, and the launch that merges any."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from cuflash._cuda.operands import NO_STRIDES, fill_axes, in_elements, launch
from cuflash._gpu_forward_plan import ForwardPlan
from cuflash._gpu_plan import Step
from cuflash._params import BATCH_AXES, MERGE, MERGE_ARRAYS
from cuflash._problem.attention import Call
from cuflash._runtime import Runtime
from cuflash.errors import ProblemError

Array = Any
Pair = tuple[Array, Array]  # an output and its lse, either of which may be None where it is to be filled

NO_PAIR = (0, 0, *NO_STRIDES, *NO_STRIDES)  # `MergePart` of none
ROW_AXES = BATCH_AXES + 2  # of an lse: the batch, heads and rows; one row has nothing to do with another


def make_room(runtime: Runtime, call: Call, plan: ForwardPlan) -> Array:
    """Numbers for the partial results of a plan, in the caller's workspace if there is one."""
    dtype, given = np.dtype(call.problem.accumulator), call.workspace
    if given is None:
        return runtime.empty((plan.workspace // dtype.itemsize,), dtype)
    function = call.problem.function
    runtime.check_current(function, workspace=given)
    if given.size < plan.workspace:
        raise ProblemError(
            f"{function}: `workspace` has {given.size} bytes, but the call takes {plan.workspace} on this device "
            "(`explain` says so too)"
        )
    if given.strides != (1,) or runtime.pointer(given) % dtype.itemsize:
        raise ProblemError(
            f"{function}: `workspace` must be contiguous and start at a multiple of {dtype.itemsize} bytes; a whole "
            "array does"
        )
    return given[: plan.workspace].view(dtype)


def split_room(plan: ForwardPlan, numbers: Array, shape: tuple[int, ...], dv: int) -> Pair:
    """The partial results (parts, *shape, dv), and the maximum and sum of each (parts, *shape, 2), in `numbers`."""
    count = plan.parts * prod(shape)
    return numbers[: count * dv].reshape(plan.parts, *shape, dv), numbers[count * dv :].reshape(plan.parts, *shape, 2)


def launch_merge(runtime: Runtime, step: Step, given: Pair | Sequence[Pair], out: Pair, sums: bool = False) -> None:
    """Fill an output (*axes, dv) and its lse (*axes), as far as they are wanted, from those of all parts.

    `given` is a pair with an axis of the parts in front, or a list of a pair for each. With `sums` there is the maximum
    of a row in place of its lse, followed by its sum, by which the output is not divided yet.
    """
    out_step = lse_step = lead = 0
    parts = len(given)
    if isinstance(given, tuple):
        parts, lead = len(given[0]), 1
        out_step, lse_step = (in_elements(array.strides[:1], array)[0] for array in given)
        given = [given]
    *rows, dv = given[0][0].shape[lead:]
    pairs = [*given, out]
    steps = [one.strides[lead : lead + len(rows)] for pair in given for one in pair]
    steps += [(0,) * len(rows) if one is None else one.strides[: len(rows)] for one in out]
    sizes, *merged = fill_axes("merge", (tuple(rows), *steps), ROW_AXES)
    strides = [_fields(pair, merged[2 * i : 2 * i + 2]) for i, pair in enumerate(pairs)]
    addresses = [[0 if one is None else runtime.pointer(one) for one in pair] for pair in pairs]
    numbers = chain.from_iterable((*address, *own) for address, own in zip(addresses[:-1], strides))
    launch(
        runtime, step, MERGE, given=(*numbers, *NO_PAIR * (MERGE_ARRAYS - len(given))), out_step=out_step,
        lse_step=lse_step, out=addresses[-1][0], lse=addresses[-1][1], out_strides=strides[-1][:7],
        lse_strides=strides[-1][7:], entries=prod(sizes[:BATCH_AXES]), batch=sizes[:BATCH_AXES], heads=sizes[-2],
        rows=sizes[-1], dv=0 if out[0] is None else dv, parts=parts, arrays=len(given),
        sums=int(sums),
    )  # fmt: skip


def _fields(pair: Pair, rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The `Strides` of an output and its lse, from those of their rows in bytes."""
    (out, lse), (out_rows, lse_rows) = pair, rows
    of_out = NO_STRIDES if out is None else in_elements((*out_rows, out.strides[-1]), out)
    of_lse = NO_STRIDES if lse is None else (*in_elements(lse_rows, lse), 0)
    return (*of_out, *of_lse)
