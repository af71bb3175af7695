"""Forward: one launch for out = softmax(scores) v and its lse, and one to merge parts where keys are cut; the weights
take one for the maximum and the sum of each row, and one for themselves.
"""

from __future__ import annotations

from typing import Any

from cuflash._cuda.few_queries import launch_few_queries
from cuflash._cuda.operands import (
    Batch,
    Numbers,
    Packed,
    attention_fields,
    empty_like,
    find_batch,
    in_elements,
    launch,
    of_array,
    on_device,
    pack_on_device,
)
from cuflash._cuda.parts import Pair, launch_merge, make_room, split_room
from cuflash._gpu_forward_plan import ForwardPlan, plan_forward, plan_weights
from cuflash._params import FWD, WEIGHTS
from cuflash._problem.attention import Call, Operands
from cuflash._problem.packed import Pack
from cuflash._runtime import Runtime

Array = Any


def forward(runtime: Runtime, call: Call) -> tuple[Array, Array | None]:
    """Output and lse of a call, in the arrays that it brought or in new ones; an lse that nobody wants is None."""
    problem = call.problem
    plan = plan_forward(problem, runtime.gpu(), with_lse=call.wants_lse)
    operands = on_device(runtime, problem.function, call.operands)
    out, lse = _outputs(runtime, call)
    _fill(runtime, call, plan, operands, None, call.canonical(out), None if lse is None else call.canonical_lse(lse))
    return out, lse


def forward_varlen(runtime: Runtime, pack: Pack) -> tuple[Array, Array | None]:
    """Output (total_q, hq, dv) and lse (hq, total_q) of a pack."""
    call = pack.call
    operands = on_device(runtime, call.problem.function, call.operands)
    packed = pack_on_device(runtime, pack)
    plan = plan_forward(call.problem, runtime.gpu(), packed.totals)
    out, lse = _outputs(runtime, call)
    _fill(runtime, call, plan, operands, packed, call.canonical(out), lse)
    return out, lse


def weights(runtime: Runtime, call: Call, shape: tuple[int, ...], out: Array | None) -> Array:
    """The softmax itself, (..., hq, lq, lk)."""
    problem = call.problem
    plan = plan_weights(problem, runtime.gpu())
    operands = on_device(runtime, problem.function, call.operands)
    if out is None:
        out = runtime.empty(shape, call.like.dtype)
    else:
        runtime.check_current(problem.function, out=out)
    if plan.weights.grid:
        filled = out[None] if call.form == "flat" else out
        top, total = (runtime.empty(filled.shape[:-1], problem.accumulator) for _ in range(2))
        batch = find_batch(problem, operands, filled, top)
        fields = attention_fields(runtime, problem, operands, batch)
        _launch_tiles(runtime, plan.forward, fields, batch, (None, top), total)
        launch(
            runtime, plan.weights, WEIGHTS, problem=(*fields, plan.q_tiles), max=runtime.pointer(top),
            sum=runtime.pointer(total), row_strides=batch.strides(top, 2), weights=runtime.pointer(filled),
            weights_strides=batch.strides(filled), kv_tiles=plan.kv_tiles,
        )  # fmt: skip
    return out


def _outputs(runtime: Runtime, call: Call) -> tuple[Array, Array | None]:
    """The arrays to be filled."""
    problem, out, lse = call.problem, call.out, call.lse
    if out is None:
        out = empty_like(runtime, call.like, call.out_shape)
    else:
        runtime.check_current(problem.function, out=out)
    if lse is not None:
        runtime.check_current(problem.function, lse_out=lse)
    elif call.return_lse:
        lse = runtime.empty(call.lse_shape, problem.accumulator)
    return out, lse


def _fill(
    runtime: Runtime, call: Call, plan: ForwardPlan, operands: Operands, packed: Packed | None, out: Array,
    lse: Array | None,
) -> None:  # fmt: skip
    """Fill out (*batch, hq, lq, dv), or (hq, total_q, dv), and lse, as far as they are wanted."""
    results = (out if out.size else None, lse)
    if not plan.forward.grid or (results[0] is None and lse is None):
        return
    problem, shape, dv = call.problem, out.shape[:-1], out.shape[-1]
    room = make_room(runtime, call, plan) if plan.merge else None
    if not plan.q_tiles:
        launch_few_queries(runtime, plan, problem, operands, results, room)
        return
    batch = find_batch(problem, operands, *results)
    fields = attention_fields(runtime, problem, operands, batch, packed)
    if plan.merge is None:
        _launch_tiles(runtime, plan, fields, batch, results)
        return
    outs, sums = split_room(plan, room, shape, dv)
    parts = (outs, sums[..., 0])
    _launch_tiles(runtime, plan, fields, batch, parts, sums[..., 1])
    launch_merge(runtime, plan.merge, parts, results, sums=True)


def _launch_tiles(
    runtime: Runtime, plan: ForwardPlan, fields: Numbers, batch: Batch, results: Pair, total: Array | None = None
) -> None:
    """Fill an output and its lse, or those of all parts.

    Where `total` is given it gets the sum of each row and the lse its maximum; both have the same strides.
    """
    out_step = lse_step = 0
    out, lse = results
    if plan.merge:
        out_step, lse_step = (in_elements(array.strides[:1], array)[0] for array in results)
        out, lse = out[0], lse[0]
    address, strides = of_array(runtime, out, batch)
    lse_address, lse_strides = of_array(runtime, lse, batch, 2)
    launch(
        runtime, plan.forward, FWD, problem=(*fields, plan.q_tiles), out=0 if plan.merge else address,
        part_outs=address if plan.merge else 0, out_strides=strides, lse=lse_address, lse_strides=lse_strides,
        sum=0 if total is None else runtime.pointer(total), out_step=out_step, lse_step=lse_step, parts=plan.parts,
        part_keys=plan.part_keys,
    )  # fmt: skip
