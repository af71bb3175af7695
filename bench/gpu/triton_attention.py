"""Attention as one would write it in Triton first: a program owns some queries of a head and walks the keys.

A peer, not a part of cuflash: (b, h, l, d) in C order, as many heads of keys as of queries, l a multiple of 128, d a
power of two.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

ROWS = 128  # queries of a program


@triton.jit
def _attend(q, k, v, out, scale, length, CAUSAL: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, D)
    head = tl.program_id(1).to(tl.int64) * length * D
    queries = tl.load(q + head + rows[:, None] * D + cols[None, :])
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((ROWS, D), tl.float32)
    end = (tl.program_id(0) + 1) * ROWS if CAUSAL else length
    for start in range(0, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        s = scale * tl.dot(queries, tl.load(k + head + keys[None, :] * D + cols[:, None]), input_precision="ieee")
        if CAUSAL:
            s = tl.where(keys[None, :] <= rows[:, None], s, float("-inf"))
        highest = tl.maximum(top, tl.max(s, 1))
        weights = tl.exp2(s - highest[:, None])
        shrink = tl.exp2(top - highest)
        total = total * shrink + tl.sum(weights, 1)
        values = tl.load(v + head + keys[:, None] * D + cols[None, :])
        result = tl.dot(weights.to(values.dtype), values, result * shrink[:, None], input_precision="ieee")
        top = highest
    tl.store(out + head + rows[:, None] * D + cols[None, :], (result / total[:, None]).to(queries.dtype))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v."""
    b, h, length, d = q.shape
    out = torch.empty_like(q)
    keys = 64 if q.element_size() == 2 else 32
    scale = math.log2(math.e) / math.sqrt(d)  # exponents to the base 2
    _attend[(length // ROWS, b * h)](q, k, v, out, scale, length, causal, d, ROWS, keys, num_warps=8, num_stages=2)
    return out
