"""The definition of every function, in NumPy alone: whole score matrices in float64, no tiles and no tricks.

The backends are tested against these functions, share no code with them, and follow the same papers. `dtype` chooses
the arithmetic: float64 is the reference for 16-bit types and float32, longdouble for float64; the input's own dtype is
the step-by-step evaluation that errors are measured against (sums of 16-bit values are accumulated in float32).

`options` are the semantic ones of `cuflash.attention`, with the same meaning and defaults: `causal`, `window`, `mask`,
`bias`, `scale`, `softcap`, `q_offset`, `kv_lengths`. Operands are taken as they are: the public functions check theirs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cuflash.errors import ProblemError

__all__ = ["Gradients", "attention", "attention_backward", "attention_weights", "decode", "merge", "rotary"]

Array = Any  # an array, or what NumPy makes one of


class Gradients(NamedTuple):
    """Gradients in the shapes of their operands; None for what was not given."""

    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    dbias: np.ndarray | None
    dsinks: np.ndarray | None


def attention(
    q: Array, k: Array, v: Array, /, *, sinks: Array = None, layout: str = "bhld", return_lse: bool = False,
    dtype: Any = np.float64, **options: Any,
) -> Any:  # fmt: skip
    """Scaled dot-product attention, ``softmax(scale * q @ k.T + bias) @ v`` per head.

    Parameters
    ----------
    q, k, v : arrays, (..., hq, lq, d), (..., hk, lk, d), (..., hk, lk, dv)
        `hk` divides `hq`; leading axes broadcast; 2-D arrays are one head.
    sinks : array, (hq,), optional
        Logits that join the denominator and carry no value.
    layout, return_lse, dtype, **options
        See the head of this module.

    Returns
    -------
    out : array, (..., hq, lq, dv)
        Zero where a query sees no key.
    lse : array, (..., hq, lq), with `return_lse`
        Natural log-sum-exp of the final scores; -inf where a query sees neither key nor sink.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017; softcap: Gemma Team, "Gemma 2", 2024; sinks: OpenAI, "gpt-oss",
    2025, after Xiao et al., "Efficient streaming language models with attention sinks", 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import reference
    >>> q, k, v = np.zeros((1, 4)), np.zeros((2, 4)), np.array([[1.0], [3.0]])
    >>> reference.attention(q, k, v)
    array([[2.]])
    """
    q4, k4, v4 = _operands(q, k, v, layout, dtype, options.get("kv_lengths"))
    weights, lse = _softmax(_scores(q4, k4, **options)[0], sinks)
    out = _like_operand(_matmul(weights, v4), q, layout)
    return (out, lse[0, :, 0] if np.ndim(q) == 2 else lse[..., 0]) if return_lse else out


def attention_weights(
    q: Array, k: Array, /, *, sinks: Array = None, layout: str = "bhld", dtype: Any = np.float64, **options: Any
) -> Any:
    """The softmax itself: how much each query takes from each key.

    Parameters
    ----------
    q, k : arrays, (..., hq, lq, d), (..., hk, lk, d)
    sinks, layout, dtype, **options
        As for `attention`.

    Returns
    -------
    weights : array, (..., hq, lq, lk)
        A row sums to 1, to less with sinks, and to 0 where a query sees no key.

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import reference
    >>> x = np.zeros((2, 4))
    >>> reference.attention_weights(x, x, causal=True)
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    q4, k4, _ = _operands(q, k, k, layout, dtype, options.get("kv_lengths"))
    weights, _ = _softmax(_scores(q4, k4, **options)[0], sinks)
    return weights[0] if np.ndim(q) == 2 else weights


