"""Backward: gradients by recomputing each score tile from the lse, as FlashAttention-2 does.

A chain is the work that one thread owns: the key/value heads that write the same part of dk, dv or a bias gradient (one
head or a few, where nothing is broadcast), and a part of the keys. It walks their query tiles in a fixed order; dq is
kept once for each part and added in order. So nothing is shared, and bits do not depend on threads.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from cuflash._device import cpu_device
from cuflash._numpy import threads
from cuflash._numpy.bias_gradient import BiasGradient
from cuflash._numpy.forward import empty_like, probabilities, tiles, walk_batch
from cuflash._numpy.scores import Block, QueryBlock, as_operand, visible_keys
from cuflash._plan import CpuBackwardPlan, make_backward_plan
from cuflash._problem.attention import Backward, Operands, Problem, pad_batch

Array = Any


def backward(given: Backward) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """dq, dk, dv, dbias and dsinks in the shapes and dtypes of the operands; None for what was not given."""
    problem = given.call.problem
    plan = make_backward_plan(problem, cpu_device())
    grads = _Gradients(given, problem, plan)
    delta = np.einsum("...d,...d->...", given.dout, given.out, dtype=problem.accumulator)
    if given.dlse is not None:
        delta -= given.dlse

    parts = list(enumerate(tiles(slice(0, problem.lk), plan.part)))
    work = [(chain, number, keys) for number, keys in parts for chain in grads.chains(problem, plan)]
    threads.run(work, lambda: _Worker(given, plan, grads, delta), plan.threads)

    form, dtype = given.call.form, problem.accumulator
    dq = grads.dq.sum(axis=0) if plan.parts > 1 else grads.dq[0]
    dq *= dtype(problem.scale)
    if problem.softcap is not None:
        grads.dk *= dtype(problem.softcap)  # it was taken with the queries that QueryBlock had divided by the cap
    dq = _shaped(dq, given.q, form)
    dk, dv = _shaped(grads.dk, given.k, form), _shaped(grads.dv, given.v, form)
    dbias = None
    if given.bias is not None and grads.bias is not None:
        dbias = sum_to(grads.bias.total(), given.bias.shape).astype(given.bias.dtype, copy=False)
    dsinks = None
    if given.sinks is not None:
        dsinks = _sink_gradient(given.sinks, given.lse, delta, problem)
    return dq, dk, dv, dbias, dsinks


class _Owned(NamedTuple):
    """Batch entries, as in `Block`, and key/value heads whose dk and dv a thread keeps to itself."""

    entry: tuple[int, ...]
    entries: int
    kv_heads: slice


class _Gradients:
    """Where the threads write: each element by one chain alone."""

    def __init__(self, given: Backward, problem: Problem, plan: CpuBackwardPlan) -> None:
        p, dtype = problem, problem.accumulator
        self.dq = np.zeros((plan.parts, *p.batch, p.hq, p.lq, p.d), dtype)
        self.dk, self.dv = (
            np.zeros((*pad_batch(given.call.canonical(array).shape[:-3], p.batch), p.hk, p.lk, dim), dtype)
            for array, dim in ((given.k, p.d), (given.v, p.dv))
        )
        self.bias = BiasGradient(problem, plan.parts) if problem.bias is not None else None

    def chains(self, problem: Problem, plan: CpuBackwardPlan) -> list[list[_Owned]]:
        """Runs of batch entries and key/value heads, together where they write the same slice of a gradient."""
        runs = tiles(slice(0, problem.hk), max(1, plan.heads // problem.group) if problem.group else 1)
        together: dict[Any, list[_Owned]] = {}
        for entry, entries in walk_batch(problem, plan.entries):
            for run in runs:
                slot = self._slot(problem, entry, run.start)
                together.setdefault(slot, []).append(_Owned(entry, entries, run))
        return list(together.values())

    def _slot(self, problem: Problem, entry: tuple[int, ...], kv_head: int) -> tuple[int, ...]:
        """Equal for those that write the same elements."""
        shared = self.bias.shared if self.bias else (False,) * (len(entry) + 1)
        shared = tuple(one or size == 1 for one, size in zip(shared, (*problem.kv_batch, 0)))
        return tuple(0 if one else i for one, i in zip(shared, (*entry, kv_head)))


class _Scratch(NamedTuple):
    """Score tiles of one thread."""

    scores: Array
    ds: Array
    tanh: Array


class _Worker:
    """Runs chains, one after another, with scratch memory of its own."""

    def __init__(self, given: Backward, plan: CpuBackwardPlan, grads: _Gradients, delta: Array) -> None:
        self.given, self.plan, self.grads, self.delta = given, plan, grads, delta
        self.problem: Problem = given.call.problem
        self.operands: Operands = given.call.operands
        self.scratch = _Scratch(*(np.empty(plan.score_tile, self.problem.accumulator) for _ in range(3)))

    def __call__(self, item: tuple[list[_Owned], int, slice]) -> None:
        chain, part, keys = item
        group = self.problem.group
        for owned in chain:
            for heads in tiles(slice(owned.kv_heads.start * group, owned.kv_heads.stop * group), self.plan.heads):
                for rows in tiles(slice(0, self.problem.lq), self.plan.q_tile):
                    seen = visible_keys(self.problem, self.operands, owned.entry, rows)
                    span = slice(max(seen.start, keys.start), min(seen.stop, keys.stop))
                    if span.start < span.stop:
                        self._rows(Block(owned.entry, owned.entries, heads, rows, span), owned.kv_heads, part)

    def _rows(self, block: Block, kv_heads: slice, part: int) -> None:
        """All that a tile of query rows adds, over the keys of its block."""
        queries = QueryBlock(self.problem, self.operands, block)
        dtype, shape = queries.dtype, queries.q.shape[:-1]
        dout = self.given.dout[block.place].astype(dtype, order="C").reshape(*shape, self.problem.dv)
        delta = self.delta[block.place].reshape(*shape, 1)
        shift = self.given.lse[block.place].reshape(*shape, 1)
        shift = np.where(shift == -np.inf, dtype(np.inf), shift)  # no key was seen: exp(score - inf) is 0
        dq = np.zeros(queries.q.shape, dtype)
        dk, dv = (array[(*_within(block.batch, array.shape), kv_heads)] for array in (self.grads.dk, self.grads.dv))
        for keys in tiles(block.keys, self.plan.kv_tile):
            k, v = (as_operand(array[..., keys, :], dtype) for array in (queries.k, queries.v))
            ds, p = self._tile(queries, block, keys, k, v, dout, shift, delta, part)
            for target, product in ((dv, p.swapaxes(-1, -2) @ dout), (dk, ds.swapaxes(-1, -2) @ queries.q)):
                here = target[..., keys, :]
                here += sum_to(product, here.shape)
            dq += ds @ k
        target = self.grads.dq[part][block.place]
        target[...] = dq.reshape(target.shape)

    def _tile(
        self, queries: QueryBlock, block: Block, keys: slice, k: Array, v: Array, dout: Array, shift: Array,
        delta: Array, part: int,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Gradient of the products scale * q.k, and the probabilities, of one tile (..., hk, rows, keys)."""
        capped = self.problem.softcap is not None
        shape = (*dout.shape[:-1], k.shape[-2])
        ds, tanh = (buffer[: prod(shape)].reshape(shape) for buffer in self.scratch[1:])
        p = queries.scores(k, keys, self.scratch.scores, tanh if capped else None)
        probabilities(p, shift)
        np.matmul(dout, v.swapaxes(-1, -2), out=ds)
        ds -= delta
        ds *= p
        if self.grads.bias is not None:
            self.grads.bias.add(ds.reshape(*queries.shape, shape[-1]), block, keys, part)
        if capped:
            np.multiply(tanh, tanh, out=tanh)
            np.subtract(1, tanh, out=tanh)
            ds *= tanh
        return ds, p


