"""The steps that the definitions share: scores, softmax, heads and batches written out, sums in the right dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash.errors import ProblemError

Array = Any  # an array, or what NumPy makes one of


def final_scores(
    q: Array, k: Array, *, causal: bool = False, window: Any = None, mask: Any = None, bias: Any = None,
    scale: float | None = None, softcap: float | None = None, q_offset: Any = None, kv_lengths: Any = None,
) -> tuple[Array, Array]:  # fmt: skip
    """The final scores S (..., hq, lq, lk), -inf where hidden, and their derivative by q @ k.T."""
    dtype, lq, lk = q.dtype, q.shape[-2], k.shape[-2]
    q_idx = np.arange(lq)[:, None] + _per_batch(lk - lq if q_offset is None else q_offset)
    kv_idx = np.arange(lk)
    wide = accumulator(dtype).type
    slope = dtype.type(1 / np.sqrt(wide(max(q.shape[-1], 1))) if scale is None else scale)
    scores = slope * matmul(q, k.swapaxes(-1, -2))
    if softcap is not None:
        bent = np.tanh(scores / dtype.type(softcap))
        scores, slope = dtype.type(softcap) * bent, slope * (1 - bent * bent)
    if hasattr(bias, "slopes"):
        scores = scores - np.asarray(bias.slopes).astype(dtype)[:, None, None] * np.abs(q_idx - kv_idx).astype(dtype)
    elif bias is not None:
        scores = scores + np.asarray(bias).astype(dtype)
    visible = _visible(q_idx, kv_idx, causal, window, mask, kv_lengths)
    return np.where(visible, scores, dtype.type(-np.inf)), slope


def _visible(q_idx: Array, kv_idx: Array, causal: bool, window: Any, mask: Any, kv_lengths: Any) -> Array:
    """Which query sees which key: the positions of the queries are (..., 1, lq, 1), those of the keys (lk,)."""
    visible = np.ones(np.broadcast_shapes(q_idx.shape, kv_idx.shape), bool)
    if causal:
        visible &= kv_idx <= q_idx
    if window is not None:
        sides = window if isinstance(window, tuple | list) else (window, window)
        left, right = (np.inf if side is None else float(side) for side in sides)
        visible &= (kv_idx >= q_idx - left) & (kv_idx <= q_idx + right)
    if mask is not None:
        visible = visible & (mask.visible(q_idx, kv_idx) if hasattr(mask, "visible") else np.asarray(mask))
    if kv_lengths is not None:
        visible = visible & (kv_idx < _per_batch(kv_lengths))
    return visible


def softmax(scores: Array, sinks: Array) -> tuple[Array, Array]:
    """The softmax over the last axis, the sink being one more column: weights of the keys, log-sum-exp (..., 1)."""
    sink = np.full_like(scores, -np.inf, shape=(*scores.shape[:-1], 1))
    if sinks is not None:
        sink[:] = np.asarray(sinks)[:, None, None]
    scores = np.concatenate([scores, sink], axis=-1)
    top = scores.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, top.dtype.type(0))  # -inf where nothing is visible
    weights = np.exp(scores - top)
    total = sum_over(weights, axis=-1, rounded=False)
    seen = total > 0
    total = np.where(seen, total, total.dtype.type(1))
    weights = weights / total.astype(scores.dtype)
    lse = np.where(seen, top.astype(total.dtype) + np.log(total), total.dtype.type(-np.inf))
    return weights[..., :-1], lse


def _per_batch(numbers: Any) -> Array:
    """Numbers that broadcast to the batch axes, ready to broadcast with (..., h, lq, lk)."""
    return np.asarray(numbers)[..., None, None, None]


def as_operands(q: Array, k: Array, v: Array, layout: str, dtype: Any, kv_lengths: Any) -> list[Array]:
    """All as (..., hq, l, d): batch axes broadcast, heads repeated, zeros behind the real keys and values."""
    arrays = [heads_first(x, layout).astype(dtype) for x in (q, k, v)]
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in arrays))
    hq, hk = (x.shape[-3] for x in arrays[:2])
    if hq != hk and (hk == 0 or hq % hk):
        raise ProblemError(f"reference: `k` has hk={hk} heads, which does not divide the hq={hq} heads of `q`")
    arrays[1:] = [np.repeat(x, hq // max(hk, 1), axis=-3) for x in arrays[1:]]
    if kv_lengths is not None:
        real = np.arange(arrays[1].shape[-2])[:, None] < _per_batch(kv_lengths)
        arrays[1:] = [np.where(real, x, x.dtype.type(0)) for x in arrays[1:]]
    return [np.broadcast_to(x, batch + x.shape[-3:]) for x in arrays]


def heads_first(x: Array, layout: str) -> Array:
    """(..., h, l, d) from either layout; a matrix is one head."""
    x = np.asarray(x)
    return x[None] if x.ndim == 2 else x.swapaxes(-3, -2) if layout == "blhd" else x


def like_operand(x: Array, operand: Array, layout: str) -> Array:
    """The inverse of `heads_first`."""
    return x[0] if np.ndim(operand) == 2 else heads_first(x, layout)


def gradient_of(dx: Array, operand: Array, layout: str) -> Array:
    """The gradient of a repeated, broadcast operand in the operand's own shape."""
    heads, shape = heads_first(operand, layout).shape[-3], dx.shape
    dx = dx.reshape(*shape[:-3], heads, shape[-3] // max(heads, 1), *shape[-2:])
    dx = like_operand(sum_over(dx, axis=-3)[..., 0, :, :], operand, layout)
    return sum_to(dx, np.shape(operand))


def sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the axes along which something of `shape` was broadcast to the shape of `x`."""
    padded = (1,) * (x.ndim - len(shape)) + tuple(shape)
    return sum_over(x, axis=tuple(i for i, n in enumerate(padded) if n == 1)).reshape(shape)


def sum_over(x: Array, axis: Any, rounded: bool = True) -> Array:
    """The sum over kept axes; of 16-bit numbers in float32, rounded once if at all."""
    total = x.sum(axis=axis, keepdims=True, dtype=accumulator(x.dtype))
    return total.astype(x.dtype) if rounded else total


def matmul(a: Array, b: Array) -> Array:
    """The matrix product; of 16-bit numbers in float32, rounded once."""
    wide = accumulator(a.dtype)
    return np.matmul(a.astype(wide), b.astype(wide)).astype(a.dtype)


def accumulator(dtype: Any) -> Any:
    """The dtype in which sums are formed."""
    return np.dtype(np.float32 if np.dtype(dtype).itemsize == 2 else dtype)
