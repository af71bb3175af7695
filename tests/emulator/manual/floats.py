"""f32 and f64: the exact result in fractions, rounded once; approximations within their documented errors."""

from __future__ import annotations

import math
import operator
from fractions import Fraction
from math import isqrt

from .case import Case, Near, case
from .numbers import F32, F64, INF, NAN, Format, decode, encode, flush, negative

MODES = ("rn", "rz", "rm", "rp")


def zero_sum(first: bool, second: bool, mode: str) -> bool:
    """Whether an exact sum of zero is -0: of equal signs that sign, else -0 only toward -infinity."""
    return first if first == second else mode == "rm"


def add(a: int, b: int, form: Format, mode: str) -> int:
    x, y = decode(a, form), decode(b, form)
    if x is NAN or y is NAN or (x in (INF, -INF) and y == -x):
        return form.nan
    return encode(total(x, y), form, mode, zero=zero_sum(negative(a, form), negative(b, form), mode))


def total(x, y):
    """A sum of which at most one term is infinite."""
    return x if abs(x) == INF else y if abs(y) == INF else x + y


def sub(a: int, b: int, form: Format, mode: str) -> int:
    return add(a, b ^ form.sign, form, mode)


def product(x, y):
    """Of decoded numbers; NAN where a zero meets an infinity."""
    if x is NAN or y is NAN or (INF in (abs(x), abs(y)) and 0 in (x, y)):
        return NAN
    if INF in (abs(x), abs(y)):
        return INF if (x < 0) == (y < 0) else -INF
    return x * y


def mul(a: int, b: int, form: Format, mode: str) -> int:
    sign = negative(a, form) != negative(b, form)
    return encode(product(decode(a, form), decode(b, form)), form, mode, zero=sign)


def fma(a: int, b: int, c: int, form: Format, mode: str) -> int:
    first, z = product(decode(a, form), decode(b, form)), decode(c, form)
    if first is NAN or z is NAN or (first in (INF, -INF) and z == -first):
        return form.nan
    sign = negative(a, form) != negative(b, form)
    if first == 0 and z == 0:
        return encode(first, form, mode, zero=zero_sum(sign, negative(c, form), mode))
    return encode(total(first, z), form, mode, zero=mode == "rm")


def div(a: int, b: int, form: Format, mode: str) -> int:
    x, y = decode(a, form), decode(b, form)
    sign = negative(a, form) != negative(b, form)
    infinite = (abs(x) == INF if x is not NAN else False), (abs(y) == INF if y is not NAN else False)
    if x is NAN or y is NAN or all(infinite) or (x == 0 and y == 0):
        return form.nan
    if infinite[0] or y == 0:
        return encode(-INF if sign else INF, form, mode)
    return encode(Fraction(0) if infinite[1] else x / y, form, mode, zero=sign)


def sqrt(a: int, form: Format, mode: str) -> int:
    x = decode(a, form)
    if x is NAN or x < 0:
        return form.nan
    if x == INF or x == 0:
        return a
    # Enough bits that what is cut off cannot decide a rounding, with a last one that says whether anything was.
    shift = 2 * (form.precision + 4 - form.least_exponent)
    scaled = x.numerator * (1 << shift) * (1 << shift) // x.denominator
    root = isqrt(scaled)
    exact = root * root == scaled and x.numerator * (1 << 2 * shift) % x.denominator == 0
    return encode(Fraction(2 * root + (not exact), 2 << shift), form, mode)


def rcp(a: int, form: Format, mode: str) -> int:
    return div(encode(1, form), a, form, mode)


def flushed(operation, form: Format, mode: str):
    """The operation with .ftz on its sources and its result."""
    return lambda *bits: flush(operation(*(flush(value, form) for value in bits), form, mode), form)


def saturated(bits: int, form: Format) -> int:
    """.sat: clamped to [0, 1]; a NaN becomes +0."""
    value = decode(bits, form)
    return 0 if value is NAN or value <= 0 else encode(min(value, 1), form)


