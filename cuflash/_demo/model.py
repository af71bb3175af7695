"""A decoder-only transformer in NumPy: how it is laid out, and the pass from tokens to logits.

The model does not know how attention is computed. `forward` calls ``attend(layer, q, k, v)`` once per layer, and the
caller chooses: `causal` here, the caches of `cuflash._demo.generation`, or plain NumPy for comparison.

Each layer adds to the residual stream ``x``, with ``norm`` the root-mean-square norm (its gain is folded into the
matrix that follows it)::

    x = x + attend(rotary(q), rotary(k), v) @ out      where q, k, v = norm(x) @ qkv
    x = x + relu(norm(x) @ up)**2 @ down

and the logits are ``norm(x) @ embedding.T``: input and output share one table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import cuflash
from cuflash._demo.safetensors import read_safetensors
from cuflash._demo.text import Vocabulary

Weights = dict[str, np.ndarray]
Attend = Callable[[int, np.ndarray, np.ndarray, np.ndarray], np.ndarray]

NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class Config:
    """Sizes of the model, in elements; `context` is the greatest number of positions it was trained on."""

    vocabulary: int
    width: int = 192
    layers: int = 4
    query_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 48
    hidden: int = 768
    context: int = 1024

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Name and shape of every weight; matrices are (input, output)."""
        shapes = {"embedding": (self.vocabulary, self.width)}
        for layer in range(self.layers):
            heads = self.query_heads + 2 * self.kv_heads
            shapes[f"{layer}.qkv"] = (self.width, heads * self.head_dim)
            shapes[f"{layer}.out"] = (self.query_heads * self.head_dim, self.width)
            shapes[f"{layer}.up"] = (self.width, self.hidden)
            shapes[f"{layer}.down"] = (self.hidden, self.width)
        return shapes


@dataclass(frozen=True)
class Model:
    """A trained model: weights in float32, sizes, and the characters its token numbers stand for."""

    weights: Weights
    config: Config
    vocabulary: Vocabulary


def load_model(path: str | os.PathLike | None = None) -> Model:
    """Read a model that ``docs/examples/train_lm.py`` wrote; without a path the one that comes with cuflash.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a safetensors file, or not of such a model.
    """
    path = Path(__file__).with_name("model.safetensors") if path is None else path
    arrays, metadata = read_safetensors(path)
    try:
        description = json.loads(metadata["model"])
        config, vocabulary = Config(**description["config"]), Vocabulary(description["vocabulary"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"load_model: `path` {str(path)!r} has no metadata of such a model: {error!r}") from None
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != config.shapes() or len(vocabulary) != config.vocabulary:
        raise ValueError(
            f"load_model: `path` {str(path)!r} has weights {shapes}, expected {config.shapes()} by its config"
        )
    return Model({name: array.astype(np.float32) for name, array in arrays.items()}, config, vocabulary)


def initial_weights(config: Config, rng: np.random.Generator, dtype=np.float32) -> Weights:
    """Random weights: normal, of variance 1/input; the two that write to the residual stream start small."""
    weights = {}
    for name, (rows, columns) in config.shapes().items():
        scale = 0.05 if name == "embedding" else rows**-0.5
        if name.endswith(("out", "down")):
            scale *= (2 * config.layers) ** -0.5
        weights[name] = (scale * rng.standard_normal((rows, columns))).astype(dtype)
    return weights


def rms_norm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``x`` divided by its root mean square over the last axis, and the factor (..., 1) it was multiplied by."""
    squares = np.einsum("...i,...i->...", x, x)[..., None]
    factor = 1 / np.sqrt(squares / x.shape[-1] + x.dtype.type(NORM_EPSILON))
    return x * factor, factor


def project(
    weights: Weights, config: Config, layer: int, x: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rotated queries (b, l, hq, d) and keys (b, l, hk, d), and values (b, l, hk, d), of `x` (b, l, width)."""
    b, l, _ = x.shape
    qkv = (x @ weights[f"{layer}.qkv"]).reshape(b, l, -1, config.head_dim)
    hq, hk = config.query_heads, config.kv_heads
    qk = cuflash.rotary(qkv[:, :, : hq + hk], np.arange(start, start + l), layout="blhd")
    return qk[:, :, :hq], qk[:, :, hq:], qkv[:, :, hq + hk :]


def causal(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attend from every token to itself and those before it; the same in every layer."""
    return cuflash.attention(q, k, v, causal=True, layout="blhd")


def forward(
    weights: Weights, config: Config, tokens: np.ndarray, attend: Attend = causal, start: int = 0
) -> np.ndarray:
    """Return the last hidden states of a batch of token sequences.

    Parameters
    ----------
    weights : dict of arrays
        As in `Config.shapes`, float32 or float64.
    config : Config
    tokens : (b, l) integers
    attend : callable
        ``attend(layer, q, k, v)`` with q (b, l, hq, d) and k, v (b, l, hk, d) returns (b, l, hq, d).
    start : int
        Position of the first token: how many tokens `attend` remembers from before.

    Returns
    -------
    (b, l, width) array
    """
    b, l = tokens.shape
    x = rms_norm(weights["embedding"])[0][tokens]
    for layer in range(config.layers):
        heads = attend(layer, *project(weights, config, layer, rms_norm(x)[0], start))
        x += heads.reshape(b, l, -1) @ weights[f"{layer}.out"]
        hidden = np.maximum(rms_norm(x)[0] @ weights[f"{layer}.up"], 0)
        x += np.square(hidden, out=hidden) @ weights[f"{layer}.down"]
    return rms_norm(x)[0]


def logits(weights: Weights, states: np.ndarray) -> np.ndarray:
    """Scores (..., vocabulary) of the next token after each of the hidden `states` (..., width)."""
    return states @ weights["embedding"].T


def losses(weights: Weights, config: Config, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log-likelihood, in nats, of each of the `targets` (b, l) given the `tokens` (b, l) before it."""
    scores = logits(weights, forward(weights, config, tokens))
    scores -= scores.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    return np.log(np.exp(scores).sum(axis=-1)) - chosen
