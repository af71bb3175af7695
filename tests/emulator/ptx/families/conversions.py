"""cvt: between integers, floating formats, packed halves and the 8-bit formats."""

from __future__ import annotations

from ..forms import form
from ..statement import Statement
from ..types import TYPES, integer_literal

INTEGERS = "u8|u16|u32|u64|s8|s16|s32|s64"
WIDER_INTEGERS = "u16|u32|u64|s16|s32|s64"
HALVES = ("f16", "bf16")
FORMATS = {"f16": "F16", "bf16": "BF16", "tf32": "TF32", "e4m3x2": "E4M3", "e5m2x2": "E5M2"}
FORMATS |= {"f16x2": "F16", "bf16x2": "BF16"}
INTEGER_ROUNDING, ROUNDING = "rni|rzi|rmi|rpi", "rn|rz|rm|rp"


@form(f"cvt [sat] D:{INTEGERS} A:{INTEGERS}")
def between_integers(statement: Statement) -> str:
    """Truncated or extended by the sign of the source; with .sat clamped."""
    statement.expect(2)
    target, source = TYPES[statement["D"]], TYPES[statement["A"]]
    value = statement.read(1, source.name, loose=True)
    if statement["sat"]:
        most = (1 << target.bits - target.signed) - 1
        least = integer_literal(-most - 1 if target.signed else 0, TYPES["s64"])
        value = f"clamp_wide({value}, {least}, {integer_literal(most, TYPES['u64'])})"
    return statement.write(0, target.name, f"({target.cpp}){value}", loose=True)


@form(
    f"cvt rnd:{INTEGER_ROUNDING} [ftz] [sat] D:{INTEGERS} A:f32",
    f"cvt rnd:{INTEGER_ROUNDING} [sat] D:{INTEGERS} A:f16|f64",
    f"cvt rnd:{INTEGER_ROUNDING} [sat] D:{WIDER_INTEGERS} A:bf16",
)
def float_to_integer(statement: Statement) -> str:
    """Rounded, then clamped to the target (.sat adds nothing)."""
    statement.expect(2)
    target = TYPES[statement["D"]]
    wide = statement["A"] == "f64" or target.bits == 64
    nan = f"{1 << (target.bits - 1)}ull" if wide else "0"
    function = "signed_from" if target.signed else "unsigned_from"
    mode = statement["rnd"][:2]
    result = f"({target.cpp}){function}({as_double(statement)}, Mode::{mode}, {target.bits}, {nan})"
    return statement.write(0, target.name, result, loose=True)


def as_double(statement: Statement) -> str:
    """The source as a double: its value, or what rounds as it does (`odd_of`)."""
    kind = statement["A"]
    if kind in HALVES:
        return f"half_value({statement.read(1, kind, loose=True)}, {'true' if kind == 'bf16' else 'false'})"
    value = statement.read(1, kind, loose=kind[0] in "us")
    if kind[0] in "us":
        return f"odd_from_{'signed' if kind[0] == 's' else 'unsigned'}({value})"
    return f"(f64)ftz({value})" if statement["ftz"] else f"(f64){value}"


@form(
    f"cvt rnd:{ROUNDING} [ftz] [sat] D:f32 A:{INTEGERS}",
    f"cvt rnd:{ROUNDING} [sat] D:f16|f64 A:{INTEGERS}",
    f"cvt rnd:{ROUNDING} [sat] D:bf16 A:{WIDER_INTEGERS}",
)
def integer_to_float(statement: Statement) -> str:
    """Rounded once."""
    statement.expect(2)
    target, source, mode = statement["D"], statement["A"], statement["rnd"]
    if target in HALVES:
        result = f"encode({as_double(statement)}, {FORMATS[target]}, Mode::{mode})"
    else:
        value = statement.read(1, source, loose=True)
        function = f"{target}_from_{'signed' if source[0] == 's' else 'unsigned'}"
        result = f"({target}){value}" if mode == "rn" else f"{function}({value}, Mode::{mode})"
    return store(statement, target, result)


def store(statement: Statement, target: str, result: str) -> str:
    """Assign a floating result with .sat, and .ftz where it is an f32."""
    if statement["sat"]:
        if target in HALVES:
            bfloat = "true" if target == "bf16" else "false"
            result = f"encode(sat(half_value((u16){result}, {bfloat})), {FORMATS[target]}, Mode::rn)"
        else:
            result = f"sat({result})"
    if statement["ftz"] and target == "f32":
        result = f"ftz({result})"
    return statement.write(0, target, result, loose=target in HALVES)


# The pairs of formats of which the target holds every value of the source, and those that must be rounded.
@form("cvt [ftz] [sat] D:f32 A:f16|bf16|f32", "cvt [ftz] [sat] D:f64 A:f32", "cvt [sat] D:f64 A:f16|bf16|f64")
def widened(statement: Statement) -> str:
    """Exact."""
    statement.expect(2)
    target, source = statement["D"], statement["A"]
    if target == "f32" and source in HALVES:
        result = f"machine::f32_from_{source}({statement.read(1, source, loose=True)})"
    elif target == "f32":
        result = f"(f32)({as_double(statement)})"
        result = result if statement["sat"] else f"canonical({result})"
    else:
        result = as_double(statement)
    return store(statement, target, result)


