"""Floating-point formats as exact fractions: bits to values, values to bits in every rounding mode (IEEE 754)."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import NamedTuple

INF = float("inf")
NAN = "nan"  # of no sign and no payload


class Format(NamedTuple):
    """A binary format: width, precision with the hidden bit, least exponent of normal numbers, canonical NaN.

    `finite`: no infinity, and the largest magnitude's bits all ones are NaN (E4M3).
    """

    bits: int
    precision: int
    least_exponent: int
    nan: int
    finite: bool = False

    @property
    def sign(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def infinity(self) -> int:
        """Bits of +infinity; for E4M3, of its NaN, which the finite numbers end below."""
        if self.finite:
            return self.sign - 1
        return self.sign - (1 << (self.precision - 1))


F16 = Format(16, 11, -14, 0x7FFF)
BF16 = Format(16, 8, -126, 0x7FFF)
F32 = Format(32, 24, -126, 0x7FFFFFFF)
F64 = Format(64, 53, -1022, 0x7FFFFFFFFFFFFFFF)
TF32 = Format(19, 11, -126, 0x3FFFF)  # the upper 19 bits of an f32
E4M3 = Format(8, 4, -6, 0x7F, finite=True)
E5M2 = Format(8, 3, -14, 0x7F)
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64, "e4m3": E4M3, "e5m2": E5M2}


def decode(bits: int, form: Format):
    """A Fraction, or +-INF, or NAN; the sign of zero is lost (see `negative`)."""
    magnitude = bits & (form.sign - 1)
    if magnitude > form.infinity or (form.finite and magnitude == form.infinity):
        return NAN
    sign = -1 if bits & form.sign else 1
    if magnitude == form.infinity:
        return sign * INF
    exponent, fraction = divmod(magnitude, 1 << (form.precision - 1))
    if exponent:
        fraction += 1 << (form.precision - 1)
    scale = max(exponent, 1) - 1 + form.least_exponent - (form.precision - 1)
    return Fraction(sign * fraction) * Fraction(2) ** scale


def negative(bits: int, form: Format) -> bool:
    return bool(bits & form.sign)


def encode(value, form: Format, mode: str = "rn", *, zero: bool = False, finite: bool = False) -> int:
    """Bits of a value rounded to the format; an exact zero is negative if `zero` says so; `finite` is .satfinite."""
    if value is NAN:
        return form.nan
    sign = form.sign if value < 0 or (value == 0 and zero) else 0
    top = form.infinity - 1 if finite or form.finite else form.infinity
    if value in (INF, -INF):
        return sign | top
    magnitude = abs(Fraction(value))
    if magnitude == 0:
        return sign
    exponent = max(_exponent(magnitude), form.least_exponent)
    units = magnitude / Fraction(2) ** (exponent - form.precision + 1)
    whole = floor(units)
    rest = units - whole
    away = {"rm": value < 0, "rp": value > 0}.get(mode, False)
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
        "rna": rest >= Fraction(1, 2),
        "rz": False,
    }.get(mode, away and rest > 0)
    bits = ((exponent - form.least_exponent) << (form.precision - 1)) + whole + up
    if bits < form.infinity:
        return sign | bits
    overflow_to_infinity = mode in ("rn", "rna") or away
    return sign | (top if overflow_to_infinity else form.infinity - 1)


def _exponent(magnitude: Fraction) -> int:
    """floor(log2), exactly."""
    guess = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return guess if magnitude >= Fraction(2) ** guess else guess - 1


def flush(bits: int, form: Format) -> int:
    """.ftz: a subnormal becomes the zero of its sign."""
    magnitude = bits & (form.sign - 1)
    return bits & form.sign if magnitude < 1 << (form.precision - 1) else bits


def signed(value: int, bits: int) -> int:
    """The two's complement number of these bits."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def unsigned(value: int, bits: int) -> int:
    return value & ((1 << bits) - 1)
