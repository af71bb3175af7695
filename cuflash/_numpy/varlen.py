"""Packed sequences: each member is a problem of its own, and all of them share one pool of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cuflash._numpy.backward import BackwardPiece, run_backward, sink_gradient, sum_to
from cuflash._numpy.bias_gradient import BiasGradient
from cuflash._numpy.forward import Piece, empty_like, run_forward
from cuflash._problem.attention import Operands, Problem
from cuflash._problem.packed import Member, Pack, PackBackward, list_members, member_problem

Array = Any

# Elements of bias gradients that members running together may hold, each its own. Members that share a large bias would
# else need as many copies of it.
_BIAS_GRADIENTS = 1 << 20


def forward_varlen(pack: Pack) -> tuple[Array, Array]:
    """Output (total_q, hq, dv) and lse (hq, total_q) of a pack, in the arrays that it brought or in new ones."""
    call = pack.call
    out, lse = call.out, call.lse
    if out is None:
        out = empty_like(call.like, call.out_shape)
    if lse is None:
        lse = np.empty(call.lse_shape, call.problem.accumulator)
    rows = call.canonical(out)
    run_forward(
        [
            Piece(problem, operands, rows[:, member.queries], lse[:, member.queries])
            for _, member, problem, operands in _problems(pack)
        ]
    )
    return out, lse


def backward_varlen(backward: PackBackward) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """dq, dk, dv, dbias and dsinks in the shapes and dtypes of the operands; None for what was not given."""
    given, call = backward.given, backward.pack.call
    problem, dtype = call.problem, call.problem.accumulator
    delta = np.einsum("...d,...d->...", given.dout, given.out, dtype=dtype)
    if given.dlse is not None:
        delta -= given.dlse
    sums = [np.zeros(operand.shape, dtype) for operand in (call.operands.q, call.operands.k, call.operands.v)]
    bias = None if given.bias is None else _BiasSum(given.bias, dtype)
    for run in _runs(backward, delta, sums, bias):
        run_backward(run)

    if problem.softcap is not None:
        sums[1] *= dtype(problem.softcap)  # as in `backward`
    grads = [empty_like(operand, operand.shape) for operand in (given.q, given.k, given.v)]
    for grad, total in zip(grads, sums):
        call.canonical(grad)[...] = total
    dsinks = None if given.sinks is None else sink_gradient(given.sinks, given.lse, delta)
    return grads[0], grads[1], grads[2], None if bias is None else bias.total(), dsinks


def _problems(pack: Pack) -> Iterator[tuple[int, Member, Problem, Operands]]:
    """Each member that has queries: its number, its problem, which members of equal lengths share, and its operands."""
    whole, given = pack.call.problem, pack.call.operands
    made: dict[tuple[int, int], Problem] = {}
    for number, member in enumerate(list_members(pack)):
        queries, keys = member.queries, member.keys
        lq, lk = queries.stop - queries.start, keys.stop - keys.start
        if lq == 0:
            continue
        problem = made.get((lq, lk))
        if problem is None:
            problem = made[lq, lk] = member_problem(whole, lq, lk)
        own = (number, slice(None), slice(lq), slice(lk))
        operands = given._replace(
            q=given.q[:, queries], k=given.k[:, keys], v=given.v[:, keys], q_offset=member.q_offset, kv_lengths=lk,
            mask=None if given.mask is None else given.mask[own], bias=None if given.bias is None else given.bias[own],
        )  # fmt: skip
        yield number, member, problem, operands


def _runs(
    backward: PackBackward, delta: Array, sums: list[Array], bias: _BiasSum | None
) -> Iterator[list[BackwardPiece]]:
    """The members in runs that may be computed together; a run's bias gradients are added up when the next is asked."""
    given = backward.given
    dq, dk, dv = sums
    run: list[BackwardPiece] = []
    for number, member, problem, operands in _problems(backward.pack):
        queries, keys = member.queries, member.keys
        own_bias = None if bias is None else bias.of_member(number, problem)
        piece = BackwardPiece(
            problem, operands, given.dout[:, queries], given.lse[:, queries], delta[:, queries],
            dq[:, queries], dk[:, keys], dv[:, keys], own_bias,
        )  # fmt: skip
        run.append(piece)
        if bias is not None and bias.held >= _BIAS_GRADIENTS:
            yield run
            bias.add_up()
            run.clear()  # not a new list: whoever was handed this one still holds it, and its bias gradients with it
    if run:
        yield run
    if bias is not None:
        bias.add_up()


class _BiasSum:
    """The gradient of a bias over all members, added up in their order."""

    def __init__(self, bias: Array, dtype: Any) -> None:
        self._bias = bias
        self._sums = np.zeros((1,) * (4 - bias.ndim) + bias.shape, dtype)
        self._waiting: list[tuple[int, BiasGradient]] = []
        self.held = 0  # elements of the gradients that wait

    def of_member(self, number: int, problem: Problem) -> BiasGradient:
        """Where a member collects its own gradient, until `add_up`."""
        own = BiasGradient(problem)
        self._waiting.append((number, own))
        self.held += own.total().size
        return own

    def add_up(self) -> None:
        """Take in the gradients that wait."""
        for number, own in self._waiting:
            gradient = own.total()
            rows, keys = gradient.shape[-2:]
            here = self._sums[number if len(self._sums) > 1 else 0, :, :rows, :keys]
            here += sum_to(gradient, here.shape)
        self._waiting, self.held = [], 0

    def total(self) -> Array:
        """In the shape and dtype of the bias."""
        return self._sums.reshape(self._bias.shape).astype(self._bias.dtype, copy=False)
