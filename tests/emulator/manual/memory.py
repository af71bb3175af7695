"""Moves, loads, stores and atomics of one thread: what is written is read back, extended as the manual says.

$m is 32 bytes of the thread in global memory, $s 32 bytes of it in shared memory.
"""

from __future__ import annotations

from . import floats
from .case import Case, Near, case
from .halves import lanes
from .integers import of_type
from .numbers import BF16, F16, F32, F64, NAN, decode, flush

TYPES = [f"{letter}{bits}" for bits in (8, 16, 32, 64) for letter in "bus"] + ["f32", "f64"]


def moves() -> list[Case]:
    cases = [case(f"mov.{kind}", f"{raw(kind)} <- {raw(kind)}", lambda a: a) for kind in TYPES if kind[1:] != "8"]
    return [
        *cases,
        case("mov.b32 $d, {$a, $b};", "b32 <- b16 b16", lambda a, b: a | b << 16),
        case("mov.b64 $d, {$a, $b};", "b64 <- b32 b32", lambda a, b: a | b << 32),
        case("mov.b64 $d, {$a, $b, $c, $e};", "b64 <- b16 b16 b16 b16", four_halves),
        case("mov.b32 {$d, $q}, $a;", "b16 b16 <- b32", lambda a: (a, a >> 16)),
        case("mov.b64 {$d, $q}, $a;", "b32 b32 <- b64", lambda a: (a, a >> 32)),
        case("mov.b64 {_, $d}, $a;", "b32 <- b64", lambda a: a >> 32),
        case(".reg .b128 r; mov.b128 r, {$a, $b}; mov.b128 {$d, $q}, r;", "b64 b64 <- b64 b64", lambda a, b: (a, b)),
        case("mov.f32 $d, 0.1;", "f32 <- b32", lambda a: 0x3DCCCCCD),
        case("mov.f64 $d, 0.1;", "f64 <- b32", lambda a: 0x3FB999999999999A),
        case("mov.b32 $d, 0f7FC12345;", "b32 <- b32", lambda a: 0x7FC12345),
        case("mov.f64 $d, 0dFFF0000000000000;", "f64 <- b32", lambda a: 0xFFF0000000000000),
        case("mov.b32 $d, -2147483648;", "b32 <- b32", lambda a: 0x80000000),
        case("mov.s64 $d, -0x8000000000000000;", "s64 <- b32", lambda a: 1 << 63),
        case("mov.u32 $d, 0777;", "u32 <- b32", lambda a: 0o777),
        case("mov.u16 $d, 0b101;", "u16 <- b32", lambda a: 5),
        case("add.f32 $d, $a, 0f40490FDB;", "f32 <- f32", lambda a: floats.add(a, 0x40490FDB, F32, "rn")),
        case("min.f32 $d, $a, 0f7F800000;", "f32 <- f32", lambda a: floats.extreme(a, F32.infinity, F32, True)),
        case("max.f64 $d, $a, 0dFFF0000000000000;", "f64 <- f64", lambda a: floats.extreme(a, 0xFFF << 52, F64, False)),
        case("min.NaN.f32 $d, $a, 0f7FC00001;", "f32 <- f32", lambda a: F32.nan),
        case("mul.f64 $d, $a, 0d8000000000000000;", "f64 <- f64", lambda a: floats.mul(a, 1 << 63, F64, "rn")),
        case("mov.pred $d, $a;", "pred <- pred", lambda a: a),
        case("setp.ne.u32 $d, $a, 0; @!$d mov.pred $d, 1;", "pred <- b32", lambda a: 1),
        case("mov.b32 $d, 3; @$b mov.b32 $d, $a;", "b32 <- b32 pred", lambda a, b: a if b else 3),
        *scopes(),
        *addresses(),
    ]


def four_halves(a: int, b: int, c: int, e: int) -> int:
    return a | b << 16 | c << 32 | e << 48


