"""PTX text to a typed tree (`tree.Module`).

It knows the syntax only: statements, directives, operands. What an opcode means, and which names are registers, is the
translator's business. Text that is not of the forms below is refused with its line.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cache

from .tree import (
    Address,
    Block,
    Float,
    Function,
    Group,
    Instruction,
    Integer,
    Label,
    Loc,
    Module,
    Name,
    Node,
    Not,
    Operand,
    Pair,
    Prototype,
    Registers,
    Sum,
    Targets,
    UnknownInstruction,
    Variable,
    Vector,
)

WORD = r"[A-Za-z_$%][\w$]*(?:\.[xyzw])?"
LABELLED = (".branchtargets", ".calltargets", ".callprototype")  # a label before these is their name
INTEGER = r"[+-]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?"

_COMMENT = re.compile(r'("[^"\n]*")|//[^\n]*|/\*.*?\*/', re.S)
_WORD = re.compile(WORD + r"\Z")
_INTEGER = re.compile(INTEGER + r"\Z")
_BITS = re.compile(r"0(?:[fF][0-9a-fA-F]{8}|[dD][0-9a-fA-F]{16})\Z")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?\Z")
_SUM = re.compile(rf"({WORD})\s*\+\s*({INTEGER})\Z")
_INSTRUCTION = re.compile(r"(?:@\s*(!?)\s*([\w$%]+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?\Z", re.S)
_PIECE = re.compile(
    r"""\s*(?:(?P<brace>[{}])
    | (?P<label>[A-Za-z_$%][\w$]*)\s*:(?!:)
    | \.loc\b(?P<loc>[^\n]*)
    | (?P<text>[^;{}\s][^;]*);
    | \Z)""",
    re.X,
)
_LOC = re.compile(r"\s*(\d+)\s+(\d+)\s+(\d+)(?:.*\binlined_at\s+(\d+)\s+(\d+)\s+(\d+))?", re.S)
_HEADER = re.compile(r"(?:\.(?:visible|extern|weak)\s+)*\.(entry|func)\b\s*")
_LINE_DIRECTIVE = re.compile(r"\.(version|target|address_size|file)\b([^\n]*)")
_SECTION = re.compile(r"\.section\s+\S+\s*\{[^}]*\}")
_VARIABLE = re.compile(
    r"""(?P<link>(?:\.(?:visible|extern|weak|common)\s+)*)
    \.(?P<space>global|const|shared|local|param)\s+
    (?:\.align\s+(?P<align>\d+)\s+)?
    (?:\.(?P<vector>v[24])\s+)?
    \.(?P<type>[busf]\d+)\s+
    (?:\.ptr\s+(?:\.(?:global|const|shared|local)\s+)?(?:\.align\s+\d+\s+)?)?
    (?P<name>[\w$%]+)
    (?P<dims>(?:\[\d*\])*)
    \s*(?:=\s*(?P<initial>.*))?\Z""",
    re.X | re.S,
)


def parse(text: str) -> Module:
    """The tree of a PTX module."""
    return _Parser(text).module()


class _Parser:
    """One text and a position in it."""

    def __init__(self, text: str):
        self.text = _COMMENT.sub(lambda found: found.group(1) or "\n" * found.group().count("\n") or " ", text)
        self.newlines = [found.start() for found in re.finditer("\n", self.text)]
        self.at = 0

    def line(self, at: int) -> int:
        return bisect_right(self.newlines, at - 1) + 1

    def refuse(self, at: int, text: str, why: str) -> UnknownInstruction:
        return UnknownInstruction(self.line(at), text, why)

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    # ---- module scope --------------------------------------------------------------------------------------------
    def module(self) -> Module:
        version, target, files = (0, 0), "", {}
        variables, functions = [], []
        while True:
            self.skip_space()
            if self.at == len(self.text):
                return Module(version, target, files, tuple(variables), tuple(functions))
            if found := self.take(_LINE_DIRECTIVE):
                kind, rest = found.group(1), found.group(2).strip()
                if kind == "version":
                    version = tuple(int(part) for part in rest.split("."))
                elif kind == "target":
                    target = rest.split(",")[0].strip()
                elif kind == "file":
                    number, name = re.match(r'(\d+)\s+"([^"]*)"', rest).groups()
                    files[int(number)] = name
            elif self.take(_SECTION):
                continue
            elif found := self.take(_HEADER):
                functions.append(self.function(found.start(), found.group(1) == "entry"))
            else:
                start = self.at
                statement = self.until_semicolon()
                if not statement.startswith(".pragma"):
                    variables.append(self.variable(start, statement))

    def until_semicolon(self) -> str:
        end = self.text.find(";", self.at)
        if end < 0:
            raise self.refuse(self.at, self.text[self.at : self.at + 60], "a statement without an end")
        statement = self.text[self.at : end].strip()
        self.at = end + 1
        return statement

    def parenthesis(self) -> str | None:
        """What stands between the parentheses that open here, or None."""
        self.skip_space()
        if self.text[self.at] != "(":
            return None
        end = self.text.index(")", self.at)
        inside = self.text[self.at + 1 : end].strip()
        self.at = end + 1
        return inside

    def function(self, start: int, entry: bool) -> Function:
        results = self.parenthesis()
        self.skip_space()
        name = re.compile(r"[\w$]+").match(self.text, self.at).group()
        self.at += len(name)
        params = self.parenthesis()
        end = re.compile(r"[^;{]*").match(self.text, self.at).end()
        directives = self.directives(self.at, self.text[self.at : end])
        self.at = end + 1
        body = self.body(end) if self.text[end] == "{" else None
        variables = [
            tuple(self.variable(start, text) for text in split_operands(inside or "")) for inside in (results, params)
        ]
        return Function(self.line(start), entry, name, *variables, directives, body)

    def directives(self, start: int, text: str) -> dict[str, tuple[int, ...]]:
        """`.maxntid 128, 1, 1` and its like."""
        found = {}
        for part in re.findall(r"\.[^.]+", text):
            match = re.match(r"\.(\w+)\s*([\d,\s]*)\Z", part)
            if not match:
                raise self.refuse(start, part, "a directive of a function that is not known")
            found[match.group(1)] = tuple(int(number) for number in match.group(2).split(",") if number.strip())
        return found

    def variable(self, start: int, text: str) -> Variable:
        found = _VARIABLE.match(text)
        if not found:
            raise self.refuse(start, text, "a declaration that is not known")
        count = int((found["vector"] or "v1")[1:])
        for size in re.findall(r"\[(\d*)\]", found["dims"]):
            count *= int(size or 0)
        initial = found["initial"]
        items = None
        if initial is not None:
            items = tuple(self.operand(start, part) for part in split_operands(initial.strip().strip("{}")))
        natural = int(found["type"][1:]) // 8 * (count if found["vector"] else 1)
        align = int(found["align"] or natural)
        external = "extern" in found["link"]
        return Variable(self.line(start), found["space"], found["name"], found["type"], count, align, external, items)

    # ---- function bodies -----------------------------------------------------------------------------------------
    def body(self, start: int) -> Block:
        """The statements up to the brace that closes the one at `start`."""
        open_blocks: list[tuple[int, list[Node]]] = [(start, [])]
        pending: re.Match[str] | None = None  # a label that may name a .branchtargets
        while True:
            found = self.take(_PIECE)
            if found is None or not found.lastgroup:
                raise self.refuse(start, self.text[start : start + 60], "a body without an end")
            kind, at, statements = found.lastgroup, found.start(found.lastgroup), open_blocks[-1][1]
            if pending and not (kind == "text" and found["text"].startswith(LABELLED)):
                statements.append(Label(self.line(pending.start("label")), pending["label"]))
                pending = None
            if kind == "text":
                statement = self.statement(at, found["text"].strip(), pending and pending["label"])
                pending = None
                if statement:
                    statements.append(statement)
            elif kind == "loc":
                statements.append(self.loc(at, found["loc"]))
            elif kind == "label":
                pending = found
            elif found["brace"] == "{":
                open_blocks.append((at, []))
            else:
                opened, statements = open_blocks.pop()
                block = Block(self.line(opened), tuple(statements))
                if not open_blocks:
                    return block
                open_blocks[-1][1].append(block)

    def loc(self, at: int, text: str) -> Loc:
        found = _LOC.match(text)
        if not found:
            raise self.refuse(at, ".loc" + text, "a .loc that is not known")
        file, line, column, *inlined = found.groups()
        return Loc(int(file), int(line), int(column), tuple(map(int, inlined)) if inlined[0] else None)

    def statement(self, at: int, text: str, label: str | None) -> Node | None:
        if not text.startswith("."):
            return self.instruction(at, text)
        if label is not None:
            return self.labelled(at, text, label)
        if text.startswith(".reg"):
            return self.registers(at, text)
        if text.startswith(".pragma"):
            return None
        return self.variable(at, text)

    def labelled(self, at: int, text: str, label: str) -> Node:
        kind, _, rest = text.partition(" ")
        if kind in (".branchtargets", ".calltargets"):
            return Targets(self.line(at), label, tuple(name.strip() for name in rest.split(",")))
        found = re.match(r"\.callprototype\s*(?:\(([^)]*)\))?\s*_\s*(?:\(([^)]*)\))?\s*\Z", text)
        if not found:
            raise self.refuse(at, text, "a labelled directive that is not known")
        lists = [tuple(self.variable(at, item) for item in split_operands(inside or "")) for inside in found.groups()]
        return Prototype(self.line(at), label, *lists)

    def registers(self, at: int, text: str) -> Registers:
        found = re.match(r"\.reg\s+\.(\w+)\s+(.*)\Z", text, re.S)
        names = []
        for item in found.group(2).split(",") if found else ():
            declared = re.match(r"\s*([\w$%]+)(?:<(\d+)>)?\s*\Z", item)
            if not declared:
                raise self.refuse(at, text, "a register declaration that is not known")
            names.append((declared.group(1), int(declared.group(2)) if declared.group(2) else None))
        if not names:
            raise self.refuse(at, text, "a register declaration that is not known")
        return Registers(self.line(at), found.group(1), tuple(names))

    def instruction(self, at: int, text: str) -> Instruction:
        found = _INSTRUCTION.match(text)
        if not found:
            raise self.refuse(at, text, "not an instruction")
        negated, guard, opcode, rest = found.groups()
        predicate = None if guard is None else Not(Name(guard)) if negated else Name(guard)
        operands = tuple(self.operand(at, part) for part in split_operands(rest)) if rest else ()
        return Instruction(self.line(at), text, predicate, opcode, operands)

    def operand(self, at: int, text: str) -> Operand:
        operand = parse_operand(text)
        if operand is None:
            raise self.refuse(at, text, "an operand that is not known")
        return operand


def split_operands(text: str) -> list[str]:
    """The parts between the commas that stand outside of all brackets."""
    if not any(bracket in text for bracket in "{[("):
        return [part.strip() for part in text.split(",")] if text.strip() else []
    parts, depth, start = [], 0, 0
    for found in re.finditer(r"[{}\[\](),]", text):
        character = found.group()
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : found.start()].strip())
            start = found.end()
    return [*parts, text[start:].strip()]


@cache
def parse_operand(text: str) -> Operand | None:
    """One operand, or None for what is none."""
    if _WORD.match(text):
        return Name(text)
    if _INTEGER.match(text):
        return Integer(_integer(text))
    if text[:1] == "!" and _WORD.match(text[1:].strip()):
        return Not(Name(text[1:].strip()))
    if text[:1] == "[" and text[-1:] == "]":
        return _address(text[1:-1].strip())
    if text[:1] == "{" and text[-1:] == "}":
        return _sequence(Vector, text)
    if text[:1] == "(" and text[-1:] == ")":
        return _sequence(Group, text)
    if found := _SUM.match(text):
        return Sum(Name(found.group(1)), _integer(found.group(2)))
    if _BITS.match(text):
        return Float(int(text[2:], 16), 32 if text[1] in "fF" else 64)
    if _DECIMAL.match(text):
        return Float(_double_bits(float(text)), 64)
    first, bar, second = (part.strip() for part in text.partition("|"))
    if bar and _WORD.match(first) and _WORD.match(second):
        return Pair(Name(first), Name(second))
    if found := re.match(rf"generic\(({WORD})\)(?:\+({INTEGER}))?\Z", text):
        return Group((Sum(Name(found.group(1)), _integer(found.group(2) or "0")),))
    return None


def _sequence(kind: type[Vector] | type[Group], text: str) -> Vector | Group | None:
    items = [parse_operand(part) for part in split_operands(text[1:-1])]
    return None if None in items else kind(tuple(items))


def _address(text: str) -> Address | None:
    base_text, *more = split_operands(text)
    coordinates = parse_operand(more[0]) if more else None
    base = parse_operand(base_text)
    if len(more) > 1 or (more and coordinates is None):
        return None
    if isinstance(base, Sum):
        return Address(base.base, base.offset, coordinates)
    if isinstance(base, Name | Integer):
        return Address(base, 0, coordinates)
    return None


def _integer(text: str) -> int:
    digits = text.rstrip("U")
    unsigned = digits.lstrip("+-")
    octal = len(unsigned) > 1 and unsigned[0] == "0" and unsigned.isdigit()
    value = int(unsigned, 8 if octal else 0)
    return -value if digits.startswith("-") else value


def _double_bits(value: float) -> int:
    from struct import pack, unpack

    return unpack("<Q", pack("<d", value))[0]