@form("cvt [sat] D:f16 A:f16", "cvt D:bf16 A:bf16")
def same_half(statement: Statement) -> str:
    """A copy, or clamped to [0, 1]."""
    statement.expect(2)
    return store(statement, statement["D"], statement.read(1, "f16", loose=True))


@form(
    f"cvt rnd:{ROUNDING} [ftz] [sat] D:f32 A:f64",
    f"cvt rnd:{ROUNDING} [ftz] [sat] D:f16|bf16 A:f32",
    f"cvt rnd:{ROUNDING} [sat] D:f16|bf16 A:f64",
    f"cvt rnd:{ROUNDING} [sat] D:f16 A:bf16",
    f"cvt rnd:{ROUNDING} [sat] D:bf16 A:f16",
)
def narrowed(statement: Statement) -> str:
    """Rounded once."""
    statement.expect(2)
    target, source, mode = statement["D"], statement["A"], statement["rnd"]
    if target == "f32":
        value = statement.read(1, "f64")
        result = f"canonical({f'(f32){value}' if mode == 'rn' else f'f32_rounded({value}, Mode::{mode})'})"
    elif mode == "rn" and source == "f32" and not statement["ftz"]:
        result = f"machine::{target}_from_f32({statement.read(1, 'f32')})"
    else:
        result = f"encode({as_double(statement)}, {FORMATS[target]}, Mode::{mode})"
    return store(statement, target, result)


@form(
    f"cvt rnd:{INTEGER_ROUNDING} [ftz] [sat] D:f32 A:f32",
    f"cvt rnd:{INTEGER_ROUNDING} [sat] D:f64 A:f64",
    f"cvt rnd:{INTEGER_ROUNDING} [sat] D:f16 A:f16",
    f"cvt rnd:{INTEGER_ROUNDING} [sat] D:bf16 A:bf16",
)
def integral(statement: Statement) -> str:
    """To an integer of the same format."""
    statement.expect(2)
    target = statement["D"]
    result = f"integral({as_double(statement)}, Mode::{statement['rnd'][:2]})"
    if target in HALVES:
        result = f"encode({result}, {FORMATS[target]}, Mode::rn)"
    elif target == "f32":
        result = f"canonical((f32){result})"
    return store(statement, target, result)


# ---- .relu, .satfinite, tf32, pairs and 8-bit formats ------------------------------------------------------------
def encoded(statement: Statement, value: str, target: str) -> str:
    """A double in the target format, with the form's mode, .satfinite and .relu."""
    mode = statement["rnd"] or "rn"
    finite = "true" if statement["satfinite"] else "false"
    result = f"encode({value}, {FORMATS[target]}, Mode::{mode}, {finite})"
    return f"relu({result}, {FORMATS[target]})" if statement["relu"] else result


@form(
    "cvt rnd:rn|rz relu:relu [satfinite] D:f16|bf16 f32",
    "cvt rnd:rn|rz satfinite:satfinite D:f16|bf16 f32",
    "cvt rnd:rna [satfinite] D:tf32 f32",
    "cvt rnd:rn|rz [satfinite] [relu] D:tf32 f32",
)
def clamped(statement: Statement) -> str:
    """One value; the low 13 bits of a tf32 are zero."""
    statement.expect(2)
    target = statement["D"]
    return statement.write(0, target, encoded(statement, f"(f64){statement.read(1, 'f32')}", target), loose=True)


@form(
    "cvt rnd:rn|rz [relu] [satfinite] D:f16x2|bf16x2 f32",
    "cvt rnd:rn satfinite:satfinite [relu] D:e4m3x2|e5m2x2 f32",
)
def packed(statement: Statement) -> str:
    """Two values: the first source goes to the upper half."""
    statement.expect(3)
    target = statement["D"]
    high, low = statement.read(1, "f32"), statement.read(2, "f32")
    if target in ("f16x2", "bf16x2") and not (statement["relu"] or statement["satfinite"] or statement["rnd"] == "rz"):
        convert = f"machine::{target[:-2]}_from_f32({{}})"
    else:
        convert = encoded(statement, "(f64){}", target)
    bits = TYPES[target].bits
    result = f"{convert.format(low)} | (u32){convert.format(high)} << {bits // 2}"
    return statement.write(0, target, f"({TYPES[target].cpp})({result})")


@form("cvt rnd:rn satfinite:satfinite [relu] D:e4m3x2|e5m2x2 f16x2")
def packed_from_halves(statement: Statement) -> str:
    """Each half of the source to 8 bits."""
    statement.expect(2)
    target, source = statement["D"], statement.read(1, "b32")
    low, high = (encoded(statement, f"half_value((u16)({source} >> {shift}), false)", target) for shift in (0, 16))
    return statement.write(0, target, f"(u16)({low} | {high} << 8)")


@form("cvt rnd:rn [relu] f16x2 A:e4m3x2|e5m2x2")
def halves_from_packed(statement: Statement) -> str:
    """Each byte of the source to a half: exact."""
    statement.expect(2)
    source, small = statement.read(1, "b16"), FORMATS[statement["A"]]
    halves = [f"encode(decode({source} >> {shift} & 255, {small}), F16, Mode::rn)" for shift in (0, 8)]
    low, high = (f"relu({half}, F16)" if statement["relu"] else half for half in halves)
    return statement.write(0, "b32", f"{low} | {high} << 16")
