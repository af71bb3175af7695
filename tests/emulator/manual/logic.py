"""Logic, shifts and byte permutation, comparisons and selections of integers."""

from __future__ import annotations

import operator

from .case import Case, case
from .integers import of_type
from .numbers import unsigned

M32 = 0xFFFFFFFF


def bitwise() -> list[Case]:
    cases = []
    for width in (16, 32, 64):
        kind = f"b{width}"
        one, two = f"{kind} <- {kind}", f"{kind} <- {kind} {kind}"
        cases += [
            case(f"and.{kind}", two, lambda a, b: a & b),
            case(f"or.{kind}", two, lambda a, b: a | b),
            case(f"xor.{kind}", two, lambda a, b: a ^ b),
            case(f"not.{kind}", one, lambda a: ~a),
            case(f"cnot.{kind}", one, lambda a: int(a == 0)),
            case(f"shl.{kind}", f"{kind} <- {kind} shift", lambda a, b: a << min(b, 64)),
        ]
        for letter in "bus":
            number = f"{letter}{width}"

            def right(a, b, number=number):
                return of_type(number, a) >> min(b, 64)

            cases.append(case(f"shr.{number}", f"{number} <- {number} shift", right))
        for amount in (0, width - 1, width, 200):
            cases.append(case(f"shl.{kind} $d, $a, {amount};", one, lambda a, n=amount: a << n))
            shifted = lambda a, n=amount, w=width: of_type(f"s{w}", a) >> n  # noqa: E731
            cases.append(case(f"shr.s{width} $d, $a, {amount};", one, shifted))
            cases.append(case(f"shr.u{width} $d, $a, {amount};", one, lambda a, n=amount: a >> n))
    predicates = (("and", lambda a, b: a & b), ("or", lambda a, b: a | b), ("xor", lambda a, b: a ^ b))
    cases += [case(f"{name}.pred", "pred <- pred pred", define) for name, define in predicates]
    cases.append(case("not.pred", "pred <- pred", lambda a: 1 - a))
    return cases


def funnel_shifts() -> list[Case]:
    cases = []
    for mode in ("clamp", "wrap"):
        amount = (lambda c: min(c, 32)) if mode == "clamp" else (lambda c: c & 31)
        left = lambda a, b, c, n=amount: (b << 32 | a) << n(c) >> 32  # noqa: E731
        right = lambda a, b, c, n=amount: (b << 32 | a) >> n(c)  # noqa: E731
        cases.append(case(f"shf.l.{mode}.b32", "b32 <- b32 b32 shift", left))
        cases.append(case(f"shf.r.{mode}.b32", "b32 <- b32 b32 shift", right))
    return cases


# The byte each place takes, for selectors 0 to 3; places from the highest to the lowest, as in the manual's table.
PRMT = {
    "f4e": ("3210", "4321", "5432", "6543"),
    "b4e": ("5670", "6701", "7012", "0123"),
    "rc8": ("0000", "1111", "2222", "3333"),
    "ecl": ("3210", "3211", "3222", "3333"),
    "ecr": ("0000", "1110", "2210", "3210"),
    "rc16": ("1010", "3232", "1010", "3232"),
}


def permutations() -> list[Case]:
    def generic(a, b, c):
        source, result = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")], 0
        for place in range(4):
            selector = c >> 4 * place & 15
            byte = source[selector & 7]
            if selector & 8:
                byte = 255 * (byte >> 7)
            result |= byte << 8 * place
        return result

    cases = [case("prmt.b32", "b32 <- b32 b32 b32", generic)]
    for mode, table in PRMT.items():

        def special(a, b, c, table=table):
            source = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
            return int.from_bytes(bytes(source[int(digit)] for digit in table[c & 3]), "big")

        cases.append(case(f"prmt.b32.{mode}", "b32 <- b32 b32 b32", special))
    return cases