def attention_backward(
    dout: Array, q: Array, k: Array, v: Array, /, *, dlse: Array = None, sinks: Array = None, layout: str = "bhld",
    dtype: Any = np.float64, **options: Any,
) -> Gradients:  # fmt: skip
    """Gradients of ``sum(dout * out) + sum(dlse * lse)``; `out` and `lse` are computed again.

    Dao et al., "FlashAttention", 2022, appendix B: with P = exp(S - lse) and delta = sum(dout * out) for each query,
    ``dV = P.T dO``, ``dP = dO V.T``, ``dS = P * (dP - delta + dlse)``; a sink is a key without a value.

    Parameters
    ----------
    dout : array, (..., hq, lq, dv)
    dlse : array, (..., hq, lq), optional
        What arrives at `out` and `lse`.
    q, k, v, sinks, layout, dtype, **options
        As for `attention`.

    Returns
    -------
    Gradients
        ``(dq, dk, dv, dbias, dsinks)``, summed over broadcast axes and over the query heads of a group.

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import reference
    >>> q, k, v = np.ones((1, 1)), np.zeros((2, 1)), np.array([[1.0], [3.0]])
    >>> reference.attention_backward(np.ones((1, 1)), q, k, v).dk
    array([[-0.5],
           [ 0.5]])
    """
    q4, k4, v4 = _operands(q, k, v, layout, dtype, options.get("kv_lengths"))
    scores, slope = _scores(q4, k4, **options)
    softmax, lse = _softmax(scores, sinks)
    lse = np.where(np.isneginf(lse), np.inf, lse).astype(lse.dtype)  # what saw nothing has weights 0
    weights = np.exp(scores - lse).astype(dtype)
    dout4 = _heads_first(dout, layout).astype(dtype)
    delta = _sum(dout4 * _matmul(softmax, v4), axis=-1)
    dlse4 = np.zeros_like(delta) if dlse is None else np.asarray(dlse).astype(dtype).reshape(delta.shape)
    dscores = weights * (_matmul(dout4, v4.swapaxes(-1, -2)) - delta + dlse4)
    dproducts, dsinks = dscores * slope, None
    if sinks is not None:
        sink_weights = np.exp(np.asarray(sinks).astype(lse.dtype)[:, None, None] - lse).astype(dtype)
        dsinks = _sum_to(_sum(sink_weights * (dlse4 - delta), axis=-2)[..., 0, 0], np.shape(sinks))
    bias = options.get("bias")
    return Gradients(
        dq=_gradient(_matmul(dproducts, k4), q, layout),
        dk=_gradient(_matmul(dproducts.swapaxes(-1, -2), q4), k, layout),
        dv=_gradient(_matmul(weights.swapaxes(-1, -2), dout4), v, layout),
        dbias=None if bias is None or hasattr(bias, "slopes") else _sum_to(dscores, np.shape(bias)),
        dsinks=dsinks,
    )


def merge(outs: Array, lses: Array, /, *, axis: int = 0, dtype: Any = np.float64) -> tuple[Any, Any]:
    """Attention over the union of disjoint sets of keys, from the results over each.

    ``lse = log(sum_i exp(lse_i))`` and ``out = sum_i exp(lse_i - lse) out_i`` (Milakov and Gimelshein, "Online
    normalizer calculation for softmax", 2018). A part that saw no key has lse -inf and counts for nothing.

    Parameters
    ----------
    outs, lses : arrays, (parts, ..., h, l, dv) and (parts, ..., h, l), or sequences of arrays
    axis : int
        Where stacked parts are; a negative one counts from the last axis of `lses`.

    Returns
    -------
    out, lse : arrays, (..., h, l, dv) and (..., h, l)

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import reference
    >>> reference.merge([np.array([[1.0]]), np.array([[3.0]])], [np.zeros(1), np.zeros(1)])
    (array([[2.]]), array([0.69314718]))
    """
    lses = np.asarray(lses).astype(_accumulator(dtype))
    outs = np.moveaxis(np.asarray(outs).astype(lses.dtype), axis % lses.ndim, 0)
    lses = np.moveaxis(lses, axis, 0)
    top = lses.max(axis=0)
    top = np.where(np.isfinite(top), top, 0)  # -inf where no part saw anything
    weights = np.exp(lses - top)
    total = weights.sum(axis=0)
    seen = total > 0
    total_or_one = np.where(seen, total, 1)
    out = sum(w[..., None] * part for w, part in zip(weights, outs, strict=True)) / total_or_one[..., None]
    return out.astype(dtype), np.where(seen, top + np.log(total_or_one), -np.inf)


