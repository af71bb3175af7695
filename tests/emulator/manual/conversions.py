"""cvt between integers, floating formats, packed halves and 8-bit formats."""

from __future__ import annotations

import math
from fractions import Fraction

from . import floats
from .case import Case, case
from .halves import relu
from .integers import clamp, of_type
from .numbers import BF16, E4M3, E5M2, F16, F32, F64, INF, NAN, TF32, Format, decode, encode, flush, negative

BF16_INTEGERS = ("u16", "u32", "u64", "s16", "s32", "s64")  # ptxas knows no bf16 from or to 8 bits
INTEGERS = ("u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64")
FLOATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
MODES = ("rn", "rz", "rm", "rp")
INTEGRAL = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


def between_integers() -> list[Case]:
    cases = []
    for target in INTEGERS:
        for source in INTEGERS:
            # An 8-bit result stands in a wider register, extended by its sign.
            register = {"u8": "u32", "s8": "s32"}.get(target, target)
            plain = lambda a, s=source, t=target: of_type(t, of_type(s, a))  # noqa: E731
            cases.append(case(f"cvt.{target}.{source}", f"{register} <- {source}", plain))
            if not holds(target, source):
                sat = lambda a, s=source, t=target: clamp(of_type(s, a), t)  # noqa: E731
                cases.append(case(f"cvt.sat.{target}.{source}", f"{register} <- {source}", sat))
    return cases


def holds(target: str, source: str) -> bool:
    """Whether a type has every value of another; ptxas then refuses .sat."""
    bits, others = int(target[1:]), int(source[1:])
    return bits >= others if target[0] == source[0] else target[0] == "s" and bits > others


def to_integer(a: int, form: Format, target: str, mode: str, wide: bool) -> int:
    """Rounded, then clamped; a NaN is 0, or the upper bit where a type is 64 bits wide."""
    value = decode(a, form)
    width = int(target[1:])
    if value is NAN:
        return of_type(target, 1 << (width - 1)) if wide or width == 64 else 0
    if abs(value) == INF:
        return clamp((1 << 70) * (1 if value > 0 else -1), target)
    return clamp(INTEGRAL[mode](value), target)


def float_to_integer() -> list[Case]:
    cases = []
    for source, form in FLOATS.items():
        for target in BF16_INTEGERS if source == "bf16" else INTEGERS:
            register = {"u8": "u16", "s8": "s16"}.get(target, target)
            for mode in INTEGRAL:
                define = lambda a, f=form, t=target, m=mode, w=source == "f64": to_integer(a, f, t, m, w)  # noqa: E731
                cases.append(case(f"cvt.{mode}.{target}.{source}", f"{register} <- {source}", define))
    ftz = lambda a: to_integer(flush(a, F32), F32, "s32", "rpi", False)  # noqa: E731
    cases.append(case("cvt.rpi.ftz.s32.f32", "s32 <- f32", ftz))
    sat = lambda a: to_integer(a, F32, "u16", "rni", False)  # noqa: E731
    cases.append(case("cvt.rni.sat.u16.f32", "u16 <- f32", sat))
    return cases


def integer_to_float() -> list[Case]:
    cases = []
    for target, form in FLOATS.items():
        for source in BF16_INTEGERS if target == "bf16" else INTEGERS:
            for mode in MODES:
                define = lambda a, f=form, s=source, m=mode: encode(Fraction(of_type(s, a)), f, m)  # noqa: E731
                cases.append(case(f"cvt.{mode}.{target}.{source}", f"{target} <- {source}", define))
    sat = lambda a: encode(Fraction(min(max(of_type("s32", a), 0), 1)), F32)  # noqa: E731
    cases.append(case("cvt.rn.sat.f32.s32", "f32 <- s32", sat))
    return cases


def convert(a: int, source: Format, target: Format, mode: str = "rn", finite: bool = False) -> int:
    return encode(decode(a, source), target, mode, zero=negative(a, source), finite=finite)


def between_floats() -> list[Case]:
    cases = []
    exact = [("f32", "f16"), ("f32", "bf16"), ("f64", "f16"), ("f64", "f32"), ("f64", "bf16")]
    rounded = [("f16", "f32"), ("bf16", "f32"), ("f16", "f64"), ("bf16", "f64"), ("f32", "f64")]
    rounded += [("f16", "bf16"), ("bf16", "f16")]
    for target, source in exact:
        define = lambda a, s=FLOATS[source], t=FLOATS[target]: convert(a, s, t)  # noqa: E731
        cases.append(case(f"cvt.{target}.{source}", f"{target} <- {source}", define))
    for target, source in rounded:
        for mode in MODES:
            define = lambda a, s=FLOATS[source], t=FLOATS[target], m=mode: convert(a, s, t, m)  # noqa: E731
            cases.append(case(f"cvt.{mode}.{target}.{source}", f"{target} <- {source}", define))
    for kind, form in FLOATS.items():
        for mode in INTEGRAL:
            define = lambda a, form=form, mode=mode: integral(a, form, mode)  # noqa: E731
            cases.append(case(f"cvt.{mode}.{kind}.{kind}", f"{kind} <- {kind}", define))
    return cases + with_modifiers()


def integral(a: int, form: Format, mode: str) -> int:
    """An integer in the same format, which keeps the sign of zero."""
    value = decode(a, form)
    if value is NAN or abs(value) == INF:
        return form.nan if value is NAN else a
    return encode(Fraction(INTEGRAL[mode](value)), form, zero=negative(a, form))


