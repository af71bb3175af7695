"""f16 and bf16 arithmetic, single and packed in pairs."""

from __future__ import annotations

from ..forms import form, pure
from ..statement import Statement

F16 = "T:f16|f16x2"
BF16 = "T:bf16|bf16x2"


def operation(statement: Statement, op: str, count: int) -> str:
    """An operation on the halves of the sources, with the rules that the form names."""
    statement.expect(1 + count)
    kind = statement["T"]
    flags = [kind.startswith("bf"), statement["ftz"], statement["sat"], statement["relu"], statement["xorsign"]]
    rules = f"HalfRules{{{', '.join('true' if flag else 'false' for flag in flags)}}}"
    values = [statement.read(1 + place, kind) for place in range(count)] + ["0"] * (3 - count)
    function = "half2_op" if kind.endswith("x2") else "half_op"
    return statement.write(0, kind, f"{function}(Half::{op}, {rules}, {', '.join(values)})")


@form(f"add|sub|mul [rn] [ftz] [sat] {F16}", f"add|sub|mul [rn] {BF16}")
def binary(statement: Statement) -> str:
    """Sum, difference, product."""
    return operation(statement, statement["name"], 2)


@form(
    f"fma rn [ftz] [sat] {F16}",
    f"fma rn [ftz] relu:relu {F16}",
    f"fma rn [relu] {BF16}",
)
def fused(statement: Statement) -> str:
    """a * b + c, rounded once."""
    return operation(statement, "fma", 3)


@form(f"min|max [ftz] [nan:NaN] [xorsign] [abs] {F16}", f"min|max [nan:NaN] [xorsign] [abs] {BF16}")
def extreme(statement: Statement) -> str:
    """-0 lies below +0; a NaN loses, unless .NaN lets it win."""
    if bool(statement["xorsign"]) != bool(statement["abs"]):
        raise statement.refuse(".xorsign and .abs go together")
    return operation(statement, statement["name"] + ("_nan" if statement["nan"] else ""), 2)


pure("abs T:f16|bf16", "b16 b16", "{a} & 0x7fff")
pure("neg T:f16|bf16", "b16 b16", "{a} ^ 0x8000")
pure("abs T:f16x2|bf16x2", "b32 b32", "{a} & 0x7fff7fffu")
pure("neg T:f16x2|bf16x2", "b32 b32", "{a} ^ 0x80008000u")