def rotary(
    x: Array, positions: Array, /, *, layout: str = "bhld", dim: int | None = None, base: float = 10000.0,
    freqs: Array = None, interleaved: bool = False, dtype: Any = np.float64,
) -> Any:  # fmt: skip
    """Rotate pairs of features by angles that grow with the position (Su et al., "RoFormer", 2021).

    Parameters
    ----------
    x : array, (..., h, l, d)
    positions : array, broadcastable to (..., l)
        No axis for the heads.
    dim : int, optional
        How many features, from the first, are rotated; even; all by default.
    base : float
        Pair i turns by ``base**(-2 * i / dim)`` radians per position.
    freqs : array, (dim / 2,), optional
        Radians per position of each pair, in place of `base`.
    interleaved : bool
        Pairs are (2 i, 2 i + 1) as in the paper; else (i, i + dim / 2) as in GPT-NeoX.

    Returns
    -------
    array, the shape of `x`

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import reference
    >>> reference.rotary(np.array([[1.0, 0.0]]), np.array([np.pi / 2])).round(6)
    array([[0., 1.]])
    """
    out = _heads_first(x, layout).astype(dtype)
    dim = out.shape[-1] if dim is None else dim
    if freqs is None:
        freqs = np.asarray(base, dtype) ** (-np.arange(0, dim, 2, dtype=dtype) / dim)
    angle = np.atleast_1d(positions).astype(dtype)[..., None, :, None] * np.asarray(freqs).astype(dtype)
    pairs = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(0, dim // 2), slice(dim // 2, dim))
    first, second = (out[..., pair].copy() for pair in pairs)
    out[..., pairs[0]] = first * np.cos(angle) - second * np.sin(angle)
    out[..., pairs[1]] = first * np.sin(angle) + second * np.cos(angle)
    return _like_operand(out, x, layout)


def decode(
    q: Array, cache: Any, /, *, seqs: Any = None, causal: bool = True, bias: Any = None, layout: str = "bhld",
    return_lse: bool = False, dtype: Any = np.float64, **options: Any,
) -> Any:  # fmt: skip
    """Attention of the newest tokens of each sequence over its keys and values in a cache, sequence by sequence.

    Parameters
    ----------
    q : array, (b, hq, lq, d), or (b, hq, d) for one token
        Query i of a sequence stands at position ``length - lq + i``; at a negative one it sees nothing.
    cache : object with `k` (batch, capacity, hk, d), `v` (batch, capacity, hk, dv) and `lengths` (batch,)
    seqs : sequence of int, optional
        Row i of `q` belongs to row ``seqs[i]`` of the cache; by default to row i.
    bias : array or Alibi, optional
        Broadcastable to (b, hq, lq, n), keys by absolute position, n either 1 or at least the longest length.
    causal, layout, return_lse, dtype, **options
        As for `attention`; of the options `window`, `sinks`, `softcap` and `scale`.

    Returns
    -------
    out, lse : arrays, the rank and layout of `q`, and (b, hq, lq) or (b, hq)

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import KVCache, reference
    >>> cache = KVCache(1, 4, 1, 2, dtype=np.float64)
    >>> cache.append(np.zeros((1, 1, 2, 2)), np.array([[[[1.0, 1.0], [3.0, 3.0]]]]))
    >>> reference.decode(np.zeros((1, 1, 2)), cache)
    array([[[2., 2.]]])
    """
    one_token = np.ndim(q) == 3
    q4 = np.asarray(q)[:, :, None] if one_token else _heads_first(q, layout)
    b, hq, lq, _ = q4.shape
    if bias is not None and not hasattr(bias, "slopes"):
        bias = np.broadcast_to(bias, (b, hq, lq, *np.shape(np.atleast_1d(bias))[-1:]))
    out = np.zeros((b, hq, lq, cache.v.shape[-1]), dtype)
    lse = np.zeros((b, hq, lq), _accumulator(dtype))
    for i, row in enumerate(range(b) if seqs is None else seqs):
        length = int(cache.lengths[row])
        k, v = (np.swapaxes(x[row, :length], 0, 1) for x in (cache.k, cache.v))
        exists = length - lq + np.arange(lq)[:, None] >= 0
        row_bias = bias[i, ..., :length] if isinstance(bias, np.ndarray) else bias
        own = {"causal": causal, "mask": exists, "bias": row_bias, "q_offset": length - lq, "dtype": dtype}
        out[i], lse[i] = attention(q4[i], k, v, return_lse=True, **own, **options)
    out, lse = (out[:, :, 0], lse[:, :, 0]) if one_token else (_heads_first(out, layout), lse)
    return (out, lse) if return_lse else out


def _scores(
    q: Array, k: Array, *, causal: bool = False, window: Any = None, mask: Any = None, bias: Any = None,
    scale: float | None = None, softcap: float | None = None, q_offset: Any = None, kv_lengths: Any = None,
) -> tuple[Array, Array]:  # fmt: skip
    """The final scores S (..., hq, lq, lk), -inf where hidden, and their derivative by q @ k.T."""
    dtype, lq, lk = q.dtype, q.shape[-2], k.shape[-2]
    q_idx = np.arange(lq)[:, None] + _per_batch(lk - lq if q_offset is None else q_offset)
    kv_idx = np.arange(lk)
    wide = _accumulator(dtype).type
    slope = dtype.type(1 / np.sqrt(wide(max(q.shape[-1], 1))) if scale is None else scale)
    scores = slope * _matmul(q, k.swapaxes(-1, -2))
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
        left, right = (np.inf if side is None else side for side in sides)
        visible &= (kv_idx >= q_idx - left) & (kv_idx <= q_idx + right)
    if mask is not None:
        visible = visible & (mask.visible(q_idx, kv_idx) if hasattr(mask, "visible") else np.asarray(mask))
    if kv_lengths is not None:
        visible = visible & (kv_idx < _per_batch(kv_lengths))
    return visible


def _softmax(scores: Array, sinks: Array) -> tuple[Array, Array]:
    """The softmax over the last axis, the sink being one more column: weights of the keys, log-sum-exp (..., 1)."""
    sink = np.full_like(scores, -np.inf, shape=(*scores.shape[:-1], 1))
    if sinks is not None:
        sink[:] = np.asarray(sinks)[:, None, None]
    scores = np.concatenate([scores, sink], axis=-1)
    top = scores.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, top.dtype.type(0))  # -inf where nothing is visible
    weights = np.exp(scores - top)
    total = _sum(weights, axis=-1, rounded=False)
    seen = total > 0
    total = np.where(seen, total, total.dtype.type(1))
    weights = weights / total.astype(scores.dtype)
    lse = np.where(seen, top.astype(total.dtype) + np.log(total), total.dtype.type(-np.inf))
    return weights[..., :-1], lse


