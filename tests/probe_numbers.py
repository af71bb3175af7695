"""Numbers for the probes, made by exact operations alone so that every machine makes the same, and arithmetic on them
as it is defined: sums of products that are rounded once, and conversions to nearest even.
"""

from fractions import Fraction

import numpy as np


def common(rng, shape, exponents=(0, 1)):
    """Between -2 and 2, times a power of two with an exponent from a range."""
    return np.ldexp(4 * rng.random(shape) - 2, rng.integers(*exponents, shape))


def any_bits(rng, dtype, count):
    """Numbers of every kind: random bits, common ones, and those at the edges."""
    size = np.dtype(dtype).itemsize
    info = np.finfo(dtype)
    edges = [0.0, 1.0, 1.5, 2.5, np.inf, np.nan, info.max, info.tiny, info.smallest_subnormal, info.eps]
    numbers = rng.integers(0, 2 ** (8 * size), count, dtype=f"u{size}", endpoint=False).view(dtype)
    numbers[: count // 2] = common(rng, count // 2, (-20, 20))
    numbers[: 2 * len(edges)] = np.array([edges, np.negative(edges)], dtype).ravel()
    return numbers


def fused(a, b, c):
    """a * b + c, rounded once."""
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    one = _fused32 if a.dtype == np.float32 else _fused64
    infinite = np.where(np.isfinite(a) & np.isfinite(b), c, a * b + c)
    return np.where(finite, one(*(np.where(finite, x, 0) for x in (a, b, c))), infinite)


def _fused32(a, b, c):
    """In float64 the product is exact; the sum is rounded to odd there, so that rounding it again does no harm."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    lost = (product - (total - (total - product))) + (c - (total - product))
    even = total.view(np.int64) % 2 == 0
    towards = np.copysign(np.inf, lost)
    return np.where((lost != 0) & even, np.nextafter(total, towards), total).astype(np.float32)


def _fused64(*operands):
    def one(a, b, c):
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        try:
            return float(exact) if exact else a * b + c  # the sign of a zero
        except OverflowError:
            return np.inf if exact > 0 else -np.inf

    return np.frompyfunc(one, 3, 1)(*operands).astype(np.float64)


def matmul(s, a, b):
    """s + a @ b, product by product in the order of what is summed over, each rounded once."""
    for k in range(a.shape[1]):
        s = fused(*np.broadcast_arrays(a[:, k, None], b[None, k], s))
    return s


def to_bfloat16(numbers):
    """The nearest of the two neighbours among bfloat16 numbers, or the even one; the bits of both NaN are 7FFF."""
    below = numbers.view(np.uint32) >> 16  # towards zero
    sizes = [(bits << 16).astype(np.uint32).view(np.float32).astype(np.float64) for bits in (below, below + 1)]
    sizes = [np.abs(np.where(np.isinf(size), 2.0**128, size)) for size in sizes]
    lower, upper = np.abs(numbers).astype(np.float64) - sizes[0], sizes[1] - np.abs(numbers)
    up = (upper < lower) | ((upper == lower) & (below % 2 == 1))
    bits = np.where(np.isinf(numbers), below, below + up)
    return np.where(np.isnan(numbers), 0x7FFF, bits).astype(np.uint16)


def to_float16(numbers):
    """As NumPy rounds, with the one NaN that a GPU makes."""
    return np.where(np.isnan(numbers), 0x7FFF, numbers.astype(np.float16).view(np.uint16)).astype(np.uint16)


WIDEN = {
    "float16": lambda bits: bits.view(np.float16).astype(np.float32),
    "bfloat16": lambda bits: (bits.astype(np.uint32) << 16).view(np.float32),
}
NARROW = {"float16": to_float16, "bfloat16": to_bfloat16}


def from_float8(codes):
    """The definition: sign, exponent with bias 7, three bits of fraction. The code of NaN counts as 480 here."""
    sign, exponent, fraction = np.where(codes & 0x80, -1.0, 1.0), codes.astype(int) >> 3 & 15, codes & 7
    size = np.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0 ** (exponent - 10))
    return (sign * size).astype(np.float32)


def to_float8(numbers):
    """The nearest code of each number, or the even one of two."""
    sizes = from_float8(np.arange(127, dtype=np.uint8)).astype(np.float64)
    numbers = numbers.astype(np.float64)
    above = np.clip(np.searchsorted(sizes, np.abs(numbers)), 1, 126)
    lower, upper = np.abs(numbers) - sizes[above - 1], sizes[above] - np.abs(numbers)
    nearest = np.where((upper < lower) | ((upper == lower) & (above % 2 == 0)), above, above - 1)
    return (nearest | np.where(np.signbit(numbers), 0x80, 0)).astype(np.uint8)
