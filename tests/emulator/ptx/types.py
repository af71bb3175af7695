"""PTX types and registers as C++ sees them.

A register is a union of its width (`prelude/registers.hpp`), and an instruction reads it through the member of its own
type: `.f32` of a 32-bit register, whatever type the register was declared with.
"""

from __future__ import annotations

from struct import pack, unpack
from typing import NamedTuple

# Packed and small formats are bits of their width to C++; what they mean is said by the functions they are passed to.
_BITS_ONLY = {"f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32, "u16x2": 32, "s16x2": 32, "tf32": 32, "f32x2": 64}
_BITS_ONLY |= {"e4m3x2": 16, "e5m2x2": 16}


class Type(NamedTuple):
    """A fundamental type: its width in bits and the C++ type, which is also the member of the register's union."""

    name: str
    bits: int
    cpp: str

    @property
    def floating(self) -> bool:
        return self.cpp in ("f32", "f64")

    @property
    def signed(self) -> bool:
        return self.cpp[0] == "s"


def _types() -> dict[str, Type]:
    types = {"pred": Type("pred", 1, "pred"), "f32": Type("f32", 32, "f32"), "f64": Type("f64", 64, "f64")}
    for bits in (8, 16, 32, 64, 128):
        for letter in "bus":
            name = f"{letter}{bits}"
            types[name] = Type(name, bits, name.replace("b", "u"))
    for name, bits in _BITS_ONLY.items():
        types[name] = Type(name, bits, f"u{bits}")
    return types


TYPES = _types()


def integer_literal(value: int, kind: Type) -> str:
    """An integer constant as a C++ expression of type `kind`: its low bits, as PTX truncates a constant."""
    value &= (1 << kind.bits) - 1
    if kind.signed and value >> (kind.bits - 1):
        value -= 1 << kind.bits
    suffix = {"u32": "u", "u64": "ull", "s64": "ll"}.get(kind.cpp, "")
    if value >= 0:
        return f"{value}{suffix}"
    if value == -(1 << (kind.bits - 1)):  # has no literal: the positive number would not fit
        return f"(-{-value - 1}{suffix} - 1)"
    return f"(-{-value}{suffix})"


def float_literal(bits: int, width: int, kind: Type) -> str:
    """A floating constant as a C++ expression of the floating type `kind`."""
    value = unpack("<f", pack("<I", bits))[0] if width == 32 else unpack("<d", pack("<Q", bits))[0]
    suffix = "f" if kind.cpp == "f32" else ""
    if value != value:
        payload = float_bits(bits, width, kind.bits)
        return f"{kind.cpp}_of(0x{payload:x}{'u' if kind.bits == 32 else 'ull'})"
    if value in (float("inf"), float("-inf")):
        return f"({'-' if value < 0 else ''}__builtin_inf{suffix}())"
    return f"({value.hex()}{suffix})"


def float_bits(bits: int, width: int, wanted: int) -> int:
    """The bits of a floating constant as `wanted` bits wide; a decimal fraction is 64 wide until its use is known."""
    if width == wanted:
        return bits
    if width == 64 and wanted == 32:
        return unpack("<I", pack("<f", unpack("<d", pack("<Q", bits))[0]))[0]
    raise ValueError(f"a {width}-bit constant where {wanted} bits are expected")