def _per_batch(numbers: Any) -> Array:
    """Numbers that broadcast to the batch axes, ready to broadcast with (..., h, lq, lk)."""
    return np.asarray(numbers)[..., None, None, None]


def _operands(q: Array, k: Array, v: Array, layout: str, dtype: Any, kv_lengths: Any) -> list[Array]:
    """All as (..., hq, l, d): batch axes broadcast, heads repeated, zeros behind the real keys and values."""
    arrays = [_heads_first(x, layout).astype(dtype) for x in (q, k, v)]
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in arrays))
    hq, hk = (x.shape[-3] for x in arrays[:2])
    if hq != hk and (hk == 0 or hq % hk):
        raise ProblemError(f"reference: `k` has hk={hk} heads, which does not divide the hq={hq} heads of `q`")
    arrays[1:] = [np.repeat(x, hq // max(hk, 1), axis=-3) for x in arrays[1:]]
    if kv_lengths is not None:
        real = np.arange(arrays[1].shape[-2])[:, None] < _per_batch(kv_lengths)
        arrays[1:] = [np.where(real, x, x.dtype.type(0)) for x in arrays[1:]]
    return [np.broadcast_to(x, batch + x.shape[-3:]) for x in arrays]


def _heads_first(x: Array, layout: str) -> Array:
    """(..., h, l, d) from either layout; a matrix is one head."""
    x = np.asarray(x)
    return x[None] if x.ndim == 2 else x.swapaxes(-3, -2) if layout == "blhd" else x


def _like_operand(x: Array, operand: Array, layout: str) -> Array:
    """The inverse of `_heads_first`."""
    return x[0] if np.ndim(operand) == 2 else _heads_first(x, layout)


def _gradient(dx: Array, operand: Array, layout: str) -> Array:
    """The gradient of a repeated, broadcast operand in the operand's own shape."""
    heads, shape = _heads_first(operand, layout).shape[-3], dx.shape
    dx = dx.reshape(*shape[:-3], heads, shape[-3] // max(heads, 1), *shape[-2:])
    dx = _like_operand(_sum(dx, axis=-3)[..., 0, :, :], operand, layout)
    return _sum_to(dx, np.shape(operand))


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the axes along which something of `shape` was broadcast to the shape of `x`."""
    padded = (1,) * (x.ndim - len(shape)) + tuple(shape)
    return _sum(x, axis=tuple(i for i, n in enumerate(padded) if n == 1)).reshape(shape)


def _sum(x: Array, axis: Any, rounded: bool = True) -> Array:
    """The sum over kept axes; of 16-bit numbers in float32, rounded once if at all."""
    total = x.sum(axis=axis, keepdims=True, dtype=_accumulator(x.dtype))
    return total.astype(x.dtype) if rounded else total


def _matmul(a: Array, b: Array) -> Array:
    """The matrix product; of 16-bit numbers in float32, rounded once."""
    wide = _accumulator(a.dtype)
    return np.matmul(a.astype(wide), b.astype(wide)).astype(a.dtype)


def _accumulator(dtype: Any) -> Any:
    """The dtype in which sums are formed."""
    return np.dtype(np.float32 if np.dtype(dtype).itemsize == 2 else dtype)
