"""Forward: one launch for out = softmax(scores) v and its lse; the weights take one for the maximum and the sum of each
row, and one for themselves.
"""

from __future__ import annotations

from typing import Any

from cuflash._cuda.operands import (
    Batch,
    Numbers,
    attention_fields,
    empty_like,
    find_batch,
    launch,
    of_array,
    on_device,
    pack_on_device,
)
from cuflash._gpu_plan import ForwardPlan, plan_forward, plan_weights
from cuflash._params import FWD, WEIGHTS
from cuflash._problem.attention import Call
from cuflash._problem.packed import Pack
from cuflash._runtime import Runtime

Array = Any


def forward(runtime: Runtime, call: Call) -> tuple[Array, Array | None]:
    """Output and lse of a call, in the arrays that it brought or in new ones; an lse that nobody wants is None."""
    problem = call.problem
    plan = plan_forward(problem, runtime.gpu())
    operands = on_device(runtime, problem.function, call.operands)
    out, lse = _outputs(runtime, call)
    if plan.forward.grid:
        rows, row_lse = call.canonical(out), None if lse is None else call.canonical_lse(lse)
        batch = find_batch(problem, operands, rows, row_lse)
        fields = attention_fields(runtime, problem, operands, batch)
        _run(runtime, plan, fields, batch, rows, row_lse)
    return out, lse


def forward_varlen(runtime: Runtime, pack: Pack) -> tuple[Array, Array | None]:
    """Output (total_q, hq, dv) and lse (hq, total_q) of a pack."""
    call = pack.call
    problem = call.problem
    operands = on_device(runtime, problem.function, call.operands)
    packed = pack_on_device(runtime, pack)
    plan = plan_forward(problem, runtime.gpu(), packed.totals)
    out, lse = _outputs(runtime, call)
    if plan.forward.grid:
        batch = find_batch(problem, operands)
        fields = attention_fields(runtime, problem, operands, batch, packed)
        _run(runtime, plan, fields, batch, call.canonical(out), lse)
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
        _run(runtime, plan.forward, fields, batch, None, top, total)
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


def _run(
    runtime: Runtime, plan: ForwardPlan, fields: Numbers, batch: Batch, out: Array | None, lse: Array | None,
    total: Array | None = None,
) -> None:  # fmt: skip
    """Fill out (*batch, hq, lq, dv) and lse (*batch, hq, lq), as far as they are wanted.

    Where `total` is given it gets the sum of each row and `lse` its maximum; both have the same strides.
    """
    if out is not None and not out.size:
        out = None
    if out is None and lse is None:
        return
    address, strides = of_array(runtime, out, batch)
    lse_address, lse_strides = of_array(runtime, lse, batch, 2)
    launch(
        runtime, plan.forward, FWD, problem=(*fields, plan.q_tiles), out=address, out_strides=strides,
        lse=lse_address, lse_strides=lse_strides, sum=0 if total is None else runtime.pointer(total),
    )  # fmt: skip
