"""Integer arithmetic: sums, products, quotients, extremes, bit fields, packed pairs and carry chains.

Sums and products wrap, so they are computed unsigned.
"""

from __future__ import annotations

from ..forms import form, pure
from ..statement import Statement

ANY = "T:u16|u32|u64|s16|s32|s64"
WORDS = "T:u32|u64|s32|s64"

pure(f"add {ANY}", "U U U", "{a} + {b}")
pure(f"sub {ANY}", "U U U", "{a} - {b}")
pure("add sat s32", "s32 s32 s32", "(s32)clamp((s64){a} + {b}, INT32_MIN, INT32_MAX)")
pure("sub sat s32", "s32 s32 s32", "(s32)clamp((s64){a} - {b}, INT32_MIN, INT32_MAX)")
pure(f"mul lo {ANY}", "U U U", "1u * {a} * {b}")
pure(f"mul hi {ANY}", "T T T", "({T})(({W}){a} * ({W}){b} >> {N})")
pure("mul wide T:u16|u32|s16|s32", "W T T", "({W}){a} * ({W}){b}")
pure(f"mad lo {ANY}", "U U U U", "1u * {a} * {b} + {c}")
pure(f"mad hi {ANY}", "U T T U", "({U})(({W}){a} * ({W}){b} >> {N}) + {c}")
pure("mad hi sat s32", "s32 s32 s32 s32", "(s32)clamp(((s64){a} * {b} >> 32) + {c}, INT32_MIN, INT32_MAX)")
pure("mad wide T:u16|u32|s16|s32", "X T T X", "({X})(({W}){a} * ({W}){b}) + {c}")
pure("mul24 lo u32", "u32 u32 u32", "(u32)mul24_unsigned({a}, {b})")
pure("mul24 hi u32", "u32 u32 u32", "(u32)(mul24_unsigned({a}, {b}) >> 16)")
pure("mul24 lo s32", "u32 u32 u32", "(u32)mul24_signed({a}, {b})")
pure("mul24 hi s32", "u32 u32 u32", "(u32)(mul24_signed({a}, {b}) >> 16)")
pure("mad24 lo u32", "u32 u32 u32 u32", "(u32)mul24_unsigned({a}, {b}) + {c}")
pure("mad24 hi u32", "u32 u32 u32 u32", "(u32)(mul24_unsigned({a}, {b}) >> 16) + {c}")
pure("mad24 lo s32", "u32 u32 u32 u32", "(u32)mul24_signed({a}, {b}) + {c}")
pure("mad24 hi s32", "u32 u32 u32 u32", "(u32)(mul24_signed({a}, {b}) >> 16) + {c}")
pure(f"sad {ANY}", "U T T U", "{c} + ({a} < {b} ? ({U}){b} - ({U}){a} : ({U}){a} - ({U}){b})")
pure("abs T:s16|s32|s64", "U T", "{a} < 0 ? 0u - ({U}){a} : ({U}){a}")
pure("neg T:s16|s32|s64", "U U", "0u - {a}")
pure(f"min {ANY}", "T T T", "{a} < {b} ? {a} : {b}")
pure(f"max {ANY}", "T T T", "{a} > {b} ? {a} : {b}")
pure("min relu s32", "s32 s32 s32", "(s32)clamp({a}, 0, {b} < 0 ? 0 : {b})")
pure("max relu s32", "s32 s32 s32", "(s32)clamp({a} > {b} ? {a} : {b}, 0, INT32_MAX)")

pure("popc T:b32|b64", "u32 T", "(u32)__builtin_popcountll({a})")
pure("clz b32", "u32 b32", "{a} ? (u32)__builtin_clz({a}) : 32u")
pure("clz b64", "u32 b64", "{a} ? (u32)__builtin_clzll({a}) : 64u")
pure("brev T:b32|b64", "T T", "({T})brev({a}, {N})")
pure("bfe T:u32|u64", "T T u32 u32", "({T})bfe({a}, {b}, {c}, {N}, false)")
pure("bfe T:s32|s64", "U U u32 u32", "({U})bfe({a}, {b}, {c}, {N}, true)")
pure("bfi T:b32|b64", "T T T u32 u32", "({T})bfi({a}, {b}, {c}, {e}, {N})")
pure("bfind T:u32|u64", "u32 T", "bfind({a}, {N}, false, false)")
pure("bfind T:s32|s64", "u32 U", "bfind({a}, {N}, true, false)")
pure("bfind shiftamt T:u32|u64", "u32 T", "bfind({a}, {N}, false, true)")
pure("bfind shiftamt T:s32|s64", "u32 U", "bfind({a}, {N}, true, true)")
pure("fns b32", "u32 u32 u32 s32", "fns({a}, {b}, {c})")
pure("bmsk clamp b32", "u32 u32 u32", "bmsk({a}, {b}, true)")
pure("bmsk wrap b32", "u32 u32 u32", "bmsk({a}, {b}, false)")
pure("szext clamp T:u32|s32", "u32 u32 u32", "szext({a}, {b}, true, {T}(-1) < 0)")
pure("szext wrap T:u32|s32", "u32 u32 u32", "szext({a}, {b}, false, {T}(-1) < 0)")

