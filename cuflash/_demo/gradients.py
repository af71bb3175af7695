"""The loss of a batch and its gradient, written out by hand: what `docs/examples/train_lm.py` descends.

The forward pass is that of `cuflash._demo.model`, but it keeps what the backward pass reads: per layer the two normed
inputs, the heads' output, the hidden activations, and attention's `vjp`. No (l, l) array is ever kept or made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import cuflash
from cuflash._demo.model import Config, Weights, logits, project, rms_norm


class Kept(NamedTuple):
    """What one layer's backward pass needs from its forward pass; n = b * l tokens."""

    x1: np.ndarray  # (n, width) normed input of the attention half
    factor1: np.ndarray  # (n, 1)
    heads: np.ndarray  # (n, hq * d)
    vjp: Callable  # gradient by the heads' output -> Gradients
    x2: np.ndarray  # (n, width) normed input of the MLP half
    factor2: np.ndarray  # (n, 1)
    relu: np.ndarray  # (n, hidden)
    hidden: np.ndarray  # (n, hidden) relu squared


def loss_and_gradients(
    weights: Weights, config: Config, tokens: np.ndarray, targets: np.ndarray
) -> tuple[float, Weights]:
    """Mean negative log-likelihood of a batch, in nats per token, and its gradient by every weight.

    Parameters
    ----------
    weights : dict of arrays
        float32, or float64 to check against finite differences.
    config : Config
    tokens, targets : (b, l) integers
        ``targets[:, i]`` is the token that follows ``tokens[:, i]``.

    Returns
    -------
    loss : float
    gradients : dict of arrays, shaped as `weights`
    """
    b, l = tokens.shape
    table, table_factor = rms_norm(weights["embedding"])
    x = table[tokens.ravel()]
    kept = []
    for layer in range(config.layers):
        x, layer_kept = _layer_forward(weights, config, layer, x, (b, l))
        kept.append(layer_kept)
    states, factor = rms_norm(x)

    loss, dscores = _cross_entropy(logits(weights, states), targets.ravel())
    gradients = {"embedding": dscores.T @ states}
    dx = _rms_norm_backward(dscores @ weights["embedding"], states, factor)
    for layer in reversed(range(config.layers)):
        _layer_backward(weights, config, layer, dx, kept.pop(), gradients, (b, l))

    # The rows of the table that were looked up: a one-hot matrix product is faster than numpy.add.at.
    one_hot = np.zeros((b * l, config.vocabulary), dx.dtype)
    one_hot[np.arange(b * l), tokens.ravel()] = 1
    gradients["embedding"] += _rms_norm_backward(one_hot.T @ dx, table, table_factor)
    return loss, gradients


def _layer_forward(
    weights: Weights, config: Config, layer: int, x: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, Kept]:
    """Return the residual stream after `layer`, updated in place, and what the backward pass needs."""
    x1, factor1 = rms_norm(x)
    q, k, v = project(weights, config, layer, x1.reshape(*shape, -1), 0)
    out, vjp = cuflash.attention_vjp(q, k, v, causal=True, layout="blhd")
    heads = out.reshape(len(x), -1)
    x += heads @ weights[f"{layer}.out"]

    x2, factor2 = rms_norm(x)
    relu = x2 @ weights[f"{layer}.up"]
    np.maximum(relu, 0, out=relu)
    hidden = np.square(relu)
    x += hidden @ weights[f"{layer}.down"]
    return x, Kept(x1, factor1, heads, vjp, x2, factor2, relu, hidden)


def _layer_backward(
    weights: Weights,
    config: Config,
    layer: int,
    dx: np.ndarray,
    kept: Kept,
    gradients: Weights,
    shape: tuple[int, int],
) -> None:
    """Turn the gradient `dx` (n, width) by the layer's output into the one by its input, in place; add the weights'."""
    # x += relu(x2 @ up)**2 @ down
    gradients[f"{layer}.down"] = kept.hidden.T @ dx
    dhidden = np.matmul(dx, weights[f"{layer}.down"].T, out=kept.hidden)
    dhidden *= kept.relu
    dhidden *= 2
    gradients[f"{layer}.up"] = kept.x2.T @ dhidden
    dx += _rms_norm_backward(dhidden @ weights[f"{layer}.up"].T, kept.x2, kept.factor2)

    # x += attend(rotary(q), rotary(k), v) @ out
    gradients[f"{layer}.out"] = kept.heads.T @ dx
    dheads = (dx @ weights[f"{layer}.out"].T).reshape(*shape, config.query_heads, config.head_dim)
    by = kept.vjp(dheads)
    backwards = -np.arange(shape[1])
    dqkv = np.concatenate(
        [cuflash.rotary(by.dq, backwards, layout="blhd"), cuflash.rotary(by.dk, backwards, layout="blhd"), by.dv],
        axis=2,
    ).reshape(len(dx), -1)
    gradients[f"{layer}.qkv"] = kept.x1.T @ dqkv
    dx += _rms_norm_backward(dqkv @ weights[f"{layer}.qkv"].T, kept.x1, kept.factor1)


def _rms_norm_backward(dy: np.ndarray, y: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Gradient by ``x`` of ``y = x * factor``; `dy` is overwritten."""
    dy -= y * (np.einsum("ni,ni->n", dy, y) / y.shape[-1])[:, None]
    dy *= factor
    return dy


def _cross_entropy(scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean of ``logsumexp(scores) - scores[target]`` over the rows, and its gradient by `scores`, in their place."""
    rows = np.arange(len(targets))
    scores -= scores.max(axis=1, keepdims=True)
    chosen = scores[rows, targets]
    np.exp(scores, out=scores)
    sums = scores.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(sums[:, 0]) - chosen))
    scores /= sums
    scores[rows, targets] -= 1
    scores /= len(targets)
    return loss, scores
