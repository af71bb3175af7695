"""Loads and stores of every state space, plain and strong, and the hints that change nothing.

Cache operators, eviction priorities and prefetch sizes are performance hints by the manual and are dropped; `.nc` is
kept, since it promises that nobody writes.
"""

from __future__ import annotations

from ..forms import form
from ..statement import Place, Register, Statement
from ..tree import Address, Name, Operand
from ..types import TYPES

SPACES = "global|shared::cta|shared::cluster|shared|local|const|param::entry|param::func|param"
STRONG = "[sem:weak|volatile|relaxed|acquire|release] [scope:cta|cluster|gpu|sys]"
HINTS = (
    "[cop:ca|cg|cs|lu|cv|wb|wt] [nc] "
    "[l1:L1::evict_normal|L1::evict_unchanged|L1::evict_first|L1::evict_last|L1::no_allocate] "
    "[l2:L2::evict_normal|L2::evict_first|L2::evict_last] [hint:L2::cache_hint] [prefetch:L2::64B|L2::128B|L2::256B]"
)
TYPE = "[vec:v2|v4|v8] T:b8|b16|b32|b64|b128|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64"
SCOPES = {"cta": "cta", "cluster": "cta", "gpu": "gpu", "sys": "sys"}  # every block is a cluster of its own
LARGEST = 16  # bytes the machine moves at once


def space_of(statement: Statement) -> str:
    """The state space without its sub-qualifier; `generic` where none is named."""
    return (statement["space"] or "generic").split("::")[0]


def shape(statement: Statement) -> tuple[str, int]:
    """The bit type of an element, signed where the form says so, and the number of elements."""
    kind = statement["T"]
    if kind[0] == "f":
        kind = f"b{kind[1:]}"
    count = int((statement["vec"] or "v1")[1:])
    if count * TYPES[kind].bits // 8 > 2 * LARGEST:
        raise statement.refuse("more than 32 bytes")
    return kind, count


def check(statement: Statement, orders: tuple[str, ...]) -> None:
    """Which qualifiers go together."""
    sem, strong = statement["sem"], statement["sem"] in ("relaxed", *orders)
    statement.expect(3 if statement["hint"] else 2)
    if sem not in (None, "weak", "volatile", "relaxed", *orders) or strong != bool(statement["scope"]):
        raise statement.refuse("a memory order with the wrong scope, or none")
    if statement["nc"] and (sem or space_of(statement) != "global"):
        raise statement.refuse(".nc goes with .global alone")
    if sem not in (None, "weak") and space_of(statement) not in ("global", "shared", "generic"):
        raise statement.refuse("a strong access of this space")


def call(statement: Statement, verb: str, pointer: str, address: str, size: int) -> str:
    """One call of the machine for up to 16 bytes."""
    space, sem = space_of(statement), statement["sem"]
    if sem in (None, "weak"):
        suffix = "global_nc" if statement["nc"] else "global" if space == "const" else space
        arguments = f"{pointer}, {address}" if verb == "load" else f"{address}, {pointer}"
        return f"machine::{verb}_{suffix}<{size}>({arguments}, {statement.site});"
    order, scope = ("relaxed", "sys") if sem == "volatile" else (sem, SCOPES[statement["scope"]])
    arguments = f"{pointer}, {address}" if verb == "load" else f"{address}, {pointer}"
    meaning = f"machine::Order::{order}, machine::Scope::{scope}, {statement.site}"
    return f"machine::{verb}_strong<{size}>(machine::Space::{space}, {arguments}, {meaning});"


def calls(statement: Statement, verb: str, pointer: str, address: str, size: int) -> str:
    """The calls for a whole vector: two halves where it has 32 bytes."""
    if size <= LARGEST:
        return call(statement, verb, pointer, address, size)
    lines = [f'if (({address}) % {size}) machine::fault("a vector access that is not aligned", {statement.site});']
    for start in range(0, size, LARGEST):
        part = f"(char*){pointer} + {start}"
        lines.append(call(statement, verb, part, f"{address} + {start}", LARGEST))
    return " ".join(lines)


