"""A PTX module to one C++ file for the machine of `machine/machine.hpp`.

Every `.entry` becomes `extern "C" void kernel_NAME(const void* params)`, every `.func` a static function, registers
local variables, labels C++ labels. Beside each kernel stand its facts, for whoever launches it:
`uint32_t facts_NAME[3]`: bytes of parameters, bytes of shared memory before the dynamic part, `.maxntid` threads or 0.
"""

from __future__ import annotations

from typing import NamedTuple

from . import families  # noqa: F401  (registers the instruction forms)
from .function import FunctionTranslator, align_up, symbol
from .parse import parse
from .statement import Code, Place
from .tree import Float, Function, Group, Integer, Module, Name, Sum, UnknownInstruction, Variable
from .types import TYPES, float_bits

DIRECTIVES = {"maxntid", "reqntid", "minnctapersm", "maxnreg", "noreturn"}
LEAST_DYNAMIC_ALIGNMENT = 16


class KernelFacts(NamedTuple):
    """What a launch of a kernel must know; `static_shared_bytes` is where the dynamic shared memory starts."""

    name: str
    param_bytes: int
    static_shared_bytes: int
    max_threads: int


class Translation(NamedTuple):
    """C++ text, and the facts of its kernels by name."""

    cpp: str
    kernels: dict[str, KernelFacts]


def translate(ptx: str) -> Translation:
    """C++ of a PTX module; UnknownInstruction where it holds something that is not known."""
    return ModuleTranslator(parse(ptx)).translation()


class ModuleTranslator:
    """The names of module scope, the layout of static shared memory and the table of source positions."""

    def __init__(self, module: Module):
        self.module = module
        self.names: dict[str, Place | Code] = {}
        self.functions = {function.name: function for function in module.functions}  # definitions follow declarations
        self.shared_bytes = 0
        self.dynamic_align = LEAST_DYNAMIC_ALIGNMENT
        self.sites: list[str] = []
        self.arrays: list[str] = []
        self.facts: dict[str, KernelFacts] = {}
        self.has_constants = any(variable.space == "const" for variable in module.variables)
        for function in self.functions.values():
            missing = None if function.body else f"{function.name} has no body"
            self.names[function.name] = Code(("kernel_" if function.entry else "f_") + symbol(function.name), missing)
        for variable in module.variables:
            self.names[variable.name] = self.place(variable)
        self.arrays += [self.array(variable) for variable in module.variables if variable.space in ("global", "const")]

    def place(self, variable: Variable) -> Place:
        """Where a variable of module scope lies."""
        size = variable.count * TYPES[variable.type].bits // 8
        if variable.space == "shared" and variable.external:
            self.dynamic_align = max(self.dynamic_align, variable.align)
            return Place("shared", "dynamic_start", 0)
        if variable.space == "shared":
            return self.static_shared(variable, size)
        if variable.external or variable.space not in ("global", "const"):
            raise UnknownInstruction(variable.line, variable.name, "a variable that this module does not define")
        return Place(variable.space, f"((u64)v_{symbol(variable.name)})", size)

    def static_shared(self, variable: Variable, size: int) -> Place:
        """The next place of static shared memory."""
        offset = align_up(self.shared_bytes, variable.align)
        self.shared_bytes = offset + size
        return Place("shared", f"(shared_start + {offset}u)", size)

    # ---- initialised arrays --------------------------------------------------------------------------------------
    def array(self, variable: Variable) -> str:
        """The definition of a `.global` or `.const` variable, known to the machine under its name."""
        kind, name = TYPES[variable.type], "v_" + symbol(variable.name)
        size = variable.count * kind.bits // 8
        values = [self.element(variable, item, kind.bits) for item in variable.initial or ()]
        if len(values) > variable.count:
            raise UnknownInstruction(variable.line, variable.name, "more initial values than elements")
        element = f"u{kind.bits}"
        writable = "true" if variable.space == "global" else "false"
        return (
            f"alignas({variable.align}) static {element} {name}[{max(variable.count, 1)}] = {{{', '.join(values)}}};\n"
            f'static machine::StaticArray a_{name}("{variable.name}", {name}, {size}, {writable});'
        )

    def element(self, variable: Variable, item: object, bits: int) -> str:
        match item:
            case Integer(value):
                return f"{value & ((1 << bits) - 1)}{'ull' if bits == 64 else 'u'}"
            case Float(value, width):
                return f"{float_bits(value, width, bits)}{'ull' if bits == 64 else 'u'}"
            case Name(text) | Sum(Name(text), _) | Group((Sum(Name(text), _),)) if bits == 64:
                offset = item.offset if isinstance(item, Sum) else 0 if isinstance(item, Name) else item.items[0].offset
                target = self.names.get(text)
                if isinstance(target, Code) and not target.missing:
                    return f"(u64)&{target.cpp}"
                if isinstance(target, Place) and target.space in ("global", "const"):
                    return f"{target.address} + {offset}"
        raise UnknownInstruction(variable.line, f"{variable.name} = {item}", "an initial value that is not known")

    # ---- the file ------------------------------------------------------------------------------------------------
    def translation(self) -> Translation:
        """Device functions first: their static shared memory precedes that of the kernels, which overlap."""
        defined = [function for function in self.functions.values() if function.body]
        declarations = [self.prototype(function) + ";" for function in defined]
        bodies = [self.function(function) for function in sorted(defined, key=lambda function: function.entry)]
        files = [f'static const char* const file{number} = "{name}";' for number, name in self.module.files.items()]
        text = [
            f"// Made from PTX for {self.module.target}.",
            '#include "ptx/prelude/prelude.hpp"',
            'static const char* const file0 = "(PTX)";',
            *files,
            "static u32 shared_start, dynamic_start, static_shared_bytes;  // of the kernel that runs",
            "static const machine::Loc at[] = {" + ",\n".join([*self.sites, "{file0, 0, 0}"]) + "};",
            *declarations,
            *self.arrays,
            *bodies,
        ]
        return Translation("\n".join(text) + "\n", self.facts)

    def prototype(self, function: Function) -> str:
        cpp = self.names[function.name].cpp
        if function.entry:
            return f'extern "C" EXPORTED void {cpp}(const void* params)'
        return f"static void {cpp}(const Frame* frame, void* result, const void* const* args)"

    def function(self, function: Function) -> str:
        unknown = set(function.directives) - DIRECTIVES
        if unknown:
            raise UnknownInstruction(function.line, function.name, f".{unknown.pop()} is not known")
        before = self.shared_bytes
        code = FunctionTranslator(self, function)
        body = code.body()
        prologue = []
        if function.entry:
            dynamic = align_up(self.shared_bytes, self.dynamic_align)
            threads = 1
            for count in function.directives.get("reqntid") or function.directives.get("maxntid") or (0,):
                threads *= count
            facts = KernelFacts(function.name, code.param_bytes, dynamic, threads)
            self.facts[function.name] = facts
            self.shared_bytes = before
            prologue = [
                f"static_shared_bytes = {dynamic}u;",
                "shared_start = machine::shared_base();",
                "dynamic_start = shared_start + static_shared_bytes;",
                "const Frame* const frame = nullptr;",
            ]
        lines = [self.prototype(function) + " {", *prologue, *code.declarations(), *body, "}"]
        if function.entry:
            values = ", ".join(map(str, facts[1:]))
            lines.append(f'extern "C" {{ EXPORTED uint32_t facts_{symbol(function.name)}[3] = {{{values}}}; }}')
        return "\n".join(lines)
