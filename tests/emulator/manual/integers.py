"""Integer arithmetic and bit fields, as the manual's pseudocode has them."""

from __future__ import annotations

from .case import Case, case
from .numbers import signed, unsigned

M32 = 0xFFFFFFFF


def of_type(kind: str, bits: int) -> int:
    """The number that bits are in an integer type."""
    return signed(bits, int(kind[1:])) if kind[0] == "s" else unsigned(bits, int(kind[1:]))


def clamp(value: int, kind: str) -> int:
    width = int(kind[1:])
    least, most = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if kind[0] == "s" else (0, (1 << width) - 1)
    return min(max(value, least), most)


def arithmetic() -> list[Case]:
    """Sums, differences, products, extremes, of every type."""
    cases = []
    for width in (16, 32, 64):
        for kind in (f"u{width}", f"s{width}"):
            cases += arithmetic_of(kind, width)
    for kind in ("s16", "s32", "s64"):
        width = int(kind[1:])
        cases.append(case(f"abs.{kind}", f"{kind} <- {kind}", lambda a, w=width: abs(signed(a, w))))
        cases.append(case(f"neg.{kind}", f"{kind} <- {kind}", lambda a, w=width: -signed(a, w)))
    for name, sign in (("add", 1), ("sub", -1)):
        define = lambda a, b, s=sign: clamp(signed(a, 32) + s * signed(b, 32), "s32")  # noqa: E731
        cases.append(case(f"{name}.sat.s32", "s32 <- s32 s32", define))
    high = lambda a, b, c: clamp((signed(a, 32) * signed(b, 32) >> 32) + signed(c, 32), "s32")  # noqa: E731
    cases.append(case("mad.hi.sat.s32", "s32 <- s32 s32 s32", high))
    for name, pick in (("min", min), ("max", max)):
        define = lambda a, b, p=pick: max(p(signed(a, 32), signed(b, 32)), 0)  # noqa: E731
        cases.append(case(f"{name}.relu.s32", "s32 <- s32 s32", define))
    return cases


def arithmetic_of(kind: str, width: int) -> list[Case]:
    two, three = f"{kind} <- {kind} {kind}", f"{kind} <- {kind} {kind} {kind}"
    number = lambda bits: of_type(kind, bits)  # noqa: E731
    rest = lambda a, b: number(a) - number(b) * truncated(number(a), number(b))  # noqa: E731
    cases = [
        case(f"add.{kind}", two, lambda a, b: a + b),
        case(f"sub.{kind}", two, lambda a, b: a - b),
        case(f"mul.lo.{kind}", two, lambda a, b: number(a) * number(b)),
        case(f"mul.hi.{kind}", two, lambda a, b: number(a) * number(b) >> width),
        case(f"mad.lo.{kind}", three, lambda a, b, c: number(a) * number(b) + number(c)),
        case(f"mad.hi.{kind}", three, lambda a, b, c: (number(a) * number(b) >> width) + number(c)),
        case(f"sad.{kind}", three, lambda a, b, c: number(c) + abs(number(a) - number(b))),
        case(f"min.{kind}", two, lambda a, b: min(number(a), number(b))),
        case(f"max.{kind}", two, lambda a, b: max(number(a), number(b))),
        case(f"div.{kind}", f"{kind} <- {kind} nonzero{width}", lambda a, b: truncated(number(a), number(b))),
        case(f"rem.{kind}", f"{kind} <- {kind} nonzero{width}", rest),
    ]
    if width < 64:
        wide = f"{kind[0]}{2 * width}"
        cases += [
            case(f"mul.wide.{kind}", f"{wide} <- {kind} {kind}", lambda a, b: number(a) * number(b)),
            case(f"mad.wide.{kind}", f"{wide} <- {kind} {kind} {wide}", lambda a, b, c: number(a) * number(b) + c),
        ]
    if width == 32:
        bits24 = lambda value: signed(value, 24) if kind[0] == "s" else value & 0xFFFFFF  # noqa: E731
        for half, shift in (("lo", 0), ("hi", 16)):
            product = lambda a, b, s=shift: bits24(a) * bits24(b) >> s  # noqa: E731
            cases.append(case(f"mul24.{half}.{kind}", two, product))
            cases.append(case(f"mad24.{half}.{kind}", three, lambda a, b, c, p=product: p(a, b) + c))
    return cases


