"""f32, f64 and f32x2 arithmetic, exactly as IEEE 754 rounds it.

`add.f32` without a rounding modifier may be contracted with a multiplication by ptxas; here it never is.
"""

from __future__ import annotations

from ..forms import form, pure
from ..statement import Statement

ROUNDING = "rn|rz|rm|rp"
SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def sources(statement: Statement, kind: str, count: int) -> list[str]:
    """The operands after the destination, flushed where the form says .ftz."""
    statement.expect(1 + count)
    values = [statement.read(1 + place, kind) for place in range(count)]
    return [f"ftz({value})" for value in values] if statement["ftz"] else values


def arithmetic(statement: Statement, kind: str, values: list[str]) -> str:
    """The operation on these values in the form's rounding mode, without .ftz, .sat and the NaN rule."""
    name, mode = statement["name"].replace("mad", "fma"), statement["rnd"] or "rn"
    if name == "rcp":
        name, values = "div", ["1.0f" if kind == "f32" else "1.0", *values]
    if mode != "rn":
        return f"{name}_rounded({', '.join(values)}, Mode::{mode})"
    suffix = "f" if kind == "f32" else ""
    if name == "fma":
        return f"__builtin_fma{suffix}({', '.join(values)})"
    if name == "sqrt":
        return f"__builtin_sqrt{suffix}({values[0]})"
    return f"{values[0]} {SIGNS[name]} {values[1]}"


def store(statement: Statement, kind: str, result: str) -> str:
    """Assign a result with .ftz, .sat and, for f32, the canonical NaN."""
    if statement["ftz"]:
        result = f"ftz({result})"
    if statement["sat"]:
        result = f"sat({result})"
    assignment = statement.write(0, kind, result)
    if kind == "f64" or statement["sat"] or statement.sink(0):
        return assignment
    target = statement.register(statement.operands[0]).cpp
    return f"{assignment} if ({target}.f32 != {target}.f32) {target}.u32 = NAN32;"


@form(
    f"add|sub|mul [rnd:{ROUNDING}] [ftz] [sat] T:f32",
    f"add|sub|mul [rnd:{ROUNDING}] T:f64",
    f"div rnd:{ROUNDING} [ftz] T:f32",
    f"div rnd:{ROUNDING} T:f64",
)
def binary(statement: Statement) -> str:
    """Sum, difference, product, quotient."""
    kind = statement["T"]
    return store(statement, kind, arithmetic(statement, kind, sources(statement, kind, 2)))


@form(f"fma|mad rnd:{ROUNDING} [ftz] [sat] T:f32", f"fma|mad rnd:{ROUNDING} T:f64")
def fused(statement: Statement) -> str:
    """a * b + c, rounded once; mad is fma on all targets there are."""
    kind = statement["T"]
    return store(statement, kind, arithmetic(statement, kind, sources(statement, kind, 3)))


@form(f"sqrt|rcp rnd:{ROUNDING} [ftz] T:f32", f"sqrt|rcp rnd:{ROUNDING} T:f64")
def root(statement: Statement) -> str:
    """Square root, reciprocal."""
    kind = statement["T"]
    return store(statement, kind, arithmetic(statement, kind, sources(statement, kind, 1)))


@form(f"add|sub|mul [rnd:{ROUNDING}] [ftz] T:f32x2", f"fma rnd:{ROUNDING} [ftz] T:f32x2")
def paired(statement: Statement) -> str:
    """Two f32 operations on the halves of 64 bits."""
    count = 3 if statement["name"] == "fma" else 2
    statement.expect(1 + count)
    pairs = [statement.read(1 + place, "b64") for place in range(count)]
    halves = []
    for half in ("low_of", "high_of"):
        values = [f"{half}({pair})" for pair in pairs]
        if statement["ftz"]:
            values = [f"ftz({value})" for value in values]
        result = f"canonical({arithmetic(statement, 'f32', values)})"
        halves.append(f"ftz({result})" if statement["ftz"] else result)
    return statement.write(0, "b64", f"pair_of({halves[0]}, {halves[1]})")


@form("min|max [ftz] [nan:NaN] [xorsign] [abs] T:f32", "min|max T:f64")
def extreme(statement: Statement) -> str:
    """min and max of two values or, with f32, of three."""
    kind, function = statement["T"], f"float_{statement['name']}"
    three = kind == "f32" and len(statement.operands) == 4
    if bool(statement["xorsign"]) != bool(statement["abs"]) or (three and statement["xorsign"]):
        raise statement.refuse(".xorsign and .abs go together, with two sources")
    values = sources(statement, kind, 3 if three else 2)
    nan = "true" if statement["nan"] else "false"
    if statement["xorsign"]:
        a, b = values
        magnitude = f"{function}(__builtin_fabsf({a}), __builtin_fabsf({b}), {nan})"
        return statement.write(0, kind, f"with_sign_product({magnitude}, {a}, {b})")
    result = f"{function}({values[0]}, {values[1]}, {nan})"
    if three:
        result = f"{function}({result}, {values[2]}, {nan})"
    return store(statement, kind, result)


pure("abs f32", "b32 b32", "{a} & 0x7fffffffu")
pure("neg f32", "b32 b32", "{a} ^ 0x80000000u")
pure("abs ftz f32", "f32 f32", "__builtin_fabsf(ftz({a}))")
pure("neg ftz f32", "f32 f32", "-ftz({a})")
pure("abs f64", "b64 b64", "{a} & ~(1ull << 63)")
pure("neg f64", "b64 b64", "{a} ^ 1ull << 63")
pure("copysign f32", "b32 b32 b32", "({a} & 0x80000000u) | ({b} & 0x7fffffffu)")
pure("copysign f64", "b64 b64 b64", "({a} & 1ull << 63) | ({b} & ~(1ull << 63))")
