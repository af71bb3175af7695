"""One PTX function to the body of a C++ function: scopes, labels, source positions, and a statement at a time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .forms import find_form
from .special import SPECIAL_REGISTERS
from .statement import Binding, Code, Jump, Place, Register, Statement
from .tree import (
    Block,
    Function,
    Instruction,
    Label,
    Loc,
    Prototype,
    Registers,
    Targets,
    UnknownInstruction,
    Variable,
)
from .types import TYPES

if TYPE_CHECKING:
    from .translate import ModuleTranslator


def symbol(name: str) -> str:
    """A PTX name as part of a C++ one, different names staying different."""
    return re.sub(r"\W|_", lambda found: "_" if found.group() == "_" else f"_{ord(found.group()):x}_", name.lstrip("%"))


def align_up(value: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-value // to) * to


class FunctionTranslator:
    """The names in scope while a function is walked once from top to bottom, and the C++ it has become."""

    def __init__(self, module: ModuleTranslator, function: Function):
        self.module, self.function = module, function
        self.scopes: list[dict[str, Binding]] = []
        self.ranges: list[dict[str, Registers]] = []  # prefixes of `%r<n>`, beside each scope
        self.cpp_names: set[str] = set()
        self.registers: dict[int, list[str]] = {}
        self.storage: list[str] = []
        self.lines: list[str] = []
        self.passed: set[str] = set()  # labels behind us: a jump to one is a backward branch
        self.position = (0, 0)
        self.site_of: tuple[Instruction | None, str] = (None, "")
        self.carry = False
        self.parameters_move = False  # to the thread's stack, where generic addresses reach them
        self.local_arrays = 0
        self.param_bytes = 0
        self.params = self._params()

    def _params(self) -> dict[str, Binding]:
        """The places of parameters and results."""
        places: dict[str, Binding] = {}
        for number, param in enumerate(self.function.params):
            size = param.count * TYPES[param.type].bits // 8
            if self.function.entry:
                offset = align_up(self.param_bytes, param.align)
                self.param_bytes = offset + size
                places[param.name] = Place("param", f"((u64)params + {offset})", size)
            else:
                places[param.name] = Place("param", f"((u64)args[{number}])", size)
        for result in self.function.results:
            places[result.name] = Place("param", "((u64)result)", result.count * TYPES[result.type].bits // 8)
        return places

    # ---- the walk ------------------------------------------------------------------------------------------------
    def body(self) -> list[str]:
        """The statements; to be called once, before `declarations`."""
        assert self.function.body is not None
        self.scopes.append(self.params)
        self.ranges.append({})
        self.block(self.function.body)
        return self.lines

    def declarations(self) -> list[str]:
        """Registers, poisoned, and the arrays of the function; all of them before the first label."""
        lines = ["bool carry = false;"] if self.carry else []
        if self.parameters_move:
            lines += [f"alignas(64) unsigned char copy[{self.param_bytes}];"]
            lines += [f"params = __builtin_memcpy(copy, params, {self.param_bytes});"]
        for bits, names in self.registers.items():
            kind, poison = ("pred", "POISON_PRED") if bits == 1 else (f"R{bits}", f"{{POISON{bits}}}")
            lines += [f"{kind} " + ", ".join(f"{name} = {poison}" for name in names) + ";"]
        return lines + self.storage

    def block(self, block: Block) -> None:
        """The statements of a scope; its labels are known from its start."""
        labels = (node.name for node in block.nodes if isinstance(node, Label))
        self.scopes.append({name: Jump(self.unique("L_" + symbol(name))) for name in labels})
        self.ranges.append({})
        for node in block.nodes:
            match node:
                case Instruction():
                    self.lines.append(self.instruction(node))
                case Loc(file, line):
                    self.position = (file, line) if line else self.position
                case Label(_, name):
                    label = self.scopes[-1][name].cpp
                    self.passed.add(label)
                    self.lines.append(f"{label}:;")
                case Block():
                    self.block(node)
                case Registers():
                    self.declare_registers(node)
                case Variable():
                    self.scopes[-1][node.name] = self.declare_variable(node)
                case Targets() | Prototype():
                    self.scopes[-1][node.name] = node
        self.scopes.pop()
        self.ranges.pop()

    def instruction(self, instruction: Instruction) -> str:
        """An instruction as a line of C++."""
        found = find_form(instruction.opcode)
        if found is None:
            raise UnknownInstruction(instruction.line, instruction.text, f"{instruction.opcode} is not known")
        emit, parts = found
        statement = Statement(instruction, parts, self)
        try:
            code = emit(statement)
        except ValueError as error:
            raise statement.refuse(str(error)) from error
        if instruction.guard is None:
            return code
        condition = statement.value(instruction.guard, "pred")
        return f"if ({condition}) {{ {code} }}"

    # ---- names ---------------------------------------------------------------------------------------------------
    def lookup(self, name: str) -> Binding | None:
        """What a name stands for in the innermost scope that knows it."""
        for names, ranges in zip(reversed(self.scopes), reversed(self.ranges)):
            if name in names:
                if isinstance(names[name], Registers):
                    names[name] = self.new_register(name, names[name].type)
                return names[name]
            if ranges and name not in SPECIAL_REGISTERS:
                found = re.match(r"(.*?)(0|[1-9]\d*)\Z", name)
                if found and found.group(1) in ranges:
                    declared = ranges[found.group(1)]
                    if int(found.group(2)) < dict(declared.names)[found.group(1)]:
                        names[name] = self.new_register(name, declared.type)
                        return names[name]
        return self.module.names.get(name)

    def unique(self, wanted: str) -> str:
        """A C++ name that this function has not used yet."""
        name, number = wanted, 1
        while name in self.cpp_names:
            number += 1
            name = f"{wanted}_{number}"
        self.cpp_names.add(name)
        return name

    def new_register(self, name: str, type_name: str) -> Register:
        bits = TYPES[type_name].bits
        register = Register(self.unique("r_" + symbol(name)), bits)
        self.registers.setdefault(bits, []).append(register.cpp)
        return register

    def declare_registers(self, declaration: Registers) -> None:
        if declaration.type not in TYPES:
            raise UnknownInstruction(declaration.line, f".reg .{declaration.type}", "a type that is not known")
        for name, count in declaration.names:
            (self.scopes if count is None else self.ranges)[-1][name] = declaration

    def declare_variable(self, variable: Variable) -> Place:
        """A variable of this function: an array on the thread's stack, or a place of static shared memory."""
        size = variable.count * TYPES[variable.type].bits // 8
        if variable.space == "shared" and not variable.external:
            return self.module.static_shared(variable, size)
        if variable.space not in ("local", "param"):
            raise UnknownInstruction(variable.line, variable.name, f"a .{variable.space} variable inside a function")
        name = self.unique("v_" + symbol(variable.name))
        array = f"alignas({max(variable.align, 8)}) unsigned char {name}[{size}];"
        self.storage.append(f"{array} __builtin_memset({name}, 0xff, sizeof {name});")
        if variable.space == "local":
            self.local_arrays += 1
            frame = f"frame{self.local_arrays}"
            up = f"&frame{self.local_arrays - 1}" if self.local_arrays > 1 else "frame"
            self.storage.append(f"const Frame {frame} = {{{up}, (u64){name}, sizeof {name}}};")
        return Place(variable.space, f"((u64){name})", size)

    @property
    def frame(self) -> str:
        """The chain of local arrays that an access may lie in."""
        return f"&frame{self.local_arrays}" if self.local_arrays else "frame"

    def callee(self, code: Code, statement: Statement) -> str:
        """The C++ function of a name, which must have a body."""
        if code.missing:
            raise statement.refuse(code.missing)
        return code.cpp

    # ---- source positions ----------------------------------------------------------------------------------------
    def site(self, instruction: Instruction) -> str:
        """The C++ object for an instruction's position; one for each instruction."""
        if self.site_of[0] is not instruction:
            file, line = self.position
            self.module.sites.append(f"{{file{file}, {line}, {instruction.line}}}")
            self.site_of = (instruction, f"&at[{len(self.module.sites) - 1}]")
        return self.site_of[1]