def truth_tables() -> list[Case]:
    def lookup(table):
        def define(a, b, c):
            rows = [(a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1) for i in range(32)]
            return sum((table >> row & 1) << i for i, row in enumerate(rows))

        return define

    cases = []
    for table in (0x00, 0x01, 0x1A, 0x40, 0x80, 0x96, 0xCA, 0xE8, 0xF8, 0xFE, 0xFF):
        cases.append(case(f"lop3.b32 $d, $a, $b, $c, {table};", "b32 <- b32 b32 b32", lookup(table)))
    for name, combine in (("or", lambda p, q: p | q), ("and", lambda p, q: p & q)):
        text = f"lop3.{name}.b32 $d|$q, $a, $b, $c, 0x80, $e;"

        def both(a, b, c, q, combine=combine):
            value = lookup(0x80)(a, b, c)
            return value, combine(int(value != 0), q)

        cases.append(case(text, "b32 pred <- b32 b32 b32 pred", both))
    return cases


COMPARE = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}
COMBINE = {"and": lambda t, c: t & c, "or": lambda t, c: t | c, "xor": lambda t, c: t ^ c}


def integer_comparisons() -> list[Case]:
    cases = []
    for width in (16, 32, 64):
        for letter in "bus":
            kind = f"{letter}{width}"
            names = ["eq", "ne"] if letter == "b" else [*COMPARE, *UNSIGNED] if letter == "u" else [*COMPARE]
            for name in names:

                def test(a, b, kind=kind, compare=(COMPARE | UNSIGNED)[name]):
                    return int(compare(of_type(kind, a), of_type(kind, b)))

                cases.append(case(f"setp.{name}.{kind}", f"pred <- {kind} {kind}", test))
    for name, combine in COMBINE.items():
        test = lambda a, b: int(of_type("s32", a) < of_type("s32", b))  # noqa: E731
        with_c = lambda a, b, c, test=test, combine=combine: combine(test(a, b), c)  # noqa: E731
        both = lambda a, b, c, t=test, k=combine: (k(t(a, b), c), k(1 - t(a, b), c))  # noqa: E731
        cases.append(case(f"setp.lt.{name}.s32", "pred <- s32 s32 pred", with_c))
        text = f"setp.lt.{name}.s32 $d|$q, $a, $b, $c;"
        cases.append(case(text, "pred pred <- s32 s32 pred", both))
        negated = lambda a, b, c, t=test, k=combine: k(t(a, b), 1 - c)  # noqa: E731
        cases.append(case(f"setp.lt.{name}.s32 $d, $a, $b, !$c;", "pred <- s32 s32 pred", negated))
        same = f"setp.lt.{name}.s32 $d|$q, $a, $b, $c; mov.pred $d, $d;"
        cases.append(case(same, "pred pred <- s32 s32 pred", both))
        minus = lambda a, b, c, t=test, k=combine: M32 * k(t(a, b), c)  # noqa: E731
        cases.append(case(f"set.lt.{name}.u32.s32", "u32 <- s32 s32 pred", minus))
    one = lambda a, b: 0x3F800000 if unsigned(a, 64) < unsigned(b, 64) else 0  # noqa: E731
    cases.append(case("set.lt.f32.u64", "f32 <- u64 u64", one))
    cases.append(case("set.ne.s32.b16", "s32 <- b16 b16", lambda a, b: M32 if a != b else 0))
    return cases


def selections() -> list[Case]:
    cases = []
    for width in (16, 32, 64):
        for letter in "busf"[: 3 if width == 16 else 4]:
            kind = f"{letter}{width}"
            raw = f"b{width}"
            cases.append(case(f"selp.{kind}", f"{raw} <- {raw} {raw} pred", lambda a, b, c: a if c else b))
            chosen = lambda a, b, c: a if c >> 31 == 0 else b  # noqa: E731
            cases.append(case(f"slct.{kind}.s32", f"{raw} <- {raw} {raw} s32", chosen))
    return cases


CASES = [*bitwise(), *funnel_shifts(), *permutations(), *truth_tables(), *integer_comparisons(), *selections()]