def arithmetic() -> list[Case]:
    cases = []
    operations = {"add": (add, 2), "sub": (sub, 2), "mul": (mul, 2), "fma": (fma, 3), "div": (div, 2)}
    operations |= {"sqrt": (sqrt, 1), "rcp": (rcp, 1)}
    for name, (operation, count) in operations.items():
        for kind, form in (("f32", F32), ("f64", F64)):
            types = f"{kind} <- " + " ".join([kind] * count)
            if name in ("add", "sub", "mul"):
                cases.append(case(f"{name}.{kind}", types, plain(operation, form, "rn")))
            for mode in MODES:
                cases.append(case(f"{name}.{mode}.{kind}", types, plain(operation, form, mode)))
        types = "f32 <- " + " ".join(["f32"] * count)
        for mode in ("rn", "rz"):
            cases.append(case(f"{name}.{mode}.ftz.f32", types, flushed(operation, F32, mode)))
        if name in ("add", "sub", "mul", "fma"):
            sat = lambda *bits, operation=operation: saturated(operation(*bits, F32, "rn"), F32)  # noqa: E731
            cases.append(case(f"{name}.rn.sat.f32", types, sat))
            both = lambda *bits, o=operation: saturated(flushed(o, F32, "rm")(*bits), F32)  # noqa: E731
            cases.append(case(f"{name}.rm.ftz.sat.f32", types, both))
    cases.append(case("mad.rn.f32", "f32 <- f32 f32 f32", plain(fma, F32, "rn")))
    cases.append(case("mad.rp.f64", "f64 <- f64 f64 f64", plain(fma, F64, "rp")))
    return cases


def plain(operation, form: Format, mode: str):
    return lambda *bits: operation(*bits, form, mode)


# ---- extremes, signs, tests --------------------------------------------------------------------------------------
def extreme(a: int, b: int, form: Format, least: bool, nan: bool = False) -> int:
    """-0 lies below +0; one NaN loses unless `nan`; two are the canonical NaN."""
    x, y = decode(a, form), decode(b, form)
    if x is NAN or y is NAN:
        return form.nan if nan or x is y else b if x is NAN else a
    key = lambda bits: (decode(bits, form), not negative(bits, form))  # noqa: E731
    return min(a, b, key=key) if least else max(a, b, key=key)


def signs_and_extremes() -> list[Case]:
    cases = []
    for name, least in (("min", True), ("max", False)):
        two = lambda a, b, form=F32, least=least, nan=False: extreme(a, b, form, least, nan)  # noqa: E731
        cases.append(case(f"{name}.f32", "f32 <- f32 f32", two))
        cases.append(case(f"{name}.f64", "f64 <- f64 f64", lambda a, b, two=two: two(a, b, F64)))
        cases.append(case(f"{name}.NaN.f32", "f32 <- f32 f32", lambda a, b, two=two: two(a, b, nan=True)))
        ftz = lambda a, b, two=two: two(flush(a, F32), flush(b, F32))  # noqa: E731
        cases.append(case(f"{name}.ftz.f32", "f32 <- f32 f32", ftz))

        def xorsign(a, b, two=two):
            magnitude = two(a & ~F32.sign, b & ~F32.sign)
            return None if magnitude == F32.nan else magnitude | (a ^ b) & F32.sign

        cases.append(case(f"{name}.xorsign.abs.f32", "f32 <- f32 f32", xorsign))
    for kind, form in (("f32", F32), ("f64", F64)):
        one, two = f"{kind} <- {kind}", f"{kind} <- {kind} {kind}"
        cases.append(case(f"abs.{kind}", one, lambda a, form=form: a & ~form.sign))
        cases.append(case(f"neg.{kind}", one, lambda a, form=form: a ^ form.sign))
        copy = lambda a, b, form=form: a & form.sign | b & ~form.sign  # noqa: E731
        cases.append(case(f"copysign.{kind}", two, copy))
        for name, test in TESTS.items():
            define = lambda a, form=form, test=test: int(test(a, form))  # noqa: E731
            cases.append(case(f"testp.{name}.{kind}", f"pred <- {kind}", define))
    cases.append(case("abs.ftz.f32", "f32 <- f32", lambda a: flush(a, F32) & ~F32.sign if number(a) else None))
    cases.append(case("neg.ftz.f32", "f32 <- f32", lambda a: flush(a, F32) ^ F32.sign if number(a) else None))
    return cases


