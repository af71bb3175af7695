"""Backward: gradients by recomputing each score tile from the lse, as FlashAttention-2 does.

A chain is the work that one thread owns: the key/value heads that write the same part of dk, dv or a bias gradient (one
head or a few, where nothing is broadcast), and a part of the keys. It walks their query tiles in a fixed order; dq is
kept once for each part and added in order. So nothing is shared, and bits do not depend on threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cuflash._device import cpu_device
from cuflash._numpy import threads
from cuflash._numpy.bias_gradient import BiasGradient
from cuflash._numpy.blocks import Block, tiles, visible_keys, walk_batch
from cuflash._numpy.forward import empty_like
from cuflash._numpy.kv_tiles import KeyValues
from cuflash._numpy.scores import QueryBlock
from cuflash._numpy.scratch import Scratch
from cuflash._plan import CpuBackwardPlan, make_backward_plan, threads_for
from cuflash._problem.attention import Backward, Operands, Problem, pad_batch

Array = Any


class BackwardPiece(NamedTuple):
    """A problem, the arrays it reads, and those it fills, all in the arithmetic's dtype.

    `dk`, `dv` and the bias gradient are added to what is there. Where keys or values are broadcast, dk and dv have 1 on
    that batch axis. With a softcap, `dk` still lacks it as a factor.
    """

    problem: Problem
    operands: Operands
    dout: Array  # (*batch, hq, lq, dv)
    lse: Array  # (*batch, hq, lq)
    delta: Array  # (*batch, hq, lq): sum of dout * out over dv, minus dlse
    dq: Array  # (*batch, hq, lq, d)
    dk: Array  # (*kv_batch, hk, lk, d)
    dv: Array  # (*kv_batch, hk, lk, dv)
    bias: BiasGradient | None


def backward(given: Backward) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """dq, dk, dv, dbias and dsinks in the shapes and dtypes of the operands; None for what was not given."""
    p, form = given.call.problem, given.call.form
    dtype = p.accumulator
    delta = np.einsum("...d,...d->...", given.dout, given.out, dtype=dtype)
    if given.dlse is not None:
        delta -= given.dlse
    dk, dv = (
        np.zeros((*pad_batch(given.call.canonical(array).shape[:-3], p.batch), p.hk, p.lk, dim), dtype)
        for array, dim in ((given.k, p.d), (given.v, p.dv))
    )
    bias = BiasGradient(p) if p.bias is not None else None
    dq = np.zeros((*p.batch, p.hq, p.lq, p.d), dtype)
    run_backward([BackwardPiece(p, given.call.operands, given.dout, given.lse, delta, dq, dk, dv, bias)])

    if p.softcap is not None:
        dk *= dtype(p.softcap)  # it was taken with the queries that QueryBlock had divided by the cap
    dbias = None
    if given.bias is not None and bias is not None:
        dbias = sum_to(bias.total(), given.bias.shape).astype(given.bias.dtype, copy=False)
    dsinks = None
    if given.sinks is not None:
        dsinks = sink_gradient(given.sinks, given.lse, delta)
    return _shaped(dq, given.q, form), _shaped(dk, given.k, form), _shaped(dv, given.v, form), dbias, dsinks


def run_backward(pieces: list[BackwardPiece]) -> None:
    """Fill the gradients of problems that have nothing to do with each other, of one dtype, in one pool of threads."""
    device = cpu_device()
    gradients = [_Gradients(piece, make_backward_plan(piece.problem, device, len(pieces))) for piece in pieces]
    work = [(each, *chain) for each in gradients for chain in each.chains()]

    def make_worker() -> Any:
        scratch = Scratch(pieces[0].problem.accumulator)

        def worker(item: tuple[_Gradients, list[_Owned], int, slice]) -> None:
            each, chain, part, keys = item
            each.run(chain, part, keys, scratch)

        return worker

    threads.run(work, make_worker, threads_for([each.plan for each in gradients], device))
    for each in gradients:
        each.add_parts()


class _Owned(NamedTuple):
    """Batch entries, as in `Block`, and key/value heads whose dk and dv a thread keeps to itself."""

    entry: tuple[int, ...]
    entries: int
    kv_heads: slice


class _Gradients:
    """The gradients of one problem: chains, each of which writes what no other does."""

    def __init__(self, piece: BackwardPiece, plan: CpuBackwardPlan) -> None:
        self.piece, self.plan = piece, plan
        self._kv = KeyValues(piece.problem, piece.operands, plan)
        self._dq = np.zeros((plan.parts - 1, *piece.dq.shape), piece.dq.dtype)  # of all parts but the first
        if piece.bias is not None:
            piece.bias.prepare(plan.parts)

    def chains(self) -> list[tuple[list[_Owned], int, slice]]:
        """What has to run in one thread, for each part of the keys."""
        problem, plan = self.piece.problem, self.plan
        runs = tiles(slice(0, problem.hk), max(1, plan.heads // problem.group) if problem.group else 1)
        together: dict[Any, list[_Owned]] = {}
        for entry, entries in walk_batch(problem, plan.entries):
            for run in runs:
                together.setdefault(self._slot(entry, run.start), []).append(_Owned(entry, entries, run))
        parts = enumerate(tiles(slice(0, problem.lk), plan.part))
        return [(chain, number, keys) for number, keys in parts for chain in together.values()]

    def _slot(self, entry: tuple[int, ...], kv_head: int) -> tuple[int, ...]:
        """Equal for those that write the same elements."""
        bias, kv_batch = self.piece.bias, self.piece.problem.kv_batch
        shared = bias.shared if bias else (False,) * (len(entry) + 1)
        shared = tuple(one or size == 1 for one, size in zip(shared, (*kv_batch, 0)))
        return tuple(0 if one else i for one, i in zip(shared, (*entry, kv_head)))

    def run(self, chain: list[_Owned], part: int, keys: slice, scratch: Scratch) -> None:
        """Add what a part of the keys gives to the gradients of a chain."""
        problem, operands = self.piece.problem, self.piece.operands
        group = problem.group
        for owned in chain:
            for heads in tiles(slice(owned.kv_heads.start * group, owned.kv_heads.stop * group), self.plan.heads):
                for rows in tiles(slice(0, problem.lq), self.plan.q_tile):
                    seen = visible_keys(problem, operands, owned.entry, rows)
                    span = slice(max(seen.start, keys.start), min(seen.stop, keys.stop))
                    if span.start < span.stop:
                        self._rows(Block(owned.entry, owned.entries, heads, rows, span), owned.kv_heads, part, scratch)

    def _rows(self, block: Block, kv_heads: slice, part: int, scratch: Scratch) -> None:
        """All that a tile of query rows adds, over the keys of its block."""
        piece = self.piece
        kv = self._kv.of(block, scratch)
        rows = _Rows(piece, QueryBlock(piece.problem, piece.operands, block, kv, scratch), block)
        queries, dout = rows.queries, rows.dout
        dq = np.zeros(queries.q.shape, queries.dtype)
        dk, dv = (array[(*_within(block.batch, array.shape), kv_heads)] for array in (piece.dk, piece.dv))
        for keys in tiles(block.keys, self.plan.kv_tile):
            ds, p = self._tile(rows, block, keys, part)
            for target, tile, rows_of in ((dv, p, dout), (dk, ds, queries.q)):
                shape = (*tile.shape[:-2], tile.shape[-1], rows_of.shape[-1])
                product = np.matmul(tile.swapaxes(-1, -2), rows_of, out=scratch.room("product", shape))
                here = target[..., keys, :]
                here += sum_to(product, here.shape)
            dq += ds @ queries.kv.k(keys)
        target = (self._dq[part - 1] if part else piece.dq)[block.place]
        np.multiply(dq.reshape(target.shape), queries.dtype(piece.problem.scale), out=target)

    def _tile(self, rows: _Rows, block: Block, keys: slice, part: int) -> tuple[Array, Array]:
        """Gradient of the products scale * q.k, and the probabilities, of one tile (..., hk, rows, keys)."""
        queries, count = rows.queries, keys.stop - keys.start
        capped = self.piece.problem.softcap is not None
        tanh = queries.tile(count, "tanh") if capped else None
        if rows.bounded:
            p = queries.powers(keys)
        else:
            p = queries.scores(keys, tanh)
            p -= rows.shift
            np.exp(p, out=p)
        ds = queries.tile(count, "ds")
        np.matmul(rows.dout, queries.kv.v(keys).swapaxes(-1, -2), out=ds)
        ds -= rows.delta
        ds *= p
        if self.piece.bias is not None:
            self.piece.bias.add(ds.reshape(*queries.shape[:-3], -1, queries.shape[-1], count), block, keys, part)
        if tanh is not None:
            np.multiply(tanh, tanh, out=tanh)
            np.subtract(1, tanh, out=tanh)
            ds *= tanh
        return ds, p

    def add_parts(self) -> None:
        """Sum the dq of all parts, in order."""
        for dq in self._dq:
            self.piece.dq[...] += dq


class _Rows:
    """A tile of query rows: queries, dout, delta, and what turns scores into probabilities.

    Scores that are bounded are not shifted by the lse: their probabilities are exp(score - center) * exp(center - lse),
    and the second factor, one number for each row, has gone into dout and delta.
    """

    def __init__(self, piece: BackwardPiece, queries: QueryBlock, block: Block) -> None:
        shape, dtype = queries.q.shape[:-1], queries.dtype
        dout, delta, lse = (array[block.place] for array in (piece.dout, piece.delta, piece.lse))
        self.queries = queries
        self.shift = np.where(lse == -np.inf, dtype(np.inf), lse).reshape(*shape, 1)  # no key was seen: exp(-inf) is 0
        center = queries.center()
        self.bounded = False
        if center is not None and _moderate(weight := np.exp(center - self.shift)):
            rows = weight.reshape(lse.shape)
            with np.errstate(over="ignore", invalid="ignore"):
                self.dout = np.multiply(dout, rows[..., None], dtype=dtype).reshape(*shape, -1)
                self.delta = (delta * rows).reshape(*shape, 1)
            largest = max(self.dout.max(initial=0), -self.dout.min(initial=0))
            self.bounded = bool(largest == 0 or 1e-30 < largest < 1e30)
        if not self.bounded:
            self.dout = dout.astype(dtype, order="C").reshape(*shape, -1)
            self.delta = delta.reshape(*shape, 1)


def _moderate(weight: Array) -> bool:
    """Whether the factors of rows that see a key neither overflow what they multiply nor take digits from it."""
    seen = weight[weight != 0]
    return bool(((seen > 1e-8) & (seen < 1e8)).all())


def sink_gradient(sinks: Array, lse: Array, delta: Array) -> Array:
    """A sink is a key with no value: its probability times minus (dout . out), plus what dlse gives it."""
    logits = sinks.astype(lse.dtype)[:, None]
    share = np.exp(logits - np.where(np.isneginf(lse), np.inf, lse))
    but_heads = (*range(lse.ndim - 2), -1)
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
    total = sum_to(total, operand.shape)
    if total.dtype == operand.dtype and total.strides == operand.strides:
        return total
    grad = empty_like(operand, operand.shape)
    grad[...] = total
    return grad


def sum_to(total: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of `shape` was broadcast."""
    lead = total.ndim - len(shape)
    axes = tuple(axis for axis in range(lead, total.ndim) if shape[axis - lead] == 1 and total.shape[axis] != 1)
    if axes:
        total = total.sum(axis=axes, keepdims=True)
    return total.sum(axis=tuple(range(lead)), out=np.empty(shape, total.dtype)) if lead else total