def inside_address(statement: Statement, place: int, kind: str, size: int) -> str:
    """A pointer to the elements of a parameter or a local array."""
    target, pointer = TYPES[kind].cpp, f"(({TYPES[kind].cpp}*)({{}}))"
    if space_of(statement) == "local":
        address = statement.address(place, "local")
        return f"&local<{target}>({statement.function.frame}, {address}, {size}, {statement.site})"
    operand = statement.operands[place]
    base = statement.function.lookup(operand.base.text) if isinstance(operand.base, Name) else None
    if isinstance(base, Place):
        if base.space != "param" or not 0 <= operand.offset <= base.size - size:
            raise statement.refuse("outside the parameter")
        return pointer.format(f"{base.address} + {operand.offset}")
    if isinstance(base, Register) and statement.function.function.entry:
        address = statement.address(place, "param")
        limits = f"params, {statement.function.param_bytes}, {address}, {size}, {statement.site}"
        return f"&parameter<{target}>({limits})"
    raise statement.refuse("a parameter's address in a register, in a device function")


@form(f"ld {STRONG} [space:{SPACES}] {HINTS} {TYPE}")
def load(statement: Statement) -> str:
    """A register or a vector of them."""
    check(statement, ("acquire",))
    kind, count = shape(statement)
    size, target = count * TYPES[kind].bits // 8, TYPES[kind].cpp
    items: tuple[Operand, ...] = statement.vector(0, count) if statement["vec"] else (statement.operands[0],)
    if not isinstance(statement.operands[1], Address):
        raise statement.refuse("the second operand should be an address")
    stores = [statement.assign(item, kind, f"t_[{place}]", loose=True) for place, item in enumerate(items)]
    if space_of(statement) in ("param", "local"):
        pointer = inside_address(statement, 1, kind, size)
        if count == 1:
            return statement.assign(items[0], kind, f"*{pointer}", loose=True)
        return f"{{ {target} t_[{count}]; __builtin_memcpy(t_, {pointer}, {size}); {' '.join(stores)} }}"
    address = statement.address(1, space_of(statement))
    if count == 1 and items[0] != Name("_") and statement.register(items[0]).bits == TYPES[kind].bits:
        return calls(statement, "load", f"&{statement.register(items[0]).cpp}", address, size)
    return f"{{ {target} t_[{count}]; {calls(statement, 'load', 't_', address, size)} {' '.join(stores)} }}"


@form(f"st {STRONG} [space:{SPACES}] {HINTS} {TYPE}")
def store(statement: Statement) -> str:
    """A register, a constant, or a vector of them."""
    check(statement, ("release",))
    kind, count = shape(statement)
    size, source = count * TYPES[kind].bits // 8, TYPES[kind].cpp
    items: tuple[Operand, ...] = statement.vector(1, count) if statement["vec"] else (statement.operands[1],)
    space = space_of(statement)
    if space == "const" or statement["nc"] or statement["prefetch"] or not isinstance(statement.operands[0], Address):
        raise statement.refuse("not a store")
    values = [statement.value(item, kind, loose=True) for item in items]
    if space in ("param", "local"):
        pointer = inside_address(statement, 0, kind, size)
        if count == 1:
            return f"*{pointer} = {values[0]};"
        return f"{{ {source} t_[{count}] = {{{', '.join(values)}}}; __builtin_memcpy({pointer}, t_, {size}); }}"
    address = statement.address(0, space)
    stores = calls(statement, "store", "t_", address, size)
    return f"{{ {source} t_[{count}] = {{{', '.join(values)}}}; {stores} }}"


@form(
    r"prefetch [space:global|local] level:L1|L2|L2::evict_last|L2::evict_normal",
    "prefetchu L1",
    r"applypriority [space:global] L2::evict_normal",
)
def hint(statement: Statement) -> str:
    """Nothing that a program could see."""
    return ";"


@form(r"createpolicy fractional L2::evict_\w+ [second:L2::evict_\w+] b64")
def cache_policy(statement: Statement) -> str:
    """An opaque value that only hints take."""
    statement.expect(1, 2)
    return statement.write(0, "b64", "0")
