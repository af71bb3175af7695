"""What is timed on a GPU: random operands, the definition in float64 for a part of them, and how far a result is off.

Everything takes the array library `xp`, so that the tests run it on NumPy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = Any
DTYPES = ("float16", "bfloat16", "float32", "float64")
# Relative errors up to which a result is right. PyTorch may compute float32 with TF32 products: that is another result.
BOUNDS = {"float16": 5e-3, "bfloat16": 4e-2, "float32": 1e-5, "float64": 1e-13}
ROWS = 1024  # queries of which the definition keeps the scores at once
WIDTH = 2048  # heads times head dim
TOKENS = 8192  # batch times length


class Problem(NamedTuple):
    """Self-attention, as benchmarks of attention have it: the longer, the fewer sequences."""

    dtype: str
    d: int
    length: int
    causal: bool

    @property
    def name(self) -> str:
        """Short."""
        return f"{self.dtype} d{self.d} l{self.length} {'causal' if self.causal else 'full'}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(b, h, l, d)."""
        return max(1, TOKENS // self.length), WIDTH // self.d, self.length, self.d

    @property
    def operations(self) -> float:
        """Of a forward pass: two for a product and a sum; what causal hides is not counted."""
        b, h, length, d = self.shape
        return 4.0 * b * h * length * length * d / (1 + self.causal)


def normal(xp: Any, seed: int, dtype: str, *shape: int) -> Array:
    """Standard-normal numbers, made on the device."""
    return narrow(xp, xp.random.RandomState(seed).standard_normal(shape).astype(np.float32), dtype)


def narrow(xp: Any, numbers: Array, dtype: str) -> Array:
    """From float32. bfloat16 by hand, rounded to nearest even: not every array library converts to it."""
    if dtype != "bfloat16":
        return numbers.astype(dtype)
    import ml_dtypes

    bits = numbers.view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)


def widen(x: Array) -> Array:
    """To float64."""
    if x.dtype.name == "bfloat16":
        x = (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


def attend(xp: Any, q: Array, k: Array, v: Array, causal: bool) -> tuple[Array, Array]:
    """The definition for one head, (l, d) each: out and lse in float64, some rows at a time."""
    q, k, v = map(widen, (q, k, v))
    out, lse = xp.empty_like(q), xp.empty(len(q))
    for rows in _chunks(len(q)):
        scores = _scores(xp, q, k, rows, causal)
        top = scores.max(axis=-1, keepdims=True)
        weights = xp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out[rows] = weights @ v / total
        lse[rows] = (top + xp.log(total))[:, 0]
    return out, lse


def gradients(xp: Any, dout: Array, q: Array, k: Array, v: Array, causal: bool) -> tuple[Array, Array, Array]:
    """The definition of dq, dk and dv for one head."""
    out, lse = attend(xp, q, k, v, causal)
    dout, q, k, v = map(widen, (dout, q, k, v))
    dq, dk, dv = (xp.zeros_like(x) for x in (q, k, v))
    for rows in _chunks(len(q)):
        p = xp.exp(_scores(xp, q, k, rows, causal) - lse[rows, None])
        dp = dout[rows] @ v.T
        ds = p * (dp - (dout[rows] * out[rows]).sum(axis=-1, keepdims=True)) * q.shape[-1] ** -0.5
        dq[rows] = ds @ k
        dk += ds.T @ q[rows]
        dv += p.T @ dout[rows]
    return dq, dk, dv


def _chunks(rows: int) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, rows, ROWS)]


def _scores(xp: Any, q: Array, k: Array, rows: slice, causal: bool) -> Array:
    scores = q[rows] @ k.T * q.shape[-1] ** -0.5
    if causal:
        hidden = xp.arange(len(k)) > xp.arange(len(q))[rows, None] + len(k) - len(q)
        scores = xp.where(hidden, -np.inf, scores)
    return scores


def error(xp: Any, found: Any, expected: Any) -> float:
    """Distance over the norm of what is expected; of several arrays the greatest, and NaN stays NaN."""
    if isinstance(expected, tuple):
        return float(np.max([error(xp, *pair) for pair in zip(found, expected, strict=True)]))
    if found.shape != expected.shape:
        return float("inf")
    return float(xp.linalg.norm(widen(found) - expected) / xp.linalg.norm(expected))
