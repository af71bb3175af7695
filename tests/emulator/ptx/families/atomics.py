"""atom and red. Of the floating types the machine adds f32 and f64; pairs of halves are added by compare and swap."""

from __future__ import annotations

from ..forms import form
from ..statement import Statement
from ..tree import Name
from ..types import TYPES
from .memory import SCOPES, space_of

SPACE = "[space:global|shared::cta|shared::cluster|shared]"
HINT = "[hint:L2::cache_hint]"
ATOM = f"atom [sem:relaxed|acquire|release|acq_rel] [scope:cta|cluster|gpu|sys] {SPACE}"
RED = f"red [sem:relaxed|release] [scope:cta|cluster|gpu|sys] {SPACE}"
OPERATIONS = (
    f"op:and|or|xor {HINT} T:b32|b64",
    f"op:add {HINT} T:u32|s32|u64|f32|f64",
    f"op:inc|dec {HINT} T:u32",
    f"op:min|max {HINT} T:u32|s32|u64|s64",
)


def meaning(statement: Statement) -> str:
    """Order, scope and site as the machine takes them."""
    scope = SCOPES[statement["scope"] or "gpu"]
    return f"machine::Order::{statement['sem'] or 'relaxed'}, machine::Scope::{scope}, {statement.site}"


def where(statement: Statement, place: int) -> str:
    """State space and address."""
    space = space_of(statement)
    return f"machine::Space::{space}, {statement.address(place, space)}"


def operation(statement: Statement, place: int, value: str) -> str:
    """The call for the address that is operand number `place`."""
    op = statement["op"] + ("_" if statement["op"] in ("and", "or", "xor") else "")
    kind = TYPES[statement["T"]].cpp
    return f"machine::atomic<{kind}>(machine::Op::{op}, {where(statement, place)}, {value}, {meaning(statement)})"


@form(*(f"{ATOM} {operations}" for operations in OPERATIONS), f"{ATOM} op:exch {HINT} T:b32|b64")
def atomic(statement: Statement) -> str:
    """d gets the value before."""
    statement.expect(4 if statement["hint"] else 3)
    kind = statement["T"]
    return statement.write(0, kind, operation(statement, 1, statement.read(2, kind)))


@form(*(f"{RED} {operations}" for operations in OPERATIONS))
def reduction(statement: Statement) -> str:
    """Nobody gets the value before."""
    statement.expect(3 if statement["hint"] else 2)
    return f"{operation(statement, 0, statement.read(1, statement['T']))};"


@form(f"{RED} op:add {HINT} vec:v2|v4 T:f32", f"{ATOM} op:add {HINT} vec:v2|v4 T:f32")
def vector_addition(statement: Statement) -> str:
    """Each element is an addition of its own; the whole is aligned."""
    first = 0 if statement["name"] == "red" else 1
    statement.expect(first + 2 + bool(statement["hint"]))
    count = int(statement["vec"][1:])
    items = statement.vector(first + 1, count)
    targets = statement.vector(0, count) if first else (Name("_"),) * count
    space, address = where(statement, first).split(", ", 1)
    lines = [f"u64 a_ = {address};"]
    lines.append(f'if (a_ % {4 * count}) machine::fault("a vector access that is not aligned", {statement.site});')
    lines.append(f"f32 t_[{count}] = {{{', '.join(statement.value(item, 'f32') for item in items)}}};")
    for place in range(count):
        arguments = f"machine::Op::add, {space}, a_ + {4 * place}, t_[{place}], {meaning(statement)}"
        lines.append(f"t_[{place}] = machine::atomic<f32>({arguments});")
    lines += [statement.assign(target, "f32", f"t_[{place}]") for place, target in enumerate(targets)]
    return f"{{ {' '.join(lines)} }}"


@form(f"{ATOM} cas T:b32|b64")
def compare_and_swap(statement: Statement) -> str:
    """d gets the value before; c is stored where it equals b."""
    statement.expect(4)
    kind = statement["T"]
    values = f"{statement.read(2, kind)}, {statement.read(3, kind)}"
    call = f"machine::atomic_cas<{TYPES[kind].cpp}>({where(statement, 1)}, {values}, {meaning(statement)})"
    return statement.write(0, kind, call)


@form(f"{ATOM} add noftz {HINT} T:f16x2|bf16x2", f"{RED} add noftz {HINT} T:f16x2|bf16x2")
def halves_addition(statement: Statement) -> str:
    """Both halves of a word."""
    first = 0 if statement["name"] == "red" else 1
    statement.expect(first + 2 + bool(statement["hint"]))
    add = f"add_{statement['T']}"
    value = statement.read(first + 1, "b32")
    call = f"atomic_add_halves({add}, {where(statement, first)}, {value}, {meaning(statement)})"
    return statement.write(0, "b32", call) if first else f"{call};"