def scopes() -> list[Case]:
    """In an inner scope a register of the same name is another one, and so is a label; an array stays in reach."""
    inner = ".reg .b32 r; mov.b32 r, $a; { .reg .b32 r; mov.b32 r, 7; } mov.b32 $d, r;"
    ranges = ".reg .b32 r<3>; mov.b32 r1, $a; { .reg .b32 r<3>; mov.b32 r1, 7; } mov.b32 $d, r1;"
    mixed = ".reg .b32 r<3>; mov.b32 r1, $a; { .reg .b32 r1; mov.b32 r1, 7; mov.b32 r2, r1; } add.u32 $d, r1, r2;"
    arrays = ".local .align 8 .b8 one[8]; .local .align 8 .b8 two[8]; "
    arrays += "st.local.b32 [one+4], $a; st.local.b32 [two], 5; ld.local.b32 $d, [one+4];"
    return [
        case(inner, "b32 <- b32", lambda a: a),
        case(arrays, "b32 <- b32", lambda a: a),
        case(ranges, "b32 <- b32", lambda a: a),
        case(mixed, "b32 <- b32", lambda a: a + 7),
    ]


def addresses() -> list[Case]:
    """Generic addresses of global, shared and local memory, and what isspacep says of each."""
    shared = ".reg .b64 g; cvt.u64.u32 g, $s; cvta.shared.u64 g, g; "
    local = ".local .align 8 .b8 buffer[8]; .reg .b64 g; cvta.local.u64 g, buffer; "
    there = "st.shared.b32 [$s+4], $a; ld.b32 $d, [g+4];"
    back = "st.b32 [g], $a; cvta.to.shared.u64 g, g; ld.shared.b32 $d, [g];"
    narrow = ".reg .b32 n; cvta.to.shared.u64 g, g; cvt.u32.u64 n, g; sub.u32 $d, n, $s;"
    cases = [case(shared + text, "b32 <- b32", lambda a: a) for text in (there, back)]
    cases.append(case(shared + narrow, "b32 <- b32", lambda a: 0))
    round_trip = "cvta.to.global.u64 $d, $m; cvta.global.u64 $d, $d; sub.u64 $d, $d, $m;"
    cases.append(case(round_trip, "u64 <- b32", lambda a: 0))
    there = "st.b32 [g+4], $a; ld.local.b32 $d, [buffer+4];"
    back = "cvta.to.local.u64 g, g; st.local.b32 [g], $a; ld.b32 $d, [g];"
    cases += [case(local + text, "b32 <- b32", lambda a: a) for text in (there, back)]
    spaces = (("shared", shared), ("local", local), ("global", ".reg .b64 g; mov.b64 g, $m; "))
    for name, text in spaces:
        for asked in ("shared", "shared::cta", "local", "global"):
            yes = int(asked.split("::")[0] == name)
            cases.append(case(f"{text}isspacep.{asked} $d, g;", "pred <- b32", lambda a, yes=yes: yes))
    return cases


def raw(kind: str) -> str:
    return f"b{kind[1:]}"


# ---- loads and stores --------------------------------------------------------------------------------------------
# Where an access goes: the instruction's part, and the address.
PLACES = {".global": "$m", ".shared": "$s", ".shared::cta": "$s", "": "$m", ".local": "buffer"}


def loads_and_stores() -> list[Case]:
    cases = []
    for space, place in PLACES.items():
        local = ".local .align 16 .b8 buffer[16]; " if space == ".local" else ""
        for kind in TYPES:
            bits = int(kind[1:])
            register = raw(kind) if bits > 8 else "b16"
            text = f"{local}st{space}.{kind} [{place}], $a; ld{space}.{kind} $d, [{place}];"
            # 8 bits stand in a wider register, extended by the sign of the type.
            define = lambda a, kind=kind: of_type(kind.replace("b", "u").replace("f", "u"), a)  # noqa: E731
            cases.append(case(text, f"{register} <- {register}", define))
            if bits < 64 and kind[0] != "f":
                cases.append(case(text, "b64 <- b64", define))
        where = f"{place}+8"
        pair = f"{local}st{space}.v2.b32 [{where}], {{$a, $b}}; ld{space}.v2.b32 {{$d, $q}}, [{where}];"
        cases.append(case(pair, "b32 b32 <- b32 b32", lambda a, b: (a, b)))
        four = f"{local}st{space}.v4.u16 [{place}], {{$a, $b, $c, $e}}; "
        four += f"ld{space}.b32 $d, [{place}]; ld{space}.b32 $q, [{place}+4];"
        cases.append(case(four, "b32 b32 <- b16 b16 b16 b16", words))
        parts = f"{local}st{space}.b32 [{place}], $a; .reg .b32 r<4>; "
        parts += f"ld{space}.v4.s8 {{r0, r1, r2, r3}}, [{place}]; mov.b32 $d, r0; mov.b32 $q, r3;"
        cases.append(case(parts, "b32 b32 <- b32", lambda a: (of_type("s8", a), of_type("s8", a >> 24))))
        wide = f"{local}.reg .b128 r, t; mov.b128 r, {{$a, $b}}; st{space}.b128 [{place}], r; "
        wide += f"ld{space}.b128 t, [{place}]; mov.b128 {{$d, $q}}, t;"
        cases.append(case(wide, "b64 b64 <- b64 b64", lambda a, b: (a, b)))
    return cases


