"""Bitwise logic, shifts and byte permutation."""

from __future__ import annotations

from ..forms import form, pure
from ..statement import Statement
from ..tree import Integer

ANY = "T:b16|b32|b64"

pure(f"and {ANY}", "T T T", "{a} & {b}")
pure(f"or {ANY}", "T T T", "{a} | {b}")
pure(f"xor {ANY}", "T T T", "{a} ^ {b}")
pure(f"not {ANY}", "T T", "~{a}")
pure(f"cnot {ANY}", "T T", "{a} == 0")
pure("and pred", "pred pred pred", "{a} && {b}")
pure("or pred", "pred pred pred", "{a} || {b}")
pure("xor pred", "pred pred pred", "({a} != 0) != ({b} != 0)")
pure("not pred", "pred pred", "!{a}")

pure("shf l clamp b32", "b32 b32 b32 u32", "shf_left({a}, {b}, {c} < 32u ? {c} : 32u)")
pure("shf r clamp b32", "b32 b32 b32 u32", "shf_right({a}, {b}, {c} < 32u ? {c} : 32u)")
pure("shf l wrap b32", "b32 b32 b32 u32", "shf_left({a}, {b}, {c} & 31)")
pure("shf r wrap b32", "b32 b32 b32 u32", "shf_right({a}, {b}, {c} & 31)")
pure("prmt b32", "b32 b32 b32 b32", "prmt({a}, {b}, {c})")
for _mode in ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16"):
    pure(f"prmt b32 {_mode}", "b32 b32 b32 b32", f"prmt({{a}}, {{b}}, PRMT_{_mode.upper()}[{{c}} & 3])")


@form(f"shl {ANY}", "shr T:b16|b32|b64|u16|u32|u64|s16|s32|s64")
def shift(statement: Statement) -> str:
    """Amounts beyond the width give 0, or copies of the sign."""
    statement.expect(3)
    kind, bits = statement["T"], int(statement["T"][1:])
    value, amount = statement.read(1, kind), statement.read(2, "u32")
    sign = "<<" if statement["name"] == "shl" else ">>"
    beyond = f"{value} >> {bits - 1}" if kind[0] == "s" else "0"
    if isinstance(statement.operands[2], Integer):
        inside = statement.operands[2].value & 0xFFFFFFFF < bits
        return statement.write(0, kind, f"{value} {sign} {amount}" if inside else beyond)
    return statement.write(0, kind, f"{amount} < {bits}u ? {value} {sign} {amount} : {beyond}")


@form("lop3 b32", "lop3 combine:or|and b32")
def three_input_logic(statement: Statement) -> str:
    """The function whose truth table is the immediate: one product of a, b, c for each of its ones."""
    statement.expect(6 if statement["combine"] else 5)
    table = statement.integer(4)
    if not 0 <= table <= 255:
        raise statement.refuse("a truth table has 8 bits")
    a, b, c = (statement.read(place, "b32") for place in (1, 2, 3))
    terms = [
        "({} & {} & {})".format(*(value if row & bit else f"~{value}" for value, bit in ((a, 4), (b, 2), (c, 1))))
        for row in range(8)
        if table >> row & 1
    ]
    result = " | ".join(terms) or "0"
    if not statement["combine"]:
        return statement.write(0, "b32", result)
    target, predicate = statement.pair(0)
    if predicate is None:
        raise statement.refuse("a second destination is missing")
    sign = "||" if statement["combine"] == "or" else "&&"
    combined = f"t_ != 0 {sign} {statement.read(5, 'pred')}"
    stores = [statement.assign(predicate, "pred", combined), statement.assign(target, "b32", "t_")]
    return f"{{ u32 t_ = {result}; {' '.join(stores)} }}"