def number(bits: int) -> bool:
    return decode(bits, F32) is not NAN


def is_subnormal(bits: int, form: Format) -> bool:
    return decode(bits, form) != 0 and flush(bits, form) != bits


TESTS = {
    "finite": lambda a, form: decode(a, form) not in (NAN, INF, -INF),
    "infinite": lambda a, form: decode(a, form) in (INF, -INF),
    "number": lambda a, form: decode(a, form) is not NAN,
    "notanumber": lambda a, form: decode(a, form) is NAN,
    "normal": lambda a, form: decode(a, form) not in (NAN, INF, -INF) and not is_subnormal(a, form),
    "subnormal": is_subnormal,
}


# ---- comparisons -------------------------------------------------------------------------------------------------
ORDERED = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}


def compares(name: str, a: int, b: int, form: Format) -> int:
    """The comparison of the manual's table: ordered ones are false for NaN, those with u are true."""
    x, y = decode(a, form), decode(b, form)
    unordered = x is NAN or y is NAN
    if name in ("num", "nan"):
        return int(unordered == (name == "nan"))
    if unordered:
        return int(name.endswith("u"))
    return int(ORDERED[name[:2]](x, y))


def comparisons() -> list[Case]:
    names = [*ORDERED, *(f"{name}u" for name in ORDERED), "num", "nan"]
    cases = []
    for kind, form in (("f32", F32), ("f64", F64)):
        for name in names:
            test = lambda a, b, form=form, name=name: compares(name, a, b, form)  # noqa: E731
            cases.append(case(f"setp.{name}.{kind}", f"pred <- {kind} {kind}", test))
    ftz = lambda a, b: compares("lt", flush(a, F32), flush(b, F32), F32)  # noqa: E731
    cases.append(case("setp.lt.ftz.f32", "pred <- f32 f32", ftz))
    cases.append(case("set.lt.ftz.f32.f32", "f32 <- f32 f32", lambda a, b: 0x3F800000 * ftz(a, b)))
    less = lambda a, b, c: 0xFFFFFFFF * (compares("ltu", a, b, F64) ^ c)  # noqa: E731
    cases.append(case("set.ltu.xor.s32.f64", "s32 <- f64 f64 pred", less))
    both = lambda a, b, c: (compares("geu", a, b, F32) & c, (1 - compares("geu", a, b, F32)) & c)  # noqa: E731
    cases.append(case("setp.geu.and.f32 $d|$q, $a, $b, $c;", "pred pred <- f32 f32 pred", both))
    chosen = lambda a, b, c: a if decode(c, F32) is not NAN and decode(c, F32) >= 0 else b  # noqa: E731
    cases.append(case("slct.b64.f32", "b64 <- b64 b64 f32", chosen))
    cases.append(case("slct.f32.f32", "f32 <- b32 b32 f32", chosen))
    cases.append(case("slct.ftz.u16.f32", "u16 <- u16 u16 f32", lambda a, b, c: chosen(a, b, flush(c, F32))))
    return cases


# ---- approximations: the largest errors that the manual documents ------------------------------------------------
def real(function, special):
    """A function of finite numbers; `special` gives its values elsewhere and at its poles."""

    def define(x):
        if x is NAN:
            return NAN
        found = special(x)
        return found if found is not None else function(float(x))

    return define


def exp2(x: float) -> float:
    return INF if x >= 1024 else 2.0**x


FUNCTIONS = {  # name: the function of a decoded number, relative error, absolute error
    "ex2": (real(exp2, lambda x: {INF: INF, -INF: 0}.get(x)), 2**-22, 2**-149),
    "lg2": (real(math.log2, lambda x: -INF if x == 0 else NAN if x < 0 else INF if x == INF else None), 2**-22, 2**-22),
    "sqrt": (real(math.sqrt, lambda x: NAN if x < 0 else INF if x == INF else None), 2**-22, 0),
    "sin": (real(math.sin, lambda x: NAN if abs(x) == INF else None), 0, 2**-20.5),
    "cos": (real(math.cos, lambda x: NAN if abs(x) == INF else None), 0, 2**-20.5),
    "tanh": (real(math.tanh, lambda x: math.copysign(1, x) if abs(x) == INF else None), 2**-10.98, 0),
}


