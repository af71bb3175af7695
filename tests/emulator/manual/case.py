"""A case: one instruction, where its operands are, and what the manual says of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from .numbers import FORMATS

SAMPLES = 384  # of each case
WIDTHS = {"pred": 1, "f16x2": 32, "bf16x2": 32, "u16x2": 32, "s16x2": 32, "f32x2": 64, "e4m3x2": 16, "e5m2x2": 16}
WIDTHS |= {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "tf32": 32, "shift": 32, "small": 32}
WIDTHS |= {f"{letter}{bits}": bits for letter in ("b", "u", "s", "nonzero") for bits in (8, 16, 32, 64)}


class Near(NamedTuple):
    """A result that may deviate from `value` by this much, relatively or absolutely; both in the format's numbers."""

    value: Any
    relative: float
    absolute: float = 0.0


class Case(NamedTuple):
    """`text` has $d and $q for the results and $a, $b, $c, $e for the sources; $m is the address of 32 bytes of the
    thread in global memory, $s of 32 bytes in shared memory.

    `define` maps the sources' bits to the results' bits; for a floating result also to `Near`, or to None where the
    manual leaves it open.
    """

    text: str
    results: tuple[str, ...]
    sources: tuple[str, ...]
    define: Callable[..., Any]

    @property
    def name(self) -> str:
        return self.text.split(";")[0]


def case(text: str, types: str, define: Callable[..., Any]) -> Case:
    """`types`: "d q <- a b c", names of types; `text` without operands gets them in order: d, a, b, c."""
    results, sources = (tuple(part.split()) for part in types.split("<-"))
    if "$" not in text:
        operands = [*"dq"[: len(results)], *"abce"[: len(sources)]]
        text = f"{text} " + ", ".join(f"${name}" for name in operands) + ";"
    return Case(text, results, sources, define)


def width(kind: str) -> int:
    return WIDTHS[kind]


def edges(kind: str) -> list[int]:
    """The values of a type at which definitions break, as bits."""
    if kind == "pred":
        return [0, 1]
    if kind == "shift":
        return [0, 1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 255, 256, 0x80000000, 0xFFFFFFFF]
    if kind == "small":
        return list(range(33))
    if kind.endswith("x2"):
        half = edges(kind[:-2])
        return [low | high << (width(kind) // 2) for low, high in zip(half, half[::-1])]
    bits = width(kind)
    if kind in FORMATS:
        return float_edges(kind)
    top = 1 << (bits - 1)
    small = [0, 1, 2, 3, 5, 0x55, 127, 128, 0xAA, 255]
    return [*small, top // 2, top - 2, top - 1, top, top + 1, 2 * top - 2, 2 * top - 1]


def float_edges(kind: str) -> list[int]:
    """Zeros, subnormals, the ends of the normal range, infinities, NaNs of both kinds, and numbers between integers."""
    form = FORMATS[kind]
    hidden = 1 << (form.precision - 1)
    one = (-form.least_exponent + 1) * hidden
    infinity = form.infinity
    positive = [0, 1, 2, hidden - 1, hidden, hidden + 1, infinity - 1, infinity, one - 1, one, one + 1]
    positive += [one + hidden // 2, one + hidden, one + hidden + hidden // 4, one - hidden, one - hidden + 1, one // 2]
    positive += [one + 7 * hidden - 1, one + 8 * hidden]
    # Half way between two numbers of the formats that drop so many bits: of even and of odd ones.
    for dropped in (3, 8, 13, 16, 21, 29, 42, 45):
        if dropped < form.precision - 1:
            positive += [one + (1 << (dropped - 1)), one + (3 << (dropped - 1))]
    if form.bits > 8:
        positive += [infinity + 1, infinity + hidden // 2, form.sign - 1]
    return positive + [bits | form.sign for bits in positive]


def sample(kind: str, source: random.Random) -> int:
    """An edge, a random value, or a random value near zero or near one."""
    if kind.startswith("nonzero"):
        return sample(f"b{width(kind)}", source) or 1
    choice = source.random()
    if choice < 0.5:
        return source.choice(edges(kind))
    bits = width(kind)
    if kind in ("pred", "shift", "small"):
        return source.choice(edges(kind)) if choice < 0.8 else source.randrange(1 << min(bits, 6))
    if kind in FORMATS and choice < 0.8:  # exponents near that of one, so that operands meet
        form = FORMATS[kind]
        hidden = 1 << (form.precision - 1)
        exponent = -form.least_exponent + 1 + source.randint(-3, 3)
        return source.getrandbits(1) << (bits - 1) | exponent * hidden + source.randrange(hidden)
    if choice < 0.7:
        return source.randrange(min(1 << bits, 300))
    return source.getrandbits(bits)


def samples(one: Case) -> list[tuple[int, ...]]:
    """Rows of source bits; a single source goes through all its edges first."""
    source = random.Random(one.text)
    rows = [tuple(sample(kind, source) for kind in one.sources) for _ in range(SAMPLES)]
    if len(one.sources) == 1:
        known = edges(one.sources[0])[: SAMPLES // 2]
        rows[: len(known)] = [(bits,) for bits in known]
    return rows
