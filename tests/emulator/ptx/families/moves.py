"""mov, packing and unpacking of vectors, addresses (cvta, isspacep)."""

from __future__ import annotations

from ..forms import form
from ..statement import Statement
from ..tree import Vector


@form("mov T:b16|b32|b64|b128|u16|u32|u64|s16|s32|s64|f32|f64|pred")
def move(statement: Statement) -> str:
    """A value, a special register, an address, or elements packed into or out of a register."""
    statement.expect(2)
    kind = statement["T"]
    target, source = statement.operands
    if isinstance(target, Vector):
        return unpack(statement, kind)
    if isinstance(source, Vector):
        return pack(statement, kind)
    return statement.write(0, kind, statement.read(1, kind))


def element(statement: Statement, kind: str, count: int) -> tuple[str, int]:
    """The type and width of one of `count` elements of a bit type."""
    bits = int(kind[1:]) // count
    if kind[0] != "b" or bits * count != int(kind[1:]) or bits < 8:
        raise statement.refuse(f"{count} elements of a .{kind}")
    return f"b{bits}", bits


def pack(statement: Statement, kind: str) -> str:
    """The first element is the lowest."""
    items = statement.vector(1)
    part, bits = element(statement, kind, len(items))
    wide = f"u{kind[1:]}"
    values = [f"({wide}){statement.value(item, part)} << {bits * place}" for place, item in enumerate(items)]
    return statement.write(0, kind, " | ".join(values))


def unpack(statement: Statement, kind: str) -> str:
    """The elements of a copy, since the source may be among the targets."""
    items = statement.vector(0)
    part, bits = element(statement, kind, len(items))
    stores = [statement.assign(item, part, f"(u{bits})(t_ >> {bits * place})") for place, item in enumerate(items)]
    return f"{{ u{kind[1:]} t_ = {statement.read(1, kind)}; {' '.join(stores)} }}"


# Global, local, constant and parameter addresses are those of the host, so they are generic ones already.
@form("cvta [to] space:shared::cta|shared|global|local|const|param::entry|param u64")
def convert_address(statement: Statement) -> str:
    """Between a state space and generic addresses."""
    statement.expect(2)
    value = statement.read(1, "u64")
    if statement["space"].startswith("param"):
        statement.function.parameters_move = True
    if statement["space"].startswith("shared"):
        value = f"machine::{'generic_to_shared' if statement['to'] else 'shared_to_generic'}({value})"
    return statement.write(0, "u64", value)


@form("isspacep space:shared::cta|shared|global|local")
def space_of_address(statement: Statement) -> str:
    """Whether a generic address lies in a state space; the machine takes constants for global memory."""
    statement.expect(2)
    space = statement["space"].split("::")[0]
    if space == "global" and statement.function.module.has_constants:
        raise statement.refuse("in a module with .const variables")
    return statement.write(0, "pred", f"machine::is_{space}({statement.read(1, 'u64')})")