def reciprocal(bits: int, root: bool):
    """1/a or 1/sqrt(a): poles by the sign of zero."""
    x = decode(bits, F32)
    if x is NAN or (root and x < 0):
        return NAN
    if x == 0:
        return -INF if negative(bits, F32) else INF
    return Fraction(0) if abs(x) == INF else 1 / (math.sqrt(x) if root else x)


def near(value, relative: float, absolute: float, ftz: bool):
    """Beyond the largest f32 an infinity; with .ftz a subnormal result is zero."""
    if value is not NAN and abs(value) != INF:
        rounded = encode(Fraction(value), F32)
        if abs(decode(rounded, F32)) == INF:
            return Near(decode(rounded, F32), 0)
        if ftz and abs(value) < Fraction(2) ** -126:
            return Near(Fraction(0), 0)
    return Near(value, relative, max(absolute, 0 if ftz else 2.0**-149))


def approximations() -> list[Case]:
    cases = []
    for name, (function, relative, absolute) in FUNCTIONS.items():
        for suffix in ("",) if name == "tanh" else ("", ".ftz"):

            def define(a, function=function, bounds=(relative, absolute), ftz=bool(suffix), name=name):
                x = decode(flush(a, F32) if ftz else a, F32)
                if name in ("sin", "cos") and x is not NAN and math.pi < abs(x) < INF:
                    return None  # the error is documented in [-pi, pi]
                return near(function(x), *bounds, ftz)

            cases.append(case(f"{name}.approx{suffix}.f32", "f32 <- f32", define))
    for name, root in (("rcp", False), ("rsqrt", True)):
        for suffix in ("", ".ftz"):

            def define(a, root=root, ftz=bool(suffix)):
                return near(reciprocal(flush(a, F32) if ftz else a, root), 2**-22, 0, ftz)

            cases.append(case(f"{name}.approx{suffix}.f32", "f32 <- f32", define))
    for name in ("approx", "full", "approx.ftz", "full.ftz"):

        def define(a, b, ftz="ftz" in name, approx="approx" in name):
            if ftz:
                a, b = flush(a, F32), flush(b, F32)
            if approx and Fraction(2) ** 126 < (abs(decode(b, F32)) if number(b) else 0) < INF and number(a):
                return F32.nan if abs(decode(a, F32)) == INF else (a ^ b) & F32.sign
            return near(decode(div(a, b, F32, "rn"), F32), 2**-22, 0, ftz)

        cases.append(case(f"div.{name}.f32", "f32 <- f32 f32", define))
    return cases + upper_words()


def upper_words() -> list[Case]:
    """The f64 approximations; with .ftz they use and give the upper 32 bits only."""

    def define(a, root, ftz):
        if ftz:
            a = flush(a & ~0xFFFFFFFF, F64)
        x = decode(a, F64)
        if x is NAN or (root and x < 0):
            return Near(NAN, 0)
        if x == 0:
            return Near(-INF if negative(a, F64) else INF, 0)
        value = Fraction(0) if abs(x) == INF else 1 / (Fraction(math.sqrt(x)) if root else x)
        lost = 0 < abs(value) < Fraction(2) ** -1022
        return None if lost else Near(value, 2**-20 if ftz else 2**-22.4)

    return [
        case("rcp.approx.ftz.f64", "f64 <- f64", lambda a: define(a, False, True)),
        case("rsqrt.approx.ftz.f64", "f64 <- f64", lambda a: define(a, True, True)),
        case("rsqrt.approx.f64", "f64 <- f64", lambda a: define(a, True, False)),
    ]


CASES = [*arithmetic(), *signs_and_extremes(), *comparisons(), *approximations()]
