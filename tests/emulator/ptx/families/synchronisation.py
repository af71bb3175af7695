"""Barriers of a block and of a warp, and fences."""

from __future__ import annotations

from ..forms import form
from ..statement import Statement
from .memory import SCOPES

ORDERS = {"sc": "sc", "acq_rel": "acq_rel", "acquire": "acquire", "release": "release", None: "acq_rel"}


def identity(statement: Statement, first: int, count_at: int | None) -> str:
    """Number of the barrier, and of its threads: 0 for all of the block."""
    count = statement.read(count_at, "u32") if count_at is not None else "0"
    return f"{statement.read(first, 'u32')}, {count}"


@form("bar [cta] sync", "barrier [cta] sync [aligned]")
def wait(statement: Statement) -> str:
    """Arrive, and wait for the others."""
    statement.expect(1, 2)
    barrier = identity(statement, 0, 1 if len(statement.operands) == 2 else None)
    return f"machine::barrier_sync({barrier}, {statement.site});"


@form("bar [cta] arrive", "barrier [cta] arrive [aligned]")
def arrive(statement: Statement) -> str:
    """Arrive and go on."""
    statement.expect(2)
    return f"machine::barrier_arrive({identity(statement, 0, 1)}, {statement.site});"


@form(
    "bar [cta] red op:popc u32",
    "bar [cta] red op:and|or pred",
    "barrier [cta] red op:popc [aligned] u32",
    "barrier [cta] red op:and|or [aligned] pred",
)
def reduce(statement: Statement) -> str:
    """Wait, and learn in how many threads the predicate holds, or whether in all or any."""
    statement.expect(3, 4)
    last = len(statement.operands) - 1
    op = statement["op"]
    barrier = identity(statement, 1, 2 if last == 3 else None)
    reduction = f"machine::Reduce::{op if op == 'popc' else op + '_'}"
    call = f"machine::barrier_red({reduction}, {barrier}, {statement.read(last, 'pred')} != 0, {statement.site})"
    return statement.write(0, "u32" if op == "popc" else "pred", call)


@form("bar warp sync")
def warp_barrier(statement: Statement) -> str:
    """The lanes of the mask wait for each other, and see each other's stores."""
    statement.expect(1)
    return f"machine::syncwarp({statement.read(0, 'b32')}, {statement.site});"


@form("fence [order:sc|acq_rel|acquire|release] scope:cta|cluster|gpu|sys")
def fence(statement: Statement) -> str:
    """Between the accesses before and after it."""
    statement.expect(0)
    order, scope = ORDERS[statement["order"]], SCOPES[statement["scope"]]
    return f"machine::fence(machine::Order::{order}, machine::Scope::{scope}, {statement.site});"


@form("membar level:cta|gl|sys")
def membar(statement: Statement) -> str:
    """fence.sc by another name."""
    statement.expect(0)
    scope = {"cta": "cta", "gl": "gpu", "sys": "sys"}[statement["level"]]
    return f"machine::fence(machine::Order::sc, machine::Scope::{scope}, {statement.site});"
