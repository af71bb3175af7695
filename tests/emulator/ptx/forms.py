"""The table of instruction forms: an opcode pattern on the left, what it becomes in C++ on the right.

A pattern is written as the manual writes a syntax, with spaces for dots: alternatives `a|b`, optional parts `[ftz]`,
named parts `T:u32|s32`. So `add [rnd:rn|rz] [ftz] f32` is `add{.rnd}{.ftz}.f32`. A family file registers its forms
when it is imported; an opcode that no form matches is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from .statement import Statement

Emitter: TypeAlias = "Callable[[Statement], str]"
Parts: TypeAlias = "dict[str, str | None]"


class Form(NamedTuple):
    """One row: the opcodes it covers and what makes C++ of them."""

    pattern: str
    regex: re.Pattern[str]
    emit: Emitter


FORMS: dict[str, list[Form]] = {}


def form(*patterns: str) -> Callable[[Emitter], Emitter]:
    """Register the function below for the opcodes of these patterns."""

    def register(emit: Emitter) -> Emitter:
        for pattern in patterns:
            row = Form(pattern, _compile(pattern), emit)
            for name in pattern.split()[0].split("|"):
                FORMS.setdefault(name, []).append(row)
        return emit

    return register


def pure(pattern: str, signature: str, expression: str) -> None:
    """Register a form that is one expression of its operands.

    `signature` gives the types of destination and sources: a PTX type, `T` for the part of that name, `U` and `S` for
    the unsigned and signed type of its width, `W` for the one twice as wide, `X` for `W` unsigned. `expression` sees
    the sources as {a}, {b}, {c}, {e} and these types as C++ types, the width of T in bits as {N}.
    """
    target, *sources = signature.split()

    def emit(statement: Statement) -> str:
        statement.expect(1 + len(sources))
        fields = statement.type_fields()
        values = {
            letter: statement.read(1 + place, fields.get(source, source))
            for place, (letter, source) in enumerate(zip("abce", sources))
        }
        return statement.write(0, fields.get(target, target), expression.format(**values, **fields))

    form(pattern)(emit)


@cache
def find_form(opcode: str) -> tuple[Emitter, Parts] | None:
    """What emits this opcode, and its named parts; None for an unknown one."""
    matches = [(row, found) for row in FORMS.get(opcode.split(".")[0], ()) if (found := row.regex.match(opcode))]
    assert len(matches) <= 1, f"{opcode} is claimed by several forms: {[row.pattern for row, _ in matches]}"
    return (matches[0][0].emit, matches[0][1].groupdict()) if matches else None


def _compile(pattern: str) -> re.Pattern[str]:
    first, *rest = pattern.split()
    text = rf"(?P<name>{first})"
    for part in rest:
        optional = part[0] == "["
        named, choices = re.fullmatch(r"(?:(\w+):(?!:))?(.*)", part.strip("[]")).groups()
        named = named or (choices if optional and choices.isidentifier() else None)
        group = rf"\.(?P<{named}>{choices})" if named else rf"\.(?:{choices})"
        text += rf"(?:{group})?" if optional else group
    return re.compile(text + r"\Z")
