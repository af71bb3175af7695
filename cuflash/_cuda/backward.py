"""Backward: a pass for each gradient, which computes the scores again from the lse; nothing is added up by two blocks.

bwd_prepare   delta = sum of dout * out over dv, minus dlse
bwd_q_simt    dq: blocks own queries
bwd_kv_simt   dk, dv: blocks own keys
bwd_bias_simt, bwd_sinks    where a bias or sinks were given
sum_axes      gradients of what was broadcast over batch axes: written for all entries first, then summed
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from cuflash._cuda.operands import (
    Batch,
    Numbers,
    Packed,
    attention_fields,
    dtype_name,
    empty_like,
    fill_axes,
    find_batch,
    in_elements,
    launch,
    of_array,
    on_device,
    pack_on_device,
    reals,
)
from cuflash._gpu_plan import bias_sizes, plan_backward, sum_axes_step
from cuflash._params import (
    BACKWARD,
    BATCH_AXES,
    BWD_BIAS,
    BWD_KV,
    BWD_PREPARE,
    BWD_Q,
    BWD_SINKS,
    DTYPES,
    KEPT_AXES,
    SUM_AXES,
    SUMMED_AXES,
)
from cuflash._problem.attention import Backward, pad_batch
from cuflash._problem.packed import PackBackward
from cuflash._runtime import Runtime

Array = Any
Gradients = tuple[Array, Array, Array, Array | None, Array | None]


def backward(runtime: Runtime, given: Backward) -> Gradients:
    """dq, dk, dv, dbias and dsinks in the shapes and dtypes of the operands; None for what was not given."""
    return _Passes(runtime, given, None).run()


def backward_varlen(runtime: Runtime, given: PackBackward) -> Gradients:
    """The same of packed sequences."""
    return _Passes(runtime, given.given, pack_on_device(runtime, given.pack)).run()


class _Target(NamedTuple):
    """A gradient, and where the kernels write it."""

    result: Array  # as its operand is
    own: Array  # the result with all its axes in order, of size 1 where the operand was broadcast
    written: Array  # the same, or one that has still to be summed: of all batch entries, or of all parts of a bias


class _Passes:
    """The gradients of one call."""

    def __init__(self, runtime: Runtime, given: Backward, packed: Packed | None) -> None:
        self.runtime, self.given, self.packed = runtime, given, packed
        self.problem = p = given.call.problem
        self.operands = on_device(runtime, p.function, given.call.operands)
        results = {"dout": given.dout, "out": given.out, "lse": given.lse, "dlse": given.dlse}
        runtime.check_current(p.function, **{name: array for name, array in results.items() if array is not None})
        self.plan = plan_backward(p, runtime.gpu(), packed and packed.totals)
        self.delta = runtime.empty(given.lse.shape, p.accumulator)

    def run(self) -> Gradients:
        """dq, dk, dv, dbias, dsinks."""
        given, runtime = self.given, self.runtime
        dq, dk, dv = (self._target(array) for array in (given.q, given.k, given.v))
        dbias = None if given.bias is None else self._bias_target(given.bias)
        dsinks = None if given.sinks is None else runtime.empty(given.sinks.shape, given.sinks.dtype)
        shown = None if dbias is None else self._shown(dbias)

        batch = find_batch(
            self.problem, self.operands, given.dout, given.out, given.lse, given.dlse, self.delta, dq.written,
            dk.written, dv.written, shown,
        )  # fmt: skip
        self._prepare(batch)
        fields = self._fields(batch)
        self._queries_and_keys(batch, fields, dq.written, dk.written, dv.written)
        if shown is not None:
            self._bias(batch, fields, shown)
        if dsinks is not None:
            self._sinks(batch, dsinks)
        for target in (dq, dk, dv, dbias):
            if target is not None and target.written is not target.own:
                sum_axes(runtime, self.problem.function, target.written, target.own)
        return dq.result, dk.result, dv.result, dbias and dbias.result, dsinks

    def _target(self, operand: Array) -> _Target:
        """The gradient of q, k or v."""
        p, batch = self.problem, self.problem.batch
        result = empty_like(self.runtime, operand, operand.shape)
        own = self.given.call.canonical(result)
        if self.packed is not None or pad_batch(own.shape[:-3], batch) == batch:
            return _Target(result, own, own)
        return _Target(result, own, self.runtime.empty(batch + own.shape[-3:], p.accumulator))

    def _bias_target(self, bias: Array) -> _Target:
        sizes = bias_sizes(self.problem)
        result = empty_like(self.runtime, bias, bias.shape)
        own = result[(None,) * (len(sizes) - bias.ndim)] if bias.ndim < len(sizes) else result
        if self.plan.parts == 1:
            return _Target(result, own, own)
        return _Target(result, own, self.runtime.empty((self.plan.parts, *sizes), self.problem.accumulator))

    def _shown(self, dbias: _Target) -> Array:
        """The gradient of the bias, or the first of its parts, broadcast to the scores."""
        assert self.operands.bias is not None
        return np.broadcast_to(dbias.written[0] if self.plan.parts > 1 else dbias.own, self.operands.bias.shape)

    def _rows(self, batch: Batch) -> dict[str, Any]:
        """What counts rows that have nothing to do with each other: members of packed arrays are not told apart."""
        p = self.problem
        if self.packed is None:
            return {"batch": batch.sizes, "heads": p.hq, "rows": p.lq}
        return {"batch": (1,) * BATCH_AXES, "heads": p.hq, "rows": self.packed.totals[0]}

    def _prepare(self, batch: Batch) -> None:
        given = self.given
        dout, dout_strides = of_array(self.runtime, given.dout, batch)
        out, out_strides = of_array(self.runtime, given.out, batch)
        dlse, dlse_strides = of_array(self.runtime, given.dlse, batch, 2)
        delta, delta_strides = of_array(self.runtime, self.delta, batch, 2)
        launch(
            self.runtime, self.plan.prepare, BWD_PREPARE, dout=dout, dout_strides=dout_strides, out=out,
            out_strides=out_strides, dlse=dlse, dlse_strides=dlse_strides, delta=delta, delta_strides=delta_strides,
            dv=self.problem.dv, **self._rows(batch),
        )  # fmt: skip

    def _fields(self, batch: Batch) -> Numbers:
        """The fields of the struct `Backward`."""
        runtime = self.runtime
        fields = attention_fields(runtime, self.problem, self.operands, batch, self.packed)
        dout, dout_strides = of_array(runtime, self.given.dout, batch)
        lse, lse_strides = of_array(runtime, self.given.lse, batch, 2)
        delta, delta_strides = of_array(runtime, self.delta, batch, 2)
        return BACKWARD.values(
            problem=(*fields, self.plan.q_tiles), dout=dout, dout_strides=dout_strides, lse=lse,
            lse_strides=lse_strides, delta=delta, delta_strides=delta_strides,
        )  # fmt: skip

    def _queries_and_keys(self, batch: Batch, fields: Numbers, dq: Array, dk: Array, dv: Array) -> None:
        runtime, plan = self.runtime, self.plan
        launch(runtime, plan.q, BWD_Q, given=fields, dq=reals(runtime, dq, batch))
        launch(
            runtime, plan.kv, BWD_KV, given=fields, dk=reals(runtime, dk, batch), dv=reals(runtime, dv, batch),
            hk=self.problem.hk, kv_tiles=plan.kv_tiles, k_slices=plan.k_slices, v_slices=plan.v_slices,
        )  # fmt: skip

    def _bias(self, batch: Batch, fields: Numbers, shown: Array) -> None:
        assert self.plan.bias is not None
        sizes = bias_sizes(self.problem)
        heads, rows, cols = sizes[-3:]
        launch(
            self.runtime, self.plan.bias, BWD_BIAS, given=fields, dbias=reals(self.runtime, shown, batch),
            part_stride=prod(sizes), batch=batch.sizes_of(sizes[:-3]), heads=heads, rows=rows, cols=cols,
            parts=self.plan.parts,
        )  # fmt: skip

    def _sinks(self, batch: Batch, dsinks: Array) -> None:
        assert self.plan.sinks is not None
        lse, lse_strides = of_array(self.runtime, self.given.lse, batch, 2)
        delta, delta_strides = of_array(self.runtime, self.delta, batch, 2)
        launch(
            self.runtime, self.plan.sinks, BWD_SINKS, lse=lse, lse_strides=lse_strides, delta=delta,
            delta_strides=delta_strides, sinks=reals(self.runtime, self.given.sinks, batch, 1),
            dsinks=reals(self.runtime, dsinks, batch, 1), **self._rows(batch),
        )  # fmt: skip


def sum_axes(runtime: Runtime, function: str, source: Array, target: Array) -> None:
    """Sum `source` over the axes where `target` has size 1 or, at the front, none at all."""
    lead = source.ndim - target.ndim
    sizes, strides = (1,) * lead + target.shape, (0,) * lead + target.strides
    axes = list(zip(source.shape, sizes, source.strides, strides))
    kept = [(size, step, own_step) for size, own, step, own_step in axes if size == own] or [(1, 0, 0)]
    summed = [(size, step) for size, own, step, _ in axes if size != own]
    kept_sizes, steps, own_steps = fill_axes(function, tuple(zip(*kept)), KEPT_AXES)
    summed_sizes, summed_steps = fill_axes(function, tuple(zip(*summed)), SUMMED_AXES)
    launch(
        runtime, sum_axes_step(dtype_name(source), target.size), SUM_AXES, in_=runtime.pointer(source),
        out=runtime.pointer(target), elements=target.size, sizes=kept_sizes,
        in_strides=in_elements(steps, source), out_strides=in_elements(own_steps, target),
        summed_sizes=summed_sizes, summed_strides=in_elements(summed_steps, source),
        dtype=DTYPES[dtype_name(target)],
    )  # fmt: skip
