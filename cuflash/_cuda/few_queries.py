"""Attention of few queries over many keys by the kernels of decoding: keys and values are told as a cache in which each
batch entry has its row.
"""

from __future__ import annotations

from math import prod
from typing import Any

from cuflash._cuda.operands import NO_TOKENS, Batch, launch, of_array, reals, side
from cuflash._cuda.parts import Pair, launch_merge
from cuflash._gpu_forward_plan import ForwardPlan
from cuflash._params import DECODE, FARTHEST
from cuflash._problem.attention import Operands, Problem
from cuflash._runtime import Runtime

Array = Any


def launch_few_queries(
    runtime: Runtime, plan: ForwardPlan, problem: Problem, operands: Operands, results: Pair, room: Array | None
) -> None:
    """Fill out (*batch, hq, lq, dv) and lse, as far as they are wanted; `room` is for the partial results."""
    p, o, pointer = problem, operands, runtime.pointer
    b, count = prod(p.batch), plan.parts * prod(p.batch) * p.hq * p.lq
    entries = Batch((1, 1, 1, b))
    out_at, out_strides = of_array(runtime, results[0], entries)
    lse_at, lse_strides = of_array(runtime, results[1], entries, 2)
    outs, sums = (None, None) if room is None else (room[: count * p.dv], room[count * p.dv :])
    cache = (
        pointer(o.k), pointer(o.v), 0, 0, *_token_strides(o.k, entries), *_token_strides(o.v, entries), *NO_TOKENS,
        *NO_TOKENS, 0, 0, b, p.lk, 1,
    )  # fmt: skip
    launch(
        runtime, plan.forward, DECODE, q=pointer(o.q), q_strides=entries.strides(o.q), cache=cache, seqs=0, lengths=0,
        q_offset=max(-FARTHEST // 2, min(o.q_offset, FARTHEST // 2)), bias=reals(runtime, o.bias, entries),
        slopes=reals(runtime, o.slopes, entries, 1), sinks=reals(runtime, o.sinks, entries, 1), left=side(p.left),
        right=side(p.right), scale=p.scale, softcap=p.softcap or 0.0, out=out_at, out_strides=out_strides, lse=lse_at,
        lse_strides=lse_strides, part_outs=0 if outs is None else pointer(outs),
        part_sums=0 if sums is None else pointer(sums), tickets=0, b=b, hq=p.hq, hk=p.hk, lq=p.lq,
        d=p.d, dv=p.dv, part_keys=plan.part_keys, splits=0, parts=plan.parts, listed=0,
        limit=max(0, min(o.kv_lengths, p.lk)),
    )  # fmt: skip
    if plan.merge is None or outs is None or sums is None:
        return
    rows = (b, p.hk, p.lq, p.group, plan.parts)  # of partial results, which lie in the order of the tiles' rows
    outs = outs.reshape(*rows, p.dv).transpose(4, 0, 1, 3, 2, 5)
    maxima = sums.reshape(*rows, 2)[..., 0].transpose(4, 0, 1, 3, 2)
    shape = (b, p.hk, p.group, p.lq)
    out, lse = (x if x is None else x.reshape(*shape, *x.shape[len(p.batch) + 2 :]) for x in results)
    launch_merge(runtime, plan.merge, (outs, maxima), (out, lse), sums=True)


def _token_strides(array: Array, entries: Batch) -> tuple[int, ...]:
    """The fields of `TokenStrides` for keys or values (*batch, hk, lk, dim)."""
    *_, row, head, token, col = entries.strides(array)
    return (row, token, head, col)
