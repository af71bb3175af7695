"""What the lanes of a warp do together: shfl, vote, match, redux, elect, activemask."""

from __future__ import annotations

from ..forms import form
from ..statement import Statement


def with_predicate(statement: Statement, call: str) -> str:
    """Assign `d|p` from a call that takes the address of a bool for p."""
    target, predicate = statement.pair(0)
    if predicate is None:
        return statement.assign(target, "b32", call.format(p="nullptr"))
    stores = [statement.assign(target, "b32", "t_"), statement.assign(predicate, "pred", "p_")]
    return f"{{ bool p_; u32 t_ = {call.format(p='&p_')}; {' '.join(stores)} }}"


@form("shfl sync mode:up|down|bfly|idx b32")
def shuffle(statement: Statement) -> str:
    """d is a of another lane; p says whether that lane was in range."""
    statement.expect(5)
    values = ", ".join(statement.read(place, "b32") for place in (1, 2, 3, 4))
    call = f"machine::shfl(machine::Shuffle::{statement['mode']}, {values}, {{p}}, {statement.site})"
    return with_predicate(statement, call)


@form("vote sync mode:all|any|uni pred")
def vote(statement: Statement) -> str:
    """One truth for all lanes."""
    statement.expect(3)
    arguments = f"{statement.read(1, 'pred')} != 0, {statement.read(2, 'b32')}, {statement.site}"
    return statement.write(0, "pred", f"machine::vote_{statement['mode']}({arguments})")


@form("vote sync ballot b32")
def ballot(statement: Statement) -> str:
    """The lanes whose predicate is true."""
    statement.expect(3)
    arguments = f"{statement.read(1, 'pred')} != 0, {statement.read(2, 'b32')}, {statement.site}"
    return statement.write(0, "b32", f"machine::ballot({arguments})")


@form("match any sync T:b32|b64")
def match_any(statement: Statement) -> str:
    """The lanes that hold the same value."""
    statement.expect(3)
    arguments = f"{statement.read(1, statement['T'])}, {statement.read(2, 'b32')}, {statement.site}"
    return statement.write(0, "b32", f"machine::match_any({arguments})")


@form("match all sync T:b32|b64")
def match_all(statement: Statement) -> str:
    """The mask if all lanes hold the same value, and whether they do."""
    statement.expect(3)
    arguments = f"{statement.read(1, statement['T'])}, {statement.read(2, 'b32')}, {{p}}, {statement.site}"
    return with_predicate(statement, f"machine::match_all({arguments})")


@form("redux sync op:and|or|xor b32", "redux sync op:add T:u32|s32", "redux sync op:min|max T:u32|s32")
def reduce(statement: Statement) -> str:
    """A reduction over the lanes of the mask."""
    statement.expect(3)
    op = statement["op"]
    signed = statement["T"] == "s32" and op in ("min", "max")
    kind = "s32" if signed else "b32"
    arguments = f"machine::Op::{op + '_' if op in ('and', 'or', 'xor') else op}, {statement.read(1, kind)}"
    function = "redux_signed" if signed else "redux"
    call = f"machine::{function}({arguments}, {statement.read(2, 'b32')}, {statement.site})"
    return statement.write(0, kind, call)


@form("elect sync")
def elect(statement: Statement) -> str:
    """d is the elected lane, p true in it alone."""
    statement.expect(2)
    target, predicate = statement.pair(0)
    if predicate is None:
        raise statement.refuse("a second destination is missing")
    call = f"elected({statement.read(1, 'b32')}, &t_, {statement.site})"
    stores = [statement.assign(predicate, "pred", call), statement.assign(target, "b32", "t_")]
    return f"{{ u32 t_; {' '.join(stores)} }}"


@form("activemask b32")
def active_lanes(statement: Statement) -> str:
    """The lanes that have not exited."""
    statement.expect(1)
    return statement.write(0, "b32", "machine::activemask()")