def _sink_gradient(sinks: Array, lse: Array, delta: Array, problem: Problem) -> Array:
    """A sink is a key with no value: its probability times minus (dout . out), plus what dlse gives it."""
    logits = sinks.astype(problem.accumulator)[:, None]
    share = np.exp(logits - np.where(np.isneginf(lse), np.inf, lse))
    but_heads = (*range(len(problem.batch)), -1)
    return (-share * delta).sum(axis=but_heads).astype(sinks.dtype, copy=False)


def _within(batch: tuple[int | slice, ...], shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    """An index of batch axes for an array of `shape`, which may have 1 where it is broadcast."""
    return tuple(i if size != 1 else 0 if isinstance(i, int) else slice(0, 1) for i, size in zip(batch, shape))


def _shaped(total: Array, operand: Array, form: str) -> Array:
    """A gradient (*batch, heads, length, dim) as its operand is: layout, axes, dtype, order of memory."""
    if form == "flat":
        total = total[0]
    elif form == "blhd":
        total = total.swapaxes(-3, -2)
    grad = empty_like(operand, operand.shape)
    grad[...] = sum_to(total, operand.shape)
    return grad


def sum_to(total: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of `shape` was broadcast."""
    lead = total.ndim - len(shape)
    axes = tuple(axis for axis in range(lead, total.ndim) if shape[axis - lead] == 1 and total.shape[axis] != 1)
    if axes:
        total = total.sum(axis=axes, keepdims=True)
    return total.sum(axis=tuple(range(lead)), out=np.empty(shape, total.dtype)) if lead else total
