"""Attention, its weights and its gradients, from whole score matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cuflash.reference._steps import (
    as_operands,
    final_scores,
    gradient_of,
    heads_first,
    like_operand,
    matmul,
    softmax,
    sum_over,
    sum_to,
)

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
        See :mod:`cuflash.reference`.

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
    q4, k4, v4 = as_operands(q, k, v, layout, dtype, options.get("kv_lengths"))
    weights, lse = softmax(final_scores(q4, k4, **options)[0], sinks)
    out = like_operand(matmul(weights, v4), q, layout)
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
    q4, k4, _ = as_operands(q, k, k, layout, dtype, options.get("kv_lengths"))
    weights, _ = softmax(final_scores(q4, k4, **options)[0], sinks)
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
    q4, k4, v4 = as_operands(q, k, v, layout, dtype, options.get("kv_lengths"))
    scores, slope = final_scores(q4, k4, **options)
    shares, lse = softmax(scores, sinks)
    lse = np.where(np.isneginf(lse), np.inf, lse).astype(lse.dtype)  # what saw nothing has weights 0
    weights = np.exp(scores - lse).astype(dtype)
    dout4 = heads_first(dout, layout).astype(dtype)
    delta = sum_over(dout4 * matmul(shares, v4), axis=-1)
    dlse4 = np.zeros_like(delta) if dlse is None else np.asarray(dlse).astype(dtype).reshape(delta.shape)
    dscores = weights * (matmul(dout4, v4.swapaxes(-1, -2)) - delta + dlse4)
    dproducts, dsinks = dscores * slope, None
    if sinks is not None:
        sink_weights = np.exp(np.asarray(sinks).astype(lse.dtype)[:, None, None] - lse).astype(dtype)
        dsinks = sum_to(sum_over(sink_weights * (dlse4 - delta), axis=-2)[..., 0, 0], np.shape(sinks))
    bias = options.get("bias")
    return Gradients(
        dq=gradient_of(matmul(dproducts, k4), q, layout),
        dk=gradient_of(matmul(dproducts.swapaxes(-1, -2), q4), k, layout),
        dv=gradient_of(matmul(weights.swapaxes(-1, -2), dout4), v, layout),
        dbias=None if bias is None or hasattr(bias, "slopes") else sum_to(dscores, np.shape(bias)),
        dsinks=dsinks,
    )
