"""A kernel that runs a list of cases, one sample of each a thread, and the comparison with what the manual says."""

from __future__ import annotations

import re

import numpy as np

from .case import SAMPLES, Case, Near, samples, width
from .numbers import FORMATS, NAN, decode

C_TYPES = {1: "unsigned", 8: "unsigned short", 16: "unsigned short", 32: "unsigned", 64: "unsigned long long"}
CONSTRAINTS = {1: "r", 8: "h", 16: "h", 32: "r", 64: "l"}
ANY_NAN = ("f64",)  # formats whose NaN results the manual does not fix


def rows(cases: list[Case]) -> tuple[int, int]:
    """How many rows of samples the sources and the results have."""
    return sum(len(one.sources) for one in cases), sum(len(one.results) for one in cases)


def source(cases: list[Case]) -> str:
    """The kernel's text."""
    lines = [f"struct alignas(32) Place {{ char bytes[32]; }}; __device__ Place places[{SAMPLES}];"]
    lines.append('extern "C" __global__ void probe(const unsigned long long* in, unsigned long long* out) {')
    lines.append(f"__shared__ Place shared_places[{SAMPLES}]; const int n = {SAMPLES};")
    lines.append("const unsigned i = threadIdx.x; in += i; out += i; Place* const m = places + i;")
    lines.append("const unsigned s = (unsigned)__cvta_generic_to_shared(shared_places + i);")
    first_in, first_out = 0, 0
    for one in cases:
        lines.append(statement(one, first_in, first_out))
        first_in += len(one.sources)
        first_out += len(one.results)
    return "\n".join([*lines, "}"])


def statement(one: Case, first_in: int, first_out: int) -> str:
    """Load, the instruction as inline assembly, store; predicates become registers of 0 and 1."""
    results, sources = list(zip("dq", one.results)), list(zip("abce", one.sources))
    values = [("m", "u64"), ("s", "u32"), *sources]
    places = {name: f"%{place}" for place, (name, _) in enumerate([*results, *values])}
    before, after = "", ""
    for name, kind in [*results, *sources]:
        if kind == "pred":
            before += f".reg .pred p{name}; "
            if (name, kind) in sources:
                before += f"setp.ne.u32 p{name}, {places[name]}, 0; "
            else:
                after += f" selp.u32 {places[name]}, 1, 0, p{name};"
            places[name] = f"p{name}"
    body = re.sub(r"\$([dqabcems])\b", lambda found: places[found.group(1)], one.text)
    outputs = ", ".join(f'"=&{CONSTRAINTS[width(kind)]}"({name})' for name, kind in results)
    inputs = ", ".join(f'"{CONSTRAINTS[width(kind)]}"({name})' for name, kind in values)
    loads = [f"{C_TYPES[width(kind)]} {name} = in[{first_in + k} * n];" for k, (name, kind) in enumerate(sources)]
    makes = [f"{C_TYPES[width(kind)]} {name} = 0;" for name, kind in results]
    stores = [f"out[{first_out + k} * n] = {name};" for k, (name, _) in enumerate(results)]
    assembly = f'asm volatile("{{ {before}{body}{after} }}" : {outputs} : {inputs} : "memory");'
    return "{ " + " ".join([*loads, *makes, assembly, *stores]) + " }"


def inputs(cases: list[Case]) -> np.ndarray:
    """The samples' bits, one row for each source of each case."""
    table = [row for one in cases for row in zip(*samples(one))]
    return np.array(table, np.uint64).reshape(-1, SAMPLES)


def mismatches(cases: list[Case], outputs: np.ndarray) -> list[str]:
    """A line for each case that came out otherwise than the manual says: the first sample of it."""
    found, row = [], 0
    for one in cases:
        results = outputs[row : row + len(one.results)]
        row += len(one.results)
        wrong = (explain(one, bits, results[:, place]) for place, bits in enumerate(samples(one)))
        first = next((text for text in wrong if text), None)
        if first:
            found.append(f"{one.text} {first}")
    return found


def explain(one: Case, bits: tuple[int, ...], got: np.ndarray) -> str | None:
    """What is wrong with the results of one sample."""
    expected = one.define(*bits)
    expected = expected if isinstance(expected, tuple) and not isinstance(expected, Near) else (expected,)
    for kind, value, result in zip(one.results, expected, got):
        if not agrees(kind, value, int(result)):
            sources = ", ".join(hex(value) for value in bits)
            shown = hex(value & ((1 << width(kind)) - 1)) if isinstance(value, int) else value
            return f"of {sources}: {result:#x}, expected {shown}"
    return None


def agrees(kind: str, expected: object, got: int) -> bool:
    """Whether a result's bits are the expected ones, or near enough."""
    if expected is None:
        return True
    if isinstance(expected, Near):
        return is_near(kind, expected, got)
    if kind in ANY_NAN and decode(expected, FORMATS[kind]) is NAN:
        return decode(got, FORMATS[kind]) is NAN
    return got == expected & ((1 << width(kind)) - 1)


def is_near(kind: str, expected: Near, got: int) -> bool:
    value, number = expected.value, decode(got, FORMATS[kind])
    if value is NAN or number is NAN:
        return value is number
    if value in (float("inf"), float("-inf")) or number in (float("inf"), float("-inf")):
        return value == number
    return abs(number - value) <= max(expected.relative * abs(value), expected.absolute)
