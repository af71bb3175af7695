"""Branches, calls, and the ways to end or to wait."""

from __future__ import annotations

from ..forms import form
from ..statement import Code, Jump, Place, Statement
from ..tree import Group, Name, Operand, Prototype, Targets
from ..types import TYPES


def jump(statement: Statement, name: str) -> str:
    """A goto; backwards it counts a step, so that a launch that never ends is found out."""
    label = statement.function.lookup(name)
    if not isinstance(label, Jump):
        raise statement.refuse(f"{name} is not a label")
    step = f"machine::step({statement.site}); " if label.cpp in statement.function.passed else ""
    return f"{step}goto {label.cpp};"


@form("bra [uni]")
def branch(statement: Statement) -> str:
    """To a label."""
    statement.expect(1)
    return jump(statement, name_of(statement, statement.operands[0]))


@form("brx idx [uni]")
def indexed_branch(statement: Statement) -> str:
    """To a label of a table; an index beyond it is a finding."""
    statement.expect(2)
    targets = statement.function.lookup(name_of(statement, statement.operands[1]))
    if not isinstance(targets, Targets):
        raise statement.refuse("the second operand should name a .branchtargets")
    cases = [f"case {index}: {jump(statement, name)}" for index, name in enumerate(targets.targets)]
    fault = f'default: machine::fault("a branch index outside its table", {statement.site});'
    return f"switch ({statement.read(0, 'u32')}) {{ {' '.join(cases)} {fault} }}"


def name_of(statement: Statement, operand: Operand) -> str:
    """The text of an operand that must be a name."""
    if not isinstance(operand, Name):
        raise statement.refuse(f"{operand} should be a name")
    return operand.text


@form("ret [uni]")
def return_from(statement: Statement) -> str:
    """From a kernel, its thread's end."""
    statement.expect(0)
    return "return;"


@form("exit")
def exit_thread(statement: Statement) -> str:
    """The end of the thread, from a function too."""
    statement.expect(0)
    return "return;" if statement.function.function.entry else "machine::exit_thread();"


@form("trap", "brkpt")
def trap(statement: Statement) -> str:
    """A finding that ends the launch."""
    statement.expect(0)
    return f"machine::trap({statement.site});"


@form("nanosleep u32")
def sleep(statement: Statement) -> str:
    """Others run meanwhile."""
    statement.expect(1)
    return f"(void)({statement.read(0, 'u32')}); machine::nanosleep({statement.site});"


# ---- calls: results and parameters are arrays of the caller, handed over by address ------------------------------
@form("call [uni]")
def call(statement: Statement) -> str:
    """`call (result), function, (parameters)`, or through a register with a prototype or a list of targets."""
    operands = list(statement.operands)
    results = operands.pop(0).items if operands and isinstance(operands[0], Group) else ()
    if not operands or len(results) > 1:
        raise statement.refuse("a form of call that is not known")
    target = operands.pop(0)
    arguments = operands.pop(0).items if operands and isinstance(operands[0], Group) else ()
    places = [place_of(statement, argument) for argument in arguments]
    result = place_of(statement, results[0]) if results else None
    sizes = ([place.size for place in places], [result.size] if result else [])
    code = statement.function.lookup(name_of(statement, target))
    if isinstance(code, Code) and not operands:
        callees = [name_of(statement, target)]
        function, guard = statement.function.callee(code, statement), ""
    elif len(operands) == 1:
        callees = possible_targets(statement, name_of(statement, operands[0]), sizes)
        function = "((void (*)(const Frame*, void*, const void* const*))f_)"
        known = " && ".join(f"f_ != (u64)&{statement.function.module.names[name].cpp}" for name in callees)
        fault = f'machine::fault("a call through what is no function of that kind", {statement.site});'
        guard = f"u64 f_ = {statement.read(statement.operands.index(target), 'u64')}; if ({known or 'true'}) {fault} "
    else:
        raise statement.refuse("a form of call that is not known")
    for name in callees:
        check_sizes(statement, name, sizes)
    values = ", ".join(["nullptr", *(f"(const void*){place.address}" for place in places)][bool(places) :])
    target_address = f"(void*){result.address}" if result else "nullptr"
    call_text = f"{function}({statement.function.frame}, {target_address}, a_);"
    return f"{{ {guard}const void* const a_[] = {{{values}}}; {call_text} }}"


def place_of(statement: Statement, operand: Operand) -> Place:
    """The .param array of an argument."""
    place = statement.function.lookup(name_of(statement, operand))
    if not isinstance(place, Place) or place.space != "param":
        raise statement.refuse(f"{operand} should be a .param variable")
    return place


def signature(statement: Statement, name: str) -> tuple[list[int], list[int]]:
    """Bytes of parameters and results of a function or prototype."""
    function = statement.function.module.functions.get(name) or statement.function.lookup(name)
    lists = (function.params, function.results)
    params, results = ([item.count * TYPES[item.type].bits // 8 for item in items] for items in lists)
    return params, results


def check_sizes(statement: Statement, name: str, sizes: tuple[list[int], list[int]]) -> None:
    """A call must hand over what the function takes."""
    if signature(statement, name) != sizes:
        raise statement.refuse(f"{name} has parameters and results of other sizes")


def possible_targets(statement: Statement, name: str, sizes: tuple[list[int], list[int]]) -> list[str]:
    """The functions an indirect call may reach."""
    listed = statement.function.lookup(name)
    if isinstance(listed, Targets):
        return list(listed.targets)
    if not isinstance(listed, Prototype):
        raise statement.refuse(f"{name} should be a .callprototype or .calltargets")
    check_sizes(statement, name, sizes)
    functions = statement.function.module.functions.values()
    return [
        function.name
        for function in functions
        if function.body and not function.entry and signature(statement, function.name) == sizes
    ]
