"""Approximate f32 and f64 instructions, and tanh and ex2 of halves: the exact value, rounded once."""

from __future__ import annotations

from ..forms import form, pure
from ..statement import Statement
from .floats import sources


@form("ex2|lg2|rcp|rsqrt|sqrt|sin|cos approx [ftz] f32", "tanh approx f32")
def approximate(statement: Statement) -> str:
    """One source; with .ftz the source and the result are flushed."""
    result = f"{statement['name']}_approx({sources(statement, 'f32', 1)[0]})"
    return statement.write(0, "f32", f"ftz({result})" if statement["ftz"] else result)


@form("div approx:approx [ftz] f32", "div full [ftz] f32")
def approximate_quotient(statement: Statement) -> str:
    """div.approx loses the quotient by a divisor beyond 2^126; div.full does not."""
    a, b = sources(statement, "f32", 2)
    result = f"div_approx({a}, {b})" if statement["approx"] else f"canonical({a} / {b})"
    return statement.write(0, "f32", f"ftz({result})" if statement["ftz"] else result)


pure("rcp approx ftz f64", "f64 f64", "rcp_approx_upper({a})")
pure("rsqrt approx ftz f64", "f64 f64", "rsqrt_approx_upper({a})")
pure("rsqrt approx f64", "f64 f64", "rsqrt_approx({a})")


@form("tanh|ex2 approx T:f16|f16x2|bf16|bf16x2", "ex2 approx ftz:ftz T:bf16|bf16x2")
def approximate_half(statement: Statement) -> str:
    """Of one half or of both."""
    statement.expect(2)
    kind = statement["T"]
    flags = ["true" if flag else "false" for flag in (kind.startswith("bf"), statement["ftz"])]
    function = f"half_approx({{}}, Approximation::{statement['name']}, {', '.join(flags)})"
    value = statement.read(1, kind)
    if not kind.endswith("x2"):
        return statement.write(0, kind, function.format(value))
    low, high = function.format(f"(u16){value}"), function.format(f"(u16)({value} >> 16)")
    return statement.write(0, kind, f"{low} | (u32){high} << 16")
