"""Comparisons (setp, set), selections (selp, slct) and tests of floating-point classes (testp)."""

from __future__ import annotations

from ..forms import form, pure
from ..statement import Statement

ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
OPPOSITE = {"eq": "!=", "ne": "==", "lt": ">=", "le": ">", "gt": "<=", "ge": "<"}
COMPARE = "compare:eq|ne|lt|le|gt|ge|lo|ls|hi|hs|equ|neu|ltu|leu|gtu|geu|num|nan"
INTEGERS = "b16|b32|b64|u16|u32|u64|s16|s32|s64"
COMBINE = {"and": "&&", "or": "||", "xor": "!="}


def floating_comparison(compare: str, a: str, b: str) -> str | None:
    """A comparison of floating values: false for NaN, or true where it ends in `u`."""
    if compare in ("num", "nan"):
        return f"{'!' if compare == 'num' else ''}__builtin_isunordered({a}, {b})"
    if compare == "eq" or compare == "neu":
        return f"{a} {ORDERED[compare[:2]]} {b}"
    if compare == "ne":
        return f"__builtin_islessgreater({a}, {b})"
    if compare == "equ":
        return f"!__builtin_islessgreater({a}, {b})"
    if compare in ORDERED:
        return f"{a} {ORDERED[compare]} {b}"
    return f"!({a} {OPPOSITE[compare[:-1]]} {b})" if compare[:-1] in OPPOSITE else None


def comparison(statement: Statement, kind: str, a: str, b: str) -> str:
    """The comparison a form names as a C++ condition."""
    compare = statement["compare"]
    result = None
    if kind[0] in "fh":
        result = floating_comparison(compare, a, b)
    elif compare in UNSIGNED and kind[0] == "u":
        result = f"{a} {UNSIGNED[compare]} {b}"
    elif compare in ORDERED and (kind[0] != "b" or compare in ("eq", "ne")):
        result = f"{a} {ORDERED[compare]} {b}"
    if result is None:
        raise statement.refuse(f".{compare} is no comparison of .{kind}")
    return result


def float_source(statement: Statement, place: int, kind: str) -> str:
    """A floating operand, flushed where the form says .ftz; halves as double."""
    if kind in ("f16", "bf16"):
        bfloat = "true" if kind == "bf16" else "false"
        rules = f"HalfRules{{{bfloat}, {'true' if statement['ftz'] else 'false'}}}"
        return f"half_flushed(half_value({statement.read(place, kind)}, {bfloat}), {rules})"
    value = statement.read(place, kind)
    return f"ftz({value})" if statement["ftz"] else value


def operands_of_comparison(statement: Statement, kind: str) -> tuple[str, str]:
    """Operands 2 and 3 as C++ values to compare."""
    if kind in ("f32", "f64", "f16", "bf16"):
        return float_source(statement, 1, kind), float_source(statement, 2, kind)
    return statement.read(1, kind), statement.read(2, kind)


def combined(statement: Statement, condition: str) -> str:
    """The condition and, or, xor the predicate of the form's .BoolOp."""
    if not statement["combine"]:
        return condition
    sign = COMBINE[statement["combine"]]
    return f"({condition}) {sign} ({statement.read(3, 'pred')} != 0)"


@form(
    f"setp {COMPARE} [combine:and|or|xor] T:{INTEGERS}|f64",
    f"setp {COMPARE} [combine:and|or|xor] [ftz] T:f32|f16|bf16",
)
def set_predicate(statement: Statement) -> str:
    """p gets the comparison, q its complement, each combined with c."""
    statement.expect(4 if statement["combine"] else 3)
    kind = statement["T"]
    condition = comparison(statement, kind if kind != "bf16" else "f16", *operands_of_comparison(statement, kind))
    first, second = statement.pair(0)
    if second is None:
        return statement.assign(first, "pred", combined(statement, condition))
    values = combined(statement, "t_"), combined(statement, "!t_")
    stores = statement.assign(first, "pred", "p_") + " " + statement.assign(second, "pred", "q_")
    return f"{{ bool t_ = {condition}; bool p_ = {values[0]}, q_ = {values[1]}; {stores} }}"