def words(a: int, b: int, c: int, e: int) -> tuple[int, int]:
    return a | b << 16, c | e << 16


def qualified() -> list[Case]:
    """Every qualifier of a load with a store that it reads back."""
    loads = ["ld.weak.global", "ld.volatile.global", "ld.global.ca", "ld.global.cg"]
    loads += ["ld.global.cs", "ld.global.cv", "ld.global.lu", "ld.global.L1::no_allocate", "ld.global.L1::evict_last"]
    loads += ["ld.global.L1::evict_first.L2::128B", "ld.global.L2::256B", "ld.volatile"]
    both = [f"{scope}{space}" for scope in SCOPES for space in ("", ".global")]
    loads += [f"ld.{sem}.{where}" for sem in ("relaxed", "acquire") for where in both]
    stores = ["st.weak.global", "st.volatile.global", "st.global.wb", "st.global.cg", "st.global.cs", "st.global.wt"]
    stores += ["st.global.L1::no_allocate", "st.volatile"]
    stores += [f"st.{sem}.{where}" for sem in ("relaxed", "release") for where in both]
    shared = [("st.volatile.shared", "ld.volatile.shared"), ("st.relaxed.cta.shared::cta", "ld.acquire.cta.shared")]
    texts = [f"st.global.b32 [$m], $a; {load}.b32 $d, [$m];" for load in loads]
    texts += [f"{store}.b32 [$m], $a; ld.global.b32 $d, [$m];" for store in stores]
    texts += [f"{store}.b32 [$s+4], $a; {load}.b32 $d, [$s+4];" for store, load in shared]
    texts.append("st.global.v2.b16 [$m+4], {7, 9}; st.global.b32 [$m], $a; ld.b32 $d, [$m];")
    policy = ".reg .b64 p; createpolicy.fractional.L2::evict_last.b64 p, 0.5; "
    texts.append(policy + "st.global.L2::cache_hint.b32 [$m], $a, p; ld.global.L2::cache_hint.b32 $d, [$m], p;")
    hints = "prefetch.global.L2 [$m]; prefetch.L1 [$m]; prefetchu.L1 [$m]; prefetch.global.L2::evict_last [$m]; "
    texts.append(hints + "applypriority.global.L2::evict_normal [$m], 128; mov.b32 $d, $a;")
    return [case(text, "b32 <- b32", lambda a: a) for text in texts]


SCOPES = ("cta", "cluster", "gpu", "sys")


# ---- atomics -----------------------------------------------------------------------------------------------------
def wraps(a: int, b: int) -> int:
    return 0 if a >= b else a + 1


def descends(a: int, b: int) -> int:
    return b if a == 0 or a > b else a - 1


def added(form):
    """The sum; of its NaN the manual says nothing."""

    def define(a, b):
        result = floats.add(a, b, form, "rn")
        return Near(NAN, 0) if decode(result, form) is NAN else result

    return define


def ftz_added(a: int, b: int) -> int:
    """atom.add.f32 on global memory flushes subnormals."""
    result = added(F32)(flush(a, F32), flush(b, F32))
    return result if isinstance(result, Near) else flush(result, F32)


def halves_added(form):
    return lanes(lambda a, b: floats.add(a, b, form, "rn"))


