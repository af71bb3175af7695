"""The typed tree of a PTX module: what `parse` makes and `translate` walks.

Names are kept as written; which of them is a register, a variable, a label or a function is decided by the translator,
which knows the scopes.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Name(NamedTuple):
    """A register, a special register, a variable, a label or a function."""

    text: str


class Integer(NamedTuple):
    """An integer constant; as it is written, so negative values are negative."""

    value: int


class Float(NamedTuple):
    """A floating-point constant by its bits: 32 for 0f..., 64 for 0d... and for decimal fractions."""

    bits: int
    width: int


class Sum(NamedTuple):
    """A variable's address with an offset in bytes, outside brackets: `mov.u64 %rd1, table+8`."""

    base: Name
    offset: int


class Not(NamedTuple):
    """A negated predicate."""

    operand: Name


class Address(NamedTuple):
    """`[base+offset]`, offset in bytes; `coordinates` is what follows a comma inside the brackets (tensor maps)."""

    base: Operand
    offset: int
    coordinates: Operand | None = None


class Vector(NamedTuple):
    """`{a, b}`."""

    items: tuple[Operand, ...]


class Pair(NamedTuple):
    """`d|p`: a destination and a second one, either of which may be the sink `_`."""

    first: Name
    second: Name


class Group(NamedTuple):
    """`(a, b)`: the arguments or results of a call."""

    items: tuple[Operand, ...]


Operand: TypeAlias = "Name | Integer | Float | Sum | Not | Address | Vector | Pair | Group"


class Instruction(NamedTuple):
    """One instruction: `line` of the PTX text, the text itself, the guard predicate or None."""

    line: int
    text: str
    guard: Name | Not | None
    opcode: str
    operands: tuple[Operand, ...]


class Label(NamedTuple):
    """`name:`."""

    line: int
    name: str


class Loc(NamedTuple):
    """`.loc file line column`, with the place it was inlined at (file, line, column) where there is one."""

    file: int
    line: int
    column: int
    inlined_at: tuple[int, int, int] | None


class Registers(NamedTuple):
    """`.reg .type a, b<n>`: names with their counts, None for a single register."""

    line: int
    type: str
    names: tuple[tuple[str, int | None], ...]


class Variable(NamedTuple):
    """A variable of a state space, at module scope or in a function; also a parameter.

    `count` is the number of elements: 1 for a scalar, 0 for `name[]`. `initial` holds integers and, where an element
    is an address, the operand; `generic` addresses are `Group((operand,))`.
    """

    line: int
    space: str
    name: str
    type: str
    count: int
    align: int
    external: bool
    initial: tuple[Operand, ...] | None


class Targets(NamedTuple):
    """`name: .branchtargets a, b` or `.calltargets a, b`."""

    line: int
    name: str
    targets: tuple[str, ...]


class Prototype(NamedTuple):
    """`name: .callprototype (results) _ (parameters)`."""

    line: int
    name: str
    results: tuple[Variable, ...]
    params: tuple[Variable, ...]


class Block(NamedTuple):
    """`{ ... }`: a scope of names."""

    line: int
    nodes: tuple[Node, ...]


Node: TypeAlias = "Instruction | Label | Loc | Registers | Variable | Targets | Prototype | Block"


class Function(NamedTuple):
    """An `.entry` or `.func`; `body` is None for a declaration."""

    line: int
    entry: bool
    name: str
    results: tuple[Variable, ...]
    params: tuple[Variable, ...]
    directives: dict[str, tuple[int, ...]]
    body: Block | None


class Module(NamedTuple):
    """A whole PTX text."""

    version: tuple[int, int]
    target: str
    files: dict[int, str]
    variables: tuple[Variable, ...]
    functions: tuple[Function, ...]


class UnknownInstruction(Exception):
    """PTX that the translator does not know, with its line and text: better loud than wrong."""

    def __init__(self, line: int, text: str, why: str):
        super().__init__(f"PTX line {line}: {' '.join(text.split())}: {why}")
        self.line, self.text, self.why = line, text, why