@form(f"setp {COMPARE} [combine:and|or|xor] [ftz] T:f16x2|bf16x2")
def set_two_predicates(statement: Statement) -> str:
    """p gets the comparison of the lower halves, q that of the upper ones."""
    statement.expect(4 if statement["combine"] else 3)
    first, second = statement.pair(0)
    if second is None:
        raise statement.refuse("two destinations are expected")
    low, high = half_conditions(statement)
    values = f"bool p_ = {combined(statement, low)}, q_ = {combined(statement, high)};"
    return f"{{ {values} {statement.assign(first, 'pred', 'p_')} {statement.assign(second, 'pred', 'q_')} }}"


def half_conditions(statement: Statement) -> tuple[str, str]:
    """The comparisons of the lower and of the upper halves of packed operands."""
    bfloat = "true" if statement["T"] == "bf16x2" else "false"
    rules = f"HalfRules{{{bfloat}, {'true' if statement['ftz'] else 'false'}}}"
    a, b = statement.read(1, "b32"), statement.read(2, "b32")
    halves = [
        [f"half_flushed(half_value((u16)({value} >> {shift}), {bfloat}), {rules})" for value in (a, b)]
        for shift in (0, 16)
    ]
    low, high = (comparison(statement, "f16", *half) for half in halves)
    return low, high


@form(
    f"set {COMPARE} [combine:and|or|xor] D:u32|s32|f32 T:{INTEGERS}|f64",
    f"set {COMPARE} [combine:and|or|xor] [ftz] D:u32|s32|f32 T:f32",
    f"set {COMPARE} [combine:and|or|xor] [ftz] D:u16|s16|u32|s32|f16|bf16 T:f16|bf16",
)
def set_value(statement: Statement) -> str:
    """All ones, or 1.0, where the comparison combined with c holds."""
    statement.expect(4 if statement["combine"] else 3)
    kind, target = statement["T"], statement["D"]
    condition = comparison(statement, kind if kind != "bf16" else "f16", *operands_of_comparison(statement, kind))
    one = {"f32": "1.0f", "f16": "0x3c00", "bf16": "0x3f80"}.get(target, "-1")
    return statement.write(0, target, f"({combined(statement, condition)}) ? {one} : 0")


@form(f"set {COMPARE} [combine:and|or|xor] [ftz] D:f16x2|bf16x2|u32|s32 T:f16x2|bf16x2")
def set_two_values(statement: Statement) -> str:
    """The same for each half: 1.0 or, for integers, 0xffff."""
    statement.expect(4 if statement["combine"] else 3)
    one = {"f16x2": "0x3c00u", "bf16x2": "0x3f80u"}.get(statement["D"], "0xffffu")
    low, high = (combined(statement, condition) for condition in half_conditions(statement))
    return statement.write(0, "b32", f"(({low}) ? {one} : 0u) | (({high}) ? {one} : 0u) << 16")


pure(f"selp T:{INTEGERS}|f32|f64", "T T T pred", "{c} ? {a} : {b}")
pure(f"slct T:{INTEGERS}|f32|f64 s32", "T T T s32", "{c} >= 0 ? {a} : {b}")
pure(f"slct T:{INTEGERS}|f32|f64 f32", "T T T f32", "{c} >= 0 ? {a} : {b}")
pure(f"slct ftz:ftz T:{INTEGERS}|f32|f64 f32", "T T T f32", "ftz({c}) >= 0 ? {a} : {b}")
for _test in ("finite", "infinite", "number", "notanumber", "normal", "subnormal"):
    pure(f"testp {_test} f32", "pred f32", f"testp(Test::{_test}, {{a}}, 0x1p-126)")
    pure(f"testp {_test} f64", "pred f64", f"testp(Test::{_test}, {{a}}, 0x1p-1022)")
