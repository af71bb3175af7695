"""One PTX instruction on its way to C++: what the instruction families see of it and of the names around it."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from .forms import Parts
from .special import SPECIAL_REGISTERS
from .tree import Address, Float, Instruction, Integer, Name, Not, Operand, Pair, Sum, UnknownInstruction, Vector
from .types import TYPES, Type, float_bits, float_literal, integer_literal


class Register(NamedTuple):
    """A declared register: its local variable in C++ and its width in bits (1: a predicate)."""

    cpp: str
    bits: int


class Place(NamedTuple):
    """A variable or parameter: its state space, its address in that space as C++, its size in bytes."""

    space: str
    address: str
    size: int


class Code(NamedTuple):
    """A function: the C++ function, and why it cannot be called where it has no body."""

    cpp: str
    missing: str | None


class Jump(NamedTuple):
    """A label: the C++ label."""

    cpp: str


Binding: TypeAlias = "Register | Place | Code | Jump | object"


class Statement:
    """An instruction with the parts its form named (`parts`) and the function it stands in (`function`)."""

    def __init__(self, instruction: Instruction, parts: Parts, function):
        self.instruction, self.parts, self.function = instruction, parts, function
        self.operands = instruction.operands

    def __getitem__(self, part: str) -> str | None:
        return self.parts.get(part)

    def refuse(self, why: str) -> UnknownInstruction:
        return UnknownInstruction(self.instruction.line, self.instruction.text, why)

    def expect(self, *counts: int) -> None:
        """Refuse another number of operands."""
        if len(self.operands) not in counts:
            raise self.refuse(f"{len(self.operands)} operands where {' or '.join(map(str, counts))} are expected")

    @property
    def site(self) -> str:
        """The C++ object that says where this instruction stands."""
        return self.function.site(self.instruction)

    # ---- types ---------------------------------------------------------------------------------------------------
    def type_fields(self) -> dict[str, str]:
        """T, U, S, W, X and N of `forms.pure`, as far as the form names a type T."""
        name = self.parts.get("T")
        if name is None:
            return {}
        kind = TYPES[name]
        fields = {"T": kind.cpp, "N": str(kind.bits)}
        if not kind.floating and kind.bits > 1:
            letter = "s" if kind.signed else "u"
            fields |= {"U": f"u{kind.bits}", "S": f"s{kind.bits}"}
            fields |= {"W": f"{letter}{2 * kind.bits}", "X": f"u{2 * kind.bits}"}
        return fields

    # ---- reading -------------------------------------------------------------------------------------------------
    def read(self, place: int, type_name: str, *, loose: bool = False) -> str:
        """Operand number `place` as a C++ expression of that type."""
        return self.value(self.operands[place], type_name, loose=loose)

    def value(self, operand: Operand, type_name: str, *, loose: bool = False) -> str:
        """An operand as a C++ expression; `loose` allows a wider register, of which the low bits count."""
        kind = TYPES[type_name]
        match operand:
            case Name(text):
                return self._named(text, kind, loose)
            case Integer(value) if kind.name == "pred":
                return str(int(value != 0))
            case Integer(value) if not kind.floating:
                return integer_literal(value, kind)
            case Float(bits, width) if kind.floating and width in (kind.bits, 64):
                return float_literal(bits, width, kind)
            case Float(bits, width) if width == kind.bits:
                return integer_literal(float_bits(bits, width, kind.bits), kind)
            case Not(inner) if kind.name == "pred":
                return f"!{self.value(inner, type_name)}"
            case Sum(base, offset):
                return f"({self._named(base.text, kind, loose)} + {integer_literal(offset, kind)})"
        raise self.refuse(f"{operand} cannot be a source of type .{kind.name}")

    def _named(self, text: str, kind: Type, loose: bool) -> str:
        binding = self.function.lookup(text)
        if isinstance(binding, Register):
            return self.member(binding, kind, loose)
        if isinstance(binding, Place) and kind.cpp in ("u32", "u64", "s32", "s64"):
            return f"(({kind.cpp}){binding.address})"
        if isinstance(binding, Code) and kind.bits == 64:
            return f"(({kind.cpp}){self.function.callee(binding, self)})"
        if binding is None and text in SPECIAL_REGISTERS:
            return f"(({kind.cpp}){SPECIAL_REGISTERS[text]})"
        raise self.refuse(f"{text} is not declared, or cannot be read as .{kind.name}")

    def member(self, register: Register, kind: Type, loose: bool = False) -> str:
        """A register seen as a value of that type."""
        if kind.name == "pred" or register.bits == 1:
            if kind.name != "pred" or register.bits != 1:
                raise self.refuse("a predicate and a value are no substitutes for each other")
            return register.cpp
        if register.bits == kind.bits:
            return f"{register.cpp}.{kind.cpp}"
        if loose and register.bits > kind.bits and not kind.floating:
            return f"(({kind.cpp}){register.cpp}.u{register.bits})"
        raise self.refuse(f"a {register.bits}-bit register as .{kind.name}")

    # ---- writing -------------------------------------------------------------------------------------------------
    def write(self, place: int, type_name: str, expression: str, *, loose: bool = False) -> str:
        """The C++ statement that assigns an expression of that type to operand number `place`."""
        return self.assign(self.operands[place], type_name, expression, loose=loose)

    def assign(self, operand: Operand, type_name: str, expression: str, *, loose: bool = False) -> str:
        """The same for any operand; `loose` allows a wider register, which is filled by the type's sign."""
        kind = TYPES[type_name]
        if operand == Name("_"):
            return f"(void)({expression});"
        register = self.register(operand)
        if loose and register.bits > max(kind.bits, 1) and not kind.floating:
            return f"{register.cpp}.u{register.bits} = ({kind.cpp})({expression});"  # C extends by the type's sign
        return f"{self.member(register, kind)} = {expression};"

    def sink(self, place: int) -> bool:
        """Whether a destination is `_`."""
        return self.operands[place] == Name("_")

    def register(self, operand: Operand) -> Register:
        """The register that an operand names."""
        binding = self.function.lookup(operand.text) if isinstance(operand, Name) else None
        if not isinstance(binding, Register):
            raise self.refuse(f"{operand} is not a declared register")
        return binding

    # ---- operands of a certain shape -----------------------------------------------------------------------------
    def vector(self, place: int, count: int | None = None) -> tuple[Operand, ...]:
        """The elements of a `{...}` operand, `count` of them where it is given."""
        operand = self.operands[place]
        if not isinstance(operand, Vector) or (count is not None and len(operand.items) != count):
            raise self.refuse(f"operand {place + 1} should be a vector" + (f" of {count}" if count else ""))
        return operand.items

    def pair(self, place: int) -> tuple[Name, Name | None]:
        """`d|p`, or `d` alone."""
        operand = self.operands[place]
        if isinstance(operand, Pair):
            return operand.first, operand.second
        if isinstance(operand, Name):
            return operand, None
        raise self.refuse(f"operand {place + 1} should be a register or a pair of them")

    def integer(self, place: int) -> int:
        """An operand that must be an integer constant."""
        operand = self.operands[place]
        if not isinstance(operand, Integer):
            raise self.refuse(f"operand {place + 1} should be an integer constant")
        return operand.value

    def address(self, place: int, space: str) -> str:
        """A `[base+offset]` operand as a C++ expression: u32 for shared memory, u64 for the other spaces."""
        operand = self.operands[place]
        if not isinstance(operand, Address) or operand.coordinates is not None:
            raise self.refuse(f"operand {place + 1} should be an address")
        type_name = "u32" if space == "shared" else "u64"
        base = self._base(operand.base, type_name, space)
        return f"{base} + {integer_literal(operand.offset, TYPES[type_name])}" if operand.offset else base

    def _base(self, base: Operand, type_name: str, space: str) -> str:
        if isinstance(base, Name):
            binding = self.function.lookup(base.text)
            if isinstance(binding, Register) and space == "shared" and binding.bits == 64:
                return f"short_address({binding.cpp}.u64, {self.site})"
            if isinstance(binding, Place) and binding.space != space:
                raise self.refuse(f"{base.text} lies in .{binding.space}, not in .{space}")
        return self.value(base, type_name)
