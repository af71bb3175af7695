"""Forward: out = softmax(scores) v and its lse, block by block; decoding over a cache is the same walk over its parts.

A block is a tile of query rows, with as many heads of one group as fit. It walks the keys it can see in tiles and keeps
a running softmax, so no more than one score tile per thread ever exists. Where a block's keys are cut into parts, the
parts run as blocks of their own, and whoever finishes the last of them merges all in order: the bits are the same
whoever ran what.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np

from cuflash._device import cpu_device
from cuflash._numpy import threads
from cuflash._numpy.blocks import Block, tiles, walk
from cuflash._numpy.cache_tiles import CacheKeyValues
from cuflash._numpy.kv_tiles import KeyValues
from cuflash._numpy.online_softmax import OnlineSoftmax
from cuflash._numpy.scores import QueryBlock
from cuflash._numpy.scratch import Scratch
from cuflash._plan import CpuPlan, make_plan, threads_for
from cuflash._problem.attention import Call, Operands, Problem

Array = Any

LEAST_TOTAL = 1 / 64  # of a row's exp(score - center): two decades of range lost at the most


class Piece(NamedTuple):
    """A problem, the arrays it reads and those it fills: out (*batch, hq, lq, dv) and lse (*batch, hq, lq)."""

    problem: Problem
    operands: Operands
    out: Array
    lse: Array


def forward(call: Call) -> tuple[Array, Array]:
    """Output and lse of a call, in the arrays that it brought or in new ones."""
    problem = call.problem
    out, lse = call.out, call.lse
    if out is None:
        out = empty_like(call.like, call.out_shape)
    if lse is None:
        lse = np.empty(call.lse_shape, problem.accumulator)
    run_forward([Piece(problem, call.operands, call.canonical(out), call.canonical_lse(lse))])
    return out, lse


decode = forward  # the parts come from the plan, the lengths from the operands


def empty_like(like: Array, shape: tuple[int, ...]) -> Array:
    """A new array in the memory order of `like`, so that undoing a transpose of it is free."""
    return np.empty_like(like, shape=shape, subok=False)


def run_forward(pieces: list[Piece]) -> None:
    """Fill the outputs of problems that have nothing to do with each other, of one dtype, in one pool of threads."""
    device = cpu_device()
    attends = [_Attend(piece, make_plan(piece.problem, device, len(pieces))) for piece in pieces]
    work = [(attend, *part) for attend in attends for block in attend.blocks() for part in _cut(attend.plan, block)]
    if len(work) > 1:
        work.sort(key=lambda item: item[1].keys.start - item[1].keys.stop)  # the longest first

    def make_worker() -> Any:
        scratch = Scratch(pieces[0].problem.accumulator)

        def worker(item: tuple[_Attend, Block, int, _Merger | None]) -> None:
            attend, block, part, merger = item
            state = attend(block, scratch)
            whole = merger.add(part, state) if merger else state
            if whole:
                attend.finish(block, whole)

        return worker

    threads.run(work, make_worker, threads_for([attend.plan for attend in attends], device))


class _Attend:
    """Attention of one problem, block by block."""

    def __init__(self, piece: Piece, plan: CpuPlan) -> None:
        self.piece, self.plan = piece, plan
        in_cache = piece.problem.stored is not None or piece.problem.page_size is not None
        self._kv = (CacheKeyValues if in_cache else KeyValues)(piece.problem, piece.operands, plan)

    def blocks(self) -> list[Block]:
        """Every block of the problem."""
        return walk(self.piece.problem, self.piece.operands, self.plan)

    def queries(self, block: Block, scratch: Scratch) -> QueryBlock:
        """The queries of a block with the keys and values they meet."""
        return QueryBlock(self.piece.problem, self.piece.operands, block, self._kv.of(block, scratch), scratch)

    def __call__(self, block: Block, scratch: Scratch) -> OnlineSoftmax:
        """The state of a block after all its keys."""
        queries = self.queries(block, scratch)
        if block.keys.start == block.keys.stop:
            return OnlineSoftmax.of_nothing(queries.q.shape[:-1], queries.kv.dv, queries.dtype)
        center = queries.center()
        if center is not None:
            state = self._sum_bounded(queries, center, block)
            if _sound(state):
                return state
        return self.sum_online(queries, block)

    def _sum_bounded(self, queries: QueryBlock, center: Array, block: Block) -> OnlineSoftmax:
        state = OnlineSoftmax(center)
        with np.errstate(over="ignore", invalid="ignore"):
            for keys in tiles(block.keys, self.plan.kv_tile):
                state.add(queries.powers(keys), queries.kv, keys)
        return state

    def sum_online(self, queries: QueryBlock, block: Block) -> OnlineSoftmax:
        """The state after all keys, the maximum of each row subtracted from its scores."""
        state = OnlineSoftmax()
        for keys in tiles(block.keys, self.plan.kv_tile):
            state.step(queries.scores(keys), queries.kv, keys)
        return state

    def add_sinks(self, block: Block, state: OnlineSoftmax) -> None:
        """Let the sinks, if any, join the denominator."""
        sinks = self.piece.operands.sinks
        if sinks is not None:
            logits = sinks[block.heads].astype(state.total.dtype)
            state.add_sinks(np.repeat(logits, block.rows.stop - block.rows.start).reshape(state.total.shape[-3:]))

    def finish(self, block: Block, state: OnlineSoftmax) -> None:
        """Write the rows of a block."""
        self.add_sinks(block, state)
        state.finish(self.piece.out[block.place], self.piece.lse[block.place])


def _sound(state: OnlineSoftmax) -> bool:
    """Whether bounded scores did as well as with their maximum subtracted.

    They did not if sums of large values overflowed, nor if all that a row sees lies so far below the center that small
    values lose digits to underflow.
    """
    seen = state.total[state.total != 0]
    return bool((seen >= LEAST_TOTAL).all() and np.isfinite(state.output).all())


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
    if out is None:
        out = np.empty(shape, call.like.dtype)
    out[...] = 0
    filled = out[None] if out.ndim == 2 else out
    nothing = np.empty(0)
    attend = _Attend(Piece(call.problem, call.operands, nothing, nothing), make_plan(call.problem, cpu_device()))

    blocks = attend.blocks()

    def make_worker() -> Any:
        scratch = Scratch(call.problem.accumulator)

        def worker(block: Block) -> None:
            if block.keys.start == block.keys.stop:
                return
            queries = attend.queries(block, scratch)
            state = attend.sum_online(queries, block)
            attend.add_sinks(block, state)
            share = state.share()
            for keys in tiles(block.keys, attend.plan.kv_tile):
                scores = queries.scores(keys)
                scores -= state.maximum
                np.exp(scores, out=scores)
                scores *= share
                target = filled[(*block.place, keys)]
                target[...] = scores.reshape(target.shape)

        return worker

    threads.run(blocks, make_worker, attend.plan.threads)
    return out
