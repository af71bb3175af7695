"""What sm_100 adds to f32: two at a time in 64 bits, extremes of three, and vectors of 32 bytes."""

from __future__ import annotations

from . import floats
from .case import Case, case
from .numbers import F32, flush


def pairs() -> list[Case]:
    """The same operation on the lower and the upper 32 bits."""
    cases = []
    operations = {"add": (floats.add, 2), "sub": (floats.sub, 2), "mul": (floats.mul, 2), "fma": (floats.fma, 3)}
    for name, (operation, count) in operations.items():
        types = "f32x2 <- " + " ".join(["f32x2"] * count)
        for mode in floats.MODES:
            cases.append(case(f"{name}.{mode}.f32x2", types, of_both(floats.plain(operation, F32, mode))))
        cases.append(case(f"{name}.rn.ftz.f32x2", types, of_both(floats.flushed(operation, F32, "rn"))))
    cases.append(case("add.f32x2", "f32x2 <- f32x2 f32x2", of_both(floats.plain(floats.add, F32, "rn"))))
    return cases


def of_both(define):
    def both(*words):
        low = define(*(word & 0xFFFFFFFF for word in words))
        return low | define(*(word >> 32 for word in words)) << 32

    return both


def extremes() -> list[Case]:
    """Of three: the extreme of the first two, and the third."""
    cases = []
    for name, least in (("min", True), ("max", False)):
        for suffix, nan in (("", False), (".NaN", True), (".ftz", False)):

            def define(a, b, c, least=least, nan=nan, ftz=suffix == ".ftz"):
                a, b, c = (flush(bits, F32) if ftz else bits for bits in (a, b, c))
                return floats.extreme(floats.extreme(a, b, F32, least, nan), c, F32, least, nan)

            cases.append(case(f"{name}{suffix}.f32", "f32 <- f32 f32 f32", define))
    return cases


def vectors() -> list[Case]:
    eight = "st.global.v8.b32 [$m], {$a, 1, 2, 3, 4, 5, 6, $b}; .reg .b32 r<8>; "
    eight += "ld.global.L2::evict_last.v8.b32 {r0, r1, r2, r3, r4, r5, r6, r7}, [$m]; "
    eight += "xor.b32 $d, r0, r5; mov.b32 $q, r7;"
    four = "st.global.v4.b64 [$m], {$a, 1, 2, $b}; .reg .b64 r<4>; ld.global.v4.b64 {r0, _, r2, r3}, [$m]; "
    four += "xor.b64 $d, r0, r2; mov.b64 $q, r3;"
    return [
        case(eight, "b32 b32 <- b32 b32", lambda a, b: (a ^ 5, b)),
        case(four, "b64 b64 <- b64 b64", lambda a, b: (a ^ 2, b)),
    ]


CASES = [*pairs(), *extremes(), *vectors()]
