"""f16 and bf16: arithmetic and comparisons as those of f32 with another format, one half or two at a time."""

from __future__ import annotations

import math
from fractions import Fraction

from . import floats
from .case import Case, Near, case
from .numbers import BF16, F16, INF, NAN, decode, encode, flush, negative

HALVES = {"f16": F16, "bf16": BF16}


def lanes(define):
    """The definition of a half for both halves of packed operands."""

    def both(*words):
        low = define(*(word & 0xFFFF for word in words))
        high = define(*(word >> 16 for word in words))
        return low | high << 16

    return both


def relu(bits: int, form) -> int:
    """Negative results become +0."""
    return 0 if negative(bits, form) and decode(bits, form) is not NAN else bits


def arithmetic() -> list[Case]:
    cases = []
    for kind, form in HALVES.items():
        operations = {"add": floats.add, "sub": floats.sub, "mul": floats.mul, "fma": floats.fma}
        for name, operation in operations.items():
            count = 3 if name == "fma" else 2
            rounding = ("", ".rn") if count == 2 else (".rn",)
            for suffix in rounding:
                cases += half_cases(f"{name}{suffix}", kind, count, floats.plain(operation, form, "rn"))
            if kind == "f16":
                cases += half_cases(f"{name}.rn.ftz", kind, count, floats.flushed(operation, form, "rn"))
                sat = lambda *bits, o=operation: floats.saturated(o(*bits, F16, "rn"), F16)  # noqa: E731
                cases += half_cases(f"{name}.rn.sat", kind, count, sat)
        clamped = lambda *bits, form=form: relu(floats.fma(*bits, form, "rn"), form)  # noqa: E731
        cases += half_cases("fma.rn.relu", kind, 3, clamped)
    flushed = floats.flushed(floats.fma, F16, "rn")
    cases += half_cases("fma.rn.ftz.relu", "f16", 3, lambda *bits: relu(flushed(*bits), F16))
    return cases


def half_cases(name: str, kind: str, count: int, define) -> list[Case]:
    """The instruction on one half and on two."""
    single, packed = " ".join([kind] * count), " ".join([f"{kind}x2"] * count)
    return [
        case(f"{name}.{kind}", f"{kind} <- {single}", define),
        case(f"{name}.{kind}x2", f"{kind}x2 <- {packed}", lanes(define)),
    ]


def extremes_and_signs() -> list[Case]:
    cases = []
    for kind, form in HALVES.items():
        for name, least in (("min", True), ("max", False)):
            plain = lambda a, b, form=form, least=least: floats.extreme(a, b, form, least)  # noqa: E731
            wins = lambda a, b, form=form, least=least: floats.extreme(a, b, form, least, True)  # noqa: E731

            def xorsign(a, b, plain=plain):
                magnitude = plain(a & 0x7FFF, b & 0x7FFF)
                return magnitude & 0x7FFF | (a ^ b) & 0x8000

            def sign_of_numbers(a, b, form=form, xorsign=xorsign):
                both_nan = decode(a, form) is NAN and decode(b, form) is NAN
                return None if both_nan else xorsign(a, b)

            cases += half_cases(name, kind, 2, plain)
            cases += half_cases(f"{name}.NaN", kind, 2, wins)
            cases.append(case(f"{name}.xorsign.abs.{kind}", f"{kind} <- {kind} {kind}", sign_of_numbers))
        if kind == "f16":
            ftz = lambda a, b: floats.extreme(flush(a, F16), flush(b, F16), F16, True)  # noqa: E731
            cases += half_cases("min.ftz", kind, 2, ftz)
        cases += half_cases("abs", kind, 1, lambda a: a & 0x7FFF)
        cases += half_cases("neg", kind, 1, lambda a: a ^ 0x8000)
    return cases


def comparisons() -> list[Case]:
    cases = []
    for kind, form in HALVES.items():
        one = 0x3C00 if kind == "f16" else 0x3F80
        for name in ("eq", "ne", "lt", "ge", "equ", "neu", "gtu", "num", "nan"):
            test = lambda a, b, form=form, name=name: floats.compares(name, a, b, form)  # noqa: E731
            cases.append(case(f"setp.{name}.{kind}", f"pred <- {kind} {kind}", test))
            two = lambda a, b, t=test: (t(a & 0xFFFF, b & 0xFFFF), t(a >> 16, b >> 16))  # noqa: E731
            text = f"setp.{name}.{kind}x2 $d|$q, $a, $b;"
            cases.append(case(text, f"pred pred <- {kind}x2 {kind}x2", two))
        less = lambda a, b, form=form: floats.compares("lt", a, b, form)  # noqa: E731
        ones = lambda a, b, less=less, one=one: one * less(a, b)  # noqa: E731
        cases.append(case(f"set.lt.{kind}.{kind}", f"{kind} <- {kind} {kind}", ones))
        cases.append(case(f"set.lt.{kind}x2.{kind}x2", f"{kind}x2 <- {kind}x2 {kind}x2", lanes(ones)))
        minus = lambda a, b, less=less: 0xFFFF * less(a, b)  # noqa: E731
        cases.append(case(f"set.lt.u16.{kind}", f"u16 <- {kind} {kind}", minus))
        cases.append(case(f"set.lt.u32.{kind}x2", f"u32 <- {kind}x2 {kind}x2", lanes(minus)))
        with_c = lambda a, b, c, less=less: less(a, b) & c  # noqa: E731
        cases.append(case(f"setp.lt.and.{kind}", f"pred <- {kind} {kind} pred", with_c))
    ftz = lambda a, b: floats.compares("lt", flush(a, F16), flush(b, F16), F16)  # noqa: E731
    cases.append(case("setp.lt.ftz.f16", "pred <- f16 f16", ftz))
    return cases


def approximations() -> list[Case]:
    """tanh and ex2 of halves: documented errors of some units in the last place."""
    cases = []
    for name, relative in (("tanh", 2**-8), ("ex2", 2**-7)):
        function = floats.FUNCTIONS[name][0]
        for kind, form in HALVES.items():
            suffix = ".ftz" if (name, kind) == ("ex2", "bf16") else ""

            def define(a, function=function, form=form, relative=relative, ftz=bool(suffix)):
                value = function(decode(flush(a, form) if ftz else a, form))
                if value is NAN or value == INF:
                    return Near(value, 0)
                rounded = decode(encode(Fraction(value), form), form)
                if abs(rounded) == INF:
                    return Near(rounded, 0)
                tiny = Fraction(2) ** form.least_exponent
                return Near(0, 0) if ftz and abs(value) < tiny else Near(value, relative, tiny * 2**-7)

            cases.append(case(f"{name}.approx{suffix}.{kind}", f"{kind} <- {kind}", define))
            exact = lambda a, function=function, form=form, ftz=bool(suffix): rounded_function(  # noqa: E731
                function, a, form, ftz
            )
            cases.append(case(f"{name}.approx{suffix}.{kind}x2", f"{kind}x2 <- {kind}x2", lanes(exact)))
    return cases


def rounded_function(function, bits: int, form, ftz: bool) -> int:
    """The exact function rounded once, which the packed forms must give too."""
    x = decode(flush(bits, form) if ftz else bits, form)
    value = function(x)
    if value is not NAN and abs(value) != INF:
        value = Fraction(value)
    zero = negative(bits, form) and value == 0 and math.isfinite(x) if value is not NAN else False
    result = encode(value, form, zero=zero and function is floats.FUNCTIONS["tanh"][0])
    return flush(result, form) if ftz else result


CASES = [*arithmetic(), *extremes_and_signs(), *comparisons(), *approximations()]