def with_modifiers() -> list[Case]:
    """.ftz, .sat, .relu, .satfinite on conversions of single values."""
    saturated = lambda a, s, t, m="rn": floats.saturated(convert(a, s, t, m), t)  # noqa: E731
    cases = [
        case("cvt.sat.f32.f32", "f32 <- f32", lambda a: floats.saturated(a, F32)),
        case("cvt.ftz.f32.f32", "f32 <- f32", lambda a: convert(flush(a, F32), F32, F32)),
        case("cvt.ftz.f64.f32", "f64 <- f32", lambda a: convert(flush(a, F32), F32, F64)),
        case("cvt.rn.ftz.f32.f64", "f32 <- f64", lambda a: flush(convert(a, F64, F32), F32)),
        case("cvt.rn.ftz.f16.f32", "f16 <- f32", lambda a: convert(flush(a, F32), F32, F16)),
        case("cvt.rzi.ftz.f32.f32", "f32 <- f32", lambda a: integral(flush(a, F32), F32, "rzi")),
        case("cvt.rz.sat.f32.f64", "f32 <- f64", lambda a: saturated(a, F64, F32, "rz")),
        case("cvt.sat.f32.f16", "f32 <- f16", lambda a: saturated(a, F16, F32)),
        case("cvt.sat.f64.f64", "f64 <- f64", lambda a: floats.saturated(a, F64)),
        case("cvt.rn.sat.f16.f32", "f16 <- f32", lambda a: saturated(a, F32, F16)),
        case("cvt.f16.f16", "f16 <- f16", lambda a: a),
        case("cvt.bf16.bf16", "bf16 <- bf16", lambda a: a),
        case("cvt.sat.f16.f16", "f16 <- f16", lambda a: floats.saturated(a, F16)),
    ]
    for kind, form in (("f16", F16), ("bf16", BF16)):
        for mode in ("rn", "rz"):
            clamped = lambda a, f=form, m=mode: relu(convert(a, F32, f, m), f)  # noqa: E731
            cases.append(case(f"cvt.{mode}.relu.{kind}.f32", f"{kind} <- f32", clamped))
            finite = lambda a, f=form, m=mode: convert(a, F32, f, m, True)  # noqa: E731
            cases.append(case(f"cvt.{mode}.satfinite.{kind}.f32", f"{kind} <- f32", finite))
            both = lambda a, f=form, m=mode: relu(convert(a, F32, f, m, True), f)  # noqa: E731
            cases.append(case(f"cvt.{mode}.relu.satfinite.{kind}.f32", f"{kind} <- f32", both))
    return cases + tf32()


def tf32() -> list[Case]:
    """The upper 19 bits hold the value; the manual says nothing of the others, which the translator makes zero."""
    cases = []
    for text, mode, finite, clamps in (
        ("rna", "rna", False, False),
        ("rna.satfinite", "rna", True, False),
        ("rn", "rn", False, False),
        ("rz.relu", "rz", False, True),
    ):

        def define(a, mode=mode, finite=finite, clamps=clamps):
            bits = convert(a, F32, TF32, mode, finite)
            bits = relu(bits, TF32) if clamps else bits
            return 0x7FFFFFFF if decode(bits, TF32) is NAN else bits << 13

        cases.append(case(f"cvt.{text}.tf32.f32", "b32 <- f32", define))
    return cases


def packed() -> list[Case]:
    """Two values: the first source goes to the upper half."""
    cases = []
    for kind, form in (("f16", F16), ("bf16", BF16)):
        for text, mode, clamps, finite in (
            ("rn", "rn", False, False),
            ("rz", "rz", False, False),
            ("rn.relu", "rn", True, False),
            ("rn.satfinite", "rn", False, True),
            ("rz.relu.satfinite", "rz", True, True),
        ):
            one = single(form, mode, clamps, finite)
            define = lambda a, b, one=one: one(a) << 16 | one(b)  # noqa: E731
            cases.append(case(f"cvt.{text}.{kind}x2.f32", f"{kind}x2 <- f32 f32", define))
    for kind, form in (("e4m3", E4M3), ("e5m2", E5M2)):
        for suffix in ("", ".relu"):
            one = single(form, "rn", bool(suffix), True)
            two = lambda a, b, one=one: one(a) << 8 | one(b)  # noqa: E731
            cases.append(case(f"cvt.rn.satfinite{suffix}.{kind}x2.f32", "b16 <- f32 f32", two))
            half = single(form, "rn", bool(suffix), True, F16)
            from_halves = lambda a, half=half: half(a >> 16) << 8 | half(a & 0xFFFF)  # noqa: E731
            cases.append(case(f"cvt.rn.satfinite{suffix}.{kind}x2.f16x2", "b16 <- f16x2", from_halves))
            back = single(F16, "rn", bool(suffix), False, form)
            to_halves = lambda a, back=back: back(a >> 8) << 16 | back(a & 0xFF)  # noqa: E731
            cases.append(case(f"cvt.rn{suffix}.f16x2.{kind}x2", "f16x2 <- b16", to_halves))
    return cases


def single(form: Format, mode: str, clamps: bool, finite: bool, source: Format = F32):
    def define(a):
        bits = convert(a, source, form, mode, finite)
        return relu(bits, form) if clamps else bits

    return define


CASES = [*between_integers(), *float_to_integer(), *integer_to_float(), *between_floats(), *packed()]
