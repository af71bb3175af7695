"""Forward: out = softmax(scores) v and its lse, block by block; decoding over a cache is the same walk over its parts.

A block is a tile of query rows, with as many heads of one group as fit. It walks the keys it can see in tiles and keeps
a running softmax, so no more than one score tile per thread ever exists. Where a block's keys are cut into parts, the
parts run as blocks of their own, and whoever finishes the last of them merges all in order: the bits are the same
whoever ran what.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from cuflash._device import cpu_device
from cuflash._numpy import threads
from cuflash._numpy.online_softmax import OnlineSoftmax
from cuflash._numpy.scores import Block, QueryBlock, as_operand, visible_keys
from cuflash._plan import CpuPlan, make_plan
from cuflash._problem.attention import Call, Operands, Problem

Array = Any


def forward(call: Call) -> tuple[Array, Array]:
    """Output and lse of a call, in the arrays that it brought or in new ones."""
    problem = call.problem
    out, lse = call.out, call.lse
    if out is None:
        out = empty_like(call.like, call.out_shape)
    if lse is None:
        lse = np.empty(call.lse_shape, problem.accumulator)
    run_forward(problem, call.operands, call.canonical(out), call.canonical_lse(lse))
    return out, lse


decode = forward  # the parts come from the plan, the lengths from the operands


def empty_like(like: Array, shape: tuple[int, ...]) -> Array:
    """A new array in the memory order of `like`, so that undoing a transpose of it is free."""
    return np.empty_like(like, shape=shape, subok=False)


def run_forward(problem: Problem, operands: Operands, out: Array, lse: Array) -> None:
    """Fill out (*batch, hq, lq, dv) and lse (*batch, hq, lq)."""
    plan = make_plan(problem, cpu_device())
    blocks = walk(problem, operands, plan)
    blocks.sort(key=lambda block: block.keys.start - block.keys.stop)  # the longest first
    work = [part for block in blocks for part in _cut(plan, block)]

    def make_worker() -> Any:
        scratch = np.empty(plan.score_tile, problem.accumulator)

        def worker(item: tuple[Block, int, _Merger | None]) -> None:
            block, part, merger = item
            state = _attend(QueryBlock(problem, operands, block), tiles(block.keys, plan.kv_tile), scratch)
            whole = merger.add(part, state) if merger else state
            if whole:
                _add_sinks(whole, operands.sinks, block)
                place = block.place
                whole.finish(out[place], lse[place])

        return worker

    threads.run(work, make_worker, plan.threads)


def _attend(queries: QueryBlock, key_tiles: list[slice], scratch: Array) -> OnlineSoftmax:
    """The running softmax of a block after all of some tiles of keys."""
    state = None
    for keys in key_tiles:
        k, v = (as_operand(array[..., keys, :], queries.dtype) for array in (queries.k, queries.v))
        scores = queries.scores(k, keys, scratch)
        if state is None:
            state = OnlineSoftmax.of_tile(scores, v)
        else:
            state.step(scores, v)
    return state or OnlineSoftmax(queries.q.shape[:-1], queries.v.shape[-1], queries.dtype)


def _add_sinks(state: OnlineSoftmax, sinks: Array | None, block: Block) -> None:
    if sinks is not None:
        logits = sinks[block.heads].astype(state.total.dtype)
        state.add_sinks(np.repeat(logits, block.rows.stop - block.rows.start).reshape(state.total.shape[-3:]))


def walk(problem: Problem, operands: Operands, plan: CpuPlan) -> list[Block]:
    """Every block of a problem once."""
    heads = tiles(slice(0, problem.hq), plan.heads)
    rows = tiles(slice(0, problem.lq), plan.q_tile)
    return [
        Block(entry, entries, some_heads, some_rows, visible_keys(problem, operands, entry, some_rows))
        for entry, entries in walk_batch(problem, plan.entries)
        for some_heads in heads
        for some_rows in rows
    ]


def walk_batch(problem: Problem, entries: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """The batch in runs of up to `entries` along its last axis: the index of the first, and how many."""
    if not problem.batch:
        yield (), 1
        return
    *leading, last = problem.batch
    for index in product(*map(range, leading), range(0, last, entries)):
        yield index, min(entries, last - index[-1])


def tiles(span: slice, size: int) -> list[slice]:
    """A span cut into tiles of `size`, the last one shorter."""
    return [slice(start, min(start + size, span.stop)) for start in range(span.start, span.stop, size)]


def _cut(plan: CpuPlan, block: Block) -> list[tuple[Block, int, _Merger | None]]:
    """A block once for each part of the keys it can see, with the merger that its parts share; None for one part."""
    keys = block.keys
    length = keys.stop - keys.start
    part = plan.part or max(1, -(-length // (plan.parts or 1)))
    if length <= part:
        return [(block, 0, None)]
    parts = tiles(keys, part)
    merger = _Merger(len(parts))
    return [(block._replace(keys=span), number, merger) for number, span in enumerate(parts)]


class _Merger:
    """Collects the states of a block's parts; the last to arrive gets them merged, in order of the keys."""

    def __init__(self, parts: int) -> None:
        self._states: dict[int, OnlineSoftmax] = {}
        self._parts = parts
        self._lock = threading.Lock()

    def add(self, part: int, state: OnlineSoftmax) -> OnlineSoftmax | None:
        """The state of the whole block if this was the last part to arrive, else None."""
        with self._lock:
            self._states[part] = state
            if len(self._states) < self._parts:
                return None
        whole, *others = (self._states[number] for number in range(self._parts))
        for other in others:
            whole.merge(other)
        return whole


def weights(call: Call, shape: tuple[int, ...], out: Array | None) -> Array:
    """The softmax itself, (..., hq, lq, lk): one walk for the maximum and sum of each row, one to write the weights.

    Not exp(score - lse): the rounding of the lse would be a relative error of every weight in its row.
    """
    problem, operands = call.problem, call.operands
    if out is None:
        out = np.empty(shape, call.like.dtype)
    out[...] = 0
    filled = out[None] if out.ndim == 2 else out
    plan = make_plan(problem, cpu_device())

    def make_worker() -> Any:
        scratch = np.empty(plan.score_tile, problem.accumulator)

        def worker(block: Block) -> None:
            queries = QueryBlock(problem, operands, block)
            key_tiles = tiles(block.keys, plan.kv_tile)
            state = _attend(queries, key_tiles, scratch)
            _add_sinks(state, operands.sinks, block)
            share = np.divide(1, state.total, out=np.zeros_like(state.total), where=state.total != 0)
            for keys in key_tiles:
                scores = queries.scores(as_operand(queries.k[..., keys, :], queries.dtype), keys, scratch)
                probabilities(scores, state.maximum)
                scores *= share
                target = filled[(*block.place, keys)]
                target[...] = scores.reshape(target.shape)

        return worker

    threads.run(walk(problem, operands, plan), make_worker, plan.threads)
    return out


def probabilities(scores: Array, shift: Array) -> None:
    """Scores to exp(score - shift), in place."""
    np.subtract(scores, shift, out=scores)
    np.exp(scores, out=scores)