pure("add u16x2|s16x2", "b32 b32 b32", "pairwise(Pair::add, {a}, {b}, false)")
pure("min u16x2", "b32 b32 b32", "pairwise(Pair::min_unsigned, {a}, {b}, false)")
pure("max u16x2", "b32 b32 b32", "pairwise(Pair::max_unsigned, {a}, {b}, false)")
pure("min s16x2", "b32 b32 b32", "pairwise(Pair::min_signed, {a}, {b}, false)")
pure("max s16x2", "b32 b32 b32", "pairwise(Pair::max_signed, {a}, {b}, false)")
pure("min relu s16x2", "b32 b32 b32", "pairwise(Pair::min_signed, {a}, {b}, true)")
pure("max relu s16x2", "b32 b32 b32", "pairwise(Pair::max_signed, {a}, {b}, true)")


@form(f"div|rem {ANY}")
def quotient(statement: Statement) -> str:
    """Division by zero is a finding."""
    statement.expect(3)
    kind = statement["T"]
    function = f"{statement['name']}_{'signed' if kind[0] == 's' else 'unsigned'}"
    a, b = statement.read(1, kind), statement.read(2, kind)
    return statement.write(0, kind, f"({kind}){function}({a}, {b}, {statement.site})")


@form("dp4a a:u32|s32 b:u32|s32", "dp2a half:lo|hi a:u32|s32 b:u32|s32")
def dot_product(statement: Statement) -> str:
    """Four products of bytes, or two of 16-bit integers with the lower or upper bytes of b."""
    statement.expect(4)
    a, b, c = (statement.read(place, "u32") for place in (1, 2, 3))
    bits, first = (8, 0) if statement["name"] == "dp4a" else (16, 0 if statement["half"] == "lo" else 2)
    signs = ", ".join("true" if statement[part] == "s32" else "false" for part in "ab")
    return statement.write(0, "u32", f"dot_packed({a}, {b}, {c}, {bits}, {first}, {signs})")


# ---- carry chains: the flag is a local variable of the function --------------------------------------------------
def _carried(statement: Statement, total: str, kind: str) -> str:
    """Assign the low word of a sum or difference twice as wide; with .cc the bit above it becomes the flag."""
    bits = int(kind[1:])
    statement.function.carry = True
    keep = f" carry = t_ >> {bits} & 1;" if statement["cc"] else ""
    return f"{{ u{2 * bits} t_ = {total}; {statement.write(0, f'u{bits}', f'(u{bits})t_')}{keep} }}"


@form("add|sub cc:cc T:u32|s32|u64|s64", "addc|subc [cc] T:u32|s32|u64|s64")
def sum_with_carry(statement: Statement) -> str:
    """add.cc, addc, sub.cc, subc; for differences the flag is a borrow."""
    statement.expect(3)
    kind, name = f"u{statement['T'][1:]}", statement["name"]
    sign = "+" if name.startswith("add") else "-"
    a, b = statement.read(1, kind), statement.read(2, kind)
    carry = f" {sign} carry" if name.endswith("c") else ""
    return _carried(statement, f"(u{2 * int(kind[1:])}){a} {sign} {b}{carry}", kind)


@form("mad half:lo|hi cc:cc T:u32|s32|u64|s64", "madc half:lo|hi [cc] T:u32|s32|u64|s64")
def product_with_carry(statement: Statement) -> str:
    """mad.cc and madc: the half of the product plus c plus, for madc, the flag."""
    statement.expect(4)
    fields = statement.type_fields()
    kind, wide = fields["U"], fields["X"]
    a, b = (statement.read(place, statement["T"]) for place in (1, 2))
    c = statement.read(3, kind)
    shift = f" >> {fields['N']}" if statement["half"] == "hi" else ""
    product = f"({kind})(({fields['W']}){a} * ({fields['W']}){b}{shift})"
    carry = " + carry" if statement["name"] == "madc" else ""
    return _carried(statement, f"({wide}){product} + {c}{carry}", kind)