def truncated(a: int, b: int) -> int:
    """Division towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


# ---- bit fields --------------------------------------------------------------------------------------------------
def bfe(kind: str):
    msb = int(kind[1:]) - 1

    def define(a, b, c):
        pos, length = b & 0xFF, c & 0xFF
        sbit = 0 if kind[0] == "u" or length == 0 else a >> min(pos + length - 1, msb) & 1
        bits = [a >> (pos + i) & 1 if i < length and pos + i <= msb else sbit for i in range(msb + 1)]
        return sum(bit << i for i, bit in enumerate(bits))

    return define


def bfi(width: int):
    def define(a, b, c, d):
        pos, length, f = c & 0xFF, d & 0xFF, b
        for i in range(length):
            if pos + i < width:
                f = f & ~(1 << (pos + i)) | (a >> i & 1) << (pos + i)
        return f

    return define


def bfind(kind: str, shift_amount: bool):
    msb = int(kind[1:]) - 1

    def define(a):
        if kind[0] == "s" and a >> msb & 1:
            a = unsigned(~a, msb + 1)
        if a == 0:
            return M32
        return msb - (a.bit_length() - 1) if shift_amount else a.bit_length() - 1

    return define


def fns(mask, base, offset):
    offset = signed(offset, 32)
    if base > 31:
        return None
    if offset == 0:
        return base if mask >> base & 1 else M32
    places = range(base, 32) if offset > 0 else range(base, -1, -1)
    found = [place for place in places if mask >> place & 1]
    return found[abs(offset) - 1] if abs(offset) <= len(found) else M32


def bmsk(mode: str):
    def define(a, b):
        mask0, total = unsigned(-1 << (a & 31), 32), (a & 31) + (b & 31)
        mask1 = unsigned(-1 << total, 32)
        if mode == "clamp" and a >= 32:
            mask0 = 0
        if total >= 32 or (mode == "clamp" and (a >= 32 or b >= 32)):
            mask1 = 0
        elif b & 31 == 0:
            mask1 = M32
        return mask0 & ~mask1

    return define


def szext(mode: str, kind: str):
    def define(a, b):
        count, too_large = b & 31, mode == "clamp" and b >= 32
        mask = 0 if too_large else unsigned(-1 << count, 32)
        sign = kind == "s32" and count != 0 and not too_large and a >> (count - 1) & 1
        return a & ~mask | (mask if sign else 0)

    return define


def bit_fields() -> list[Case]:
    """popc to szext, and the packed dot products."""
    cases = []
    for kind in ("u32", "s32", "u64", "s64"):
        cases.append(case(f"bfe.{kind}", f"{kind} <- {kind} shift shift", bfe(kind)))
        cases.append(case(f"bfind.{kind}", f"u32 <- {kind}", bfind(kind, False)))
        cases.append(case(f"bfind.shiftamt.{kind}", f"u32 <- {kind}", bfind(kind, True)))
    for width in (32, 64):
        kind = f"b{width}"
        cases.append(case(f"bfi.{kind}", f"{kind} <- {kind} {kind} shift shift", bfi(width)))
        cases.append(case(f"popc.{kind}", f"u32 <- {kind}", lambda a: bin(a).count("1")))
        cases.append(case(f"clz.{kind}", f"u32 <- {kind}", lambda a, w=width: w - a.bit_length()))
        reverse = lambda a, w=width: int(f"{a:0{w}b}"[::-1], 2)  # noqa: E731
        cases.append(case(f"brev.{kind}", f"{kind} <- {kind}", reverse))
    cases.append(case("fns.b32", "b32 <- b32 small s32", fns))
    for mode in ("clamp", "wrap"):
        cases.append(case(f"bmsk.{mode}.b32", "b32 <- shift shift", bmsk(mode)))
        cases += [case(f"szext.{mode}.{kind}", f"{kind} <- {kind} shift", szext(mode, kind)) for kind in ("u32", "s32")]
    return cases + dot_products()


def elements(word: int, width: int, kind: str) -> list[int]:
    parts = [word >> place & ((1 << width) - 1) for place in range(0, 32, width)]
    return [signed(part, width) for part in parts] if kind[0] == "s" else parts


def dot_products() -> list[Case]:
    cases = []
    for first in ("u32", "s32"):
        for second in ("u32", "s32"):
            total = "u32" if first == second == "u32" else "s32"

            def four(a, b, c, first=first, second=second):
                return c + sum(x * y for x, y in zip(elements(a, 8, first), elements(b, 8, second)))

            cases.append(case(f"dp4a.{first}.{second}", f"{total} <- b32 b32 {total}", four))
            for mode, start in (("lo", 0), ("hi", 2)):

                def two(a, b, c, first=first, second=second, start=start):
                    return c + sum(x * y for x, y in zip(elements(a, 16, first), elements(b, 8, second)[start:]))

                cases.append(case(f"dp2a.{mode}.{first}.{second}", f"{total} <- b32 b32 {total}", two))
    return cases


def packed() -> list[Case]:
    """Two 16-bit integers at a time."""

    def both(operation, kind):
        def define(a, b):
            pairs = zip(elements(a, 16, kind), elements(b, 16, kind))
            low, high = (unsigned(operation(x, y), 16) for x, y in pairs)
            return low | high << 16

        return define

    cases = []
    for kind in ("u16x2", "s16x2"):
        two = f"{kind} <- {kind} {kind}"
        for name, operation in (("add", lambda x, y: x + y), ("min", min), ("max", max)):
            cases.append(case(f"{name}.{kind}", two, both(operation, kind)))
    for name, pick in (("min", min), ("max", max)):
        relu = lambda x, y, p=pick: max(p(x, y), 0)  # noqa: E731
        cases.append(case(f"{name}.relu.s16x2", "s16x2 <- s16x2 s16x2", both(relu, "s16x2")))
    return cases


# ---- carry chains: two words, and the third that takes the last carry --------------------------------------------
def carries() -> list[Case]:
    """add.cc, addc, sub.cc, subc, mad.cc, madc: q is the word that the carry goes into."""
    cases = []
    for kind in ("u32", "s32", "u64", "s64"):
        width = int(kind[1:])
        for name, sign in (("add", 1), ("sub", -1)):
            text = f"{name}.cc.{kind} $d, $a, $b; {name}c.{kind} $q, $c, $e;"

            def chain(a, b, c, e, width=width, sign=sign):
                total = (a | c << width) + sign * (b | e << width)
                return total, total >> width

            cases.append(case(text, f"{kind} {kind} <- {kind} {kind} {kind} {kind}", chain))
            middle = f"{name}.cc.{kind} $d, $a, $b; {name}c.cc.{kind} $d, $c, $e; "
            middle += f"{name}c.{kind} $q, 0, 0;"

            def long_chain(a, b, c, e, width=width, sign=sign):
                total = (a | c << width) + sign * (b | e << width)
                return total >> width, total >> 2 * width

            cases.append(case(middle, f"{kind} {kind} <- {kind} {kind} {kind} {kind}", long_chain))
        # Without .cc the flag stays what it was.
        kept = f"add.cc.{kind} $d, $a, $b; addc.{kind} $d, $c, $e; addc.{kind} $q, 0, 0;"
        keeps = lambda a, b, c, e, w=width: (c + e + (a + b >> w), a + b >> w)  # noqa: E731
        cases.append(case(kept, f"{kind} {kind} <- {kind} {kind} {kind} {kind}", keeps))
        for half in ("lo", "hi"):
            text = f"mad.{half}.cc.{kind} $d, $a, $b, $c; madc.{half}.{kind} $q, $a, $b, $c;"
            cases.append(case(text, f"{kind} {kind} <- {kind} {kind} {kind}", mad_chain(kind, half, False)))
            text = f"mad.{half}.cc.{kind} $d, $a, $b, $c; "
            text += f"madc.{half}.cc.{kind} $d, $a, $b, $c; addc.{kind} $q, 0, 0;"
            cases.append(case(text, f"{kind} {kind} <- {kind} {kind} {kind}", mad_chain(kind, half, True)))
    return cases


def mad_chain(kind: str, half: str, again: bool):
    width = int(kind[1:])

    def define(a, b, c):
        product = of_type(kind, a) * of_type(kind, b)
        part = unsigned(product >> width if half == "hi" else product, width)
        first = part + c
        second = part + c + (first >> width)
        return (second, second >> width) if again else (first, second)

    return define


CASES = [*arithmetic(), *bit_fields(), *packed(), *carries()]