def operations() -> list[tuple[str, str, object]]:
    """Name with its type, the type, what becomes of the value."""
    rows = []
    for bits in (32, 64):
        kind = f"b{bits}"
        rows += [(f"and.{kind}", kind, lambda a, b: a & b), (f"or.{kind}", kind, lambda a, b: a | b)]
        rows += [(f"xor.{kind}", kind, lambda a, b: a ^ b), (f"exch.{kind}", kind, lambda a, b: b)]
        for number in (f"u{bits}", f"s{bits}"):
            for name, pick in (("min", min), ("max", max)):
                key = lambda value, number=number: of_type(number, value)  # noqa: E731
                define = lambda a, b, pick=pick, key=key: pick(a, b, key=key)  # noqa: E731
                rows.append((f"{name}.{number}", number, define))
    rows += [(f"add.{kind}", kind, lambda a, b: a + b) for kind in ("u32", "s32", "u64")]
    rows += [("inc.u32", "u32", wraps), ("dec.u32", "u32", descends), ("add.f64", "f64", added(F64))]
    rows += [("add.noftz.f16x2", "f16x2", halves_added(F16)), ("add.noftz.bf16x2", "bf16x2", halves_added(BF16))]
    return rows


def atomics() -> list[Case]:
    """d is the value before, q the one after."""
    cases = []
    for name, kind, define in operations():
        for space, place in ((".global", "$m"), (".shared", "$s"), ("", "$m")):
            cases += atomic_cases(f"{space}.{name}", kind, place, define)
    for space, place, define in ((".global", "$m", ftz_added), (".shared", "$s", added(F32))):
        cases += atomic_cases(f"{space}.add.f32", "f32", place, define)
    for sem in ("relaxed", "acquire", "release", "acq_rel"):
        for scope in SCOPES:
            cases += atomic_cases(f".{sem}.{scope}.global.add.u32", "u32", "$m", lambda a, b: a + b, sem)
    for bits in (32, 64):
        kind = f"b{bits}"
        for space, place in ((".global", "$m"), (".shared", "$s"), (".acq_rel.gpu.global", "$m")):
            text = f"{{store}} atom{space}.cas.{kind} $d, [{place}], $b, $c; {{load}}"
            swap = lambda a, b, c: (a, c if a == b else a)  # noqa: E731
            cases.append(case(around(text, kind, place), f"{kind} {kind} <- {kind} {kind} {kind}", swap))
    return cases + vector_additions()


def around(text: str, kind: str, place: str) -> str:
    """The instruction between a store of a and a load of q, at the same place."""
    space = ".shared" if place == "$s" else ".global"
    bits = {"f16x2": "b32", "bf16x2": "b32"}.get(kind, f"b{kind[1:]}")
    store, load = f"st{space}.{bits} [{place}], $a;", f"ld{space}.{bits} $q, [{place}];"
    return text.replace("{store}", store).replace("{load}", load)


def atomic_cases(name: str, kind: str, place: str, define, sem: str = "relaxed") -> list[Case]:
    """atom with the value before, and red, which has no acquire."""
    both = lambda a, b: (a, define(a, b))  # noqa: E731
    text = around(f"{{store}} atom{name} $d, [{place}], $b; {{load}}", kind, place)
    cases = [case(text, f"{kind} {kind} <- {kind} {kind}", both)]
    if "exch" not in name and sem in ("relaxed", "release"):
        word = "b64" if kind[1:] == "64" else "b32"
        text = around(f"mov.{word} $d, $a; {{store}} red{name} [{place}], $b; {{load}}", kind, place)
        cases.append(case(text, f"{kind} {kind} <- {kind} {kind}", both))
    return cases


def vector_additions() -> list[Case]:
    """Two or four f32 of global memory at once, each flushed."""
    both = lambda a, b, c, e: (ftz_added(a, c), ftz_added(b, e))  # noqa: E731
    store, load = "st.global.v2.f32 [$m], {$a, $b}; ", " ld.global.v2.f32 {$d, $q}, [$m];"
    types = "f32 f32 <- f32 f32 f32 f32"
    four = "st.global.v2.f32 [$m], {$c, $c}; st.global.v2.f32 [$m+8], {$a, $b}; "
    four += "red.global.add.v4.f32 [$m], {$e, $e, $c, $e}; ld.global.v2.f32 {$d, $q}, [$m+8];"
    return [
        case(store + "red.global.add.v2.f32 [$m], {$c, $e};" + load, types, both),
        case(store + "atom.global.add.v2.f32 {$d, $q}, [$m], {$c, $e};", types, lambda a, b, c, e: (a, b)),
        case(four, types, both),
    ]


CASES = [*moves(), *loads_and_stores(), *qualified(), *atomics()]
