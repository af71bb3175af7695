"""cp.async: copies from global to shared memory that land in their wait."""

from __future__ import annotations

from ..forms import form
from ..statement import Register, Statement
from ..tree import Name

HINTS = "[hint:L2::cache_hint] [prefetch:L2::64B|L2::128B|L2::256B]"


@form(f"cp async cop:ca|cg space:shared::cta|shared global {HINTS}")
def copy(statement: Statement) -> str:
    """`[dst], [src], bytes{, bytes of the source | predicate that ignores it}{, policy}`; the rest becomes zero."""
    operands = len(statement.operands) - bool(statement["hint"])
    if operands not in (3, 4):
        raise statement.refuse("operands are missing")
    size = statement.integer(2)
    if size not in ((4, 8, 16) if statement["cop"] == "ca" else (16,)):
        raise statement.refuse(f"{size} bytes cannot be copied")
    taken = source_bytes(statement, size) if operands == 4 else str(size)
    addresses = f"{statement.address(0, 'shared')}, {statement.address(1, 'global')}"
    return f"machine::cp_async({addresses}, {size}, {taken}, {statement.site});"


def source_bytes(statement: Statement, size: int) -> str:
    """The fourth operand: a count of bytes, or a predicate."""
    operand = statement.operands[3]
    binding = statement.function.lookup(operand.text) if isinstance(operand, Name) else None
    if isinstance(binding, Register) and binding.bits == 1:
        return f"{statement.read(3, 'pred')} ? 0 : {size}"
    return statement.read(3, "u32")


@form("cp async commit_group")
def commit(statement: Statement) -> str:
    """What was issued since the last one becomes a group."""
    statement.expect(0)
    return f"machine::cp_async_commit({statement.site});"


@form("cp async wait_group")
def wait(statement: Statement) -> str:
    """Until at most so many groups are under way."""
    statement.expect(1)
    return f"machine::cp_async_wait({statement.integer(0)}u, {statement.site});"


@form("cp async wait_all")
def wait_all(statement: Statement) -> str:
    """Until none is."""
    statement.expect(0)
    return f"machine::cp_async_wait_all({statement.site});"
