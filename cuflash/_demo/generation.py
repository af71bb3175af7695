"""Continue a text token by token, in two ways that must agree.

A reader takes tokens and returns the scores of the one that follows. `CachedReader` keeps the keys and values of what
it has read, so that a token costs one row of the model; `StandardReader` is the yardstick: it runs the whole text
through the model again for each token, with standard attention in plain NumPy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

import cuflash
from cuflash._demo.model import Model, forward, logits

START = "\n"  # what stands before the first character: in the training text, the end of the verse before


class Step(NamedTuple):
    """One generated token: the winner and the runner-up with their scores, and the seconds it took to compute them.

    The first step's seconds include reading the prompt.
    """

    token: int
    score: float
    other_token: int
    other_score: float
    seconds: float


class Reader(Protocol):
    """Something that reads on from where it is."""

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Read `tokens` (l,) and return the scores (vocabulary,) of the next one."""


class CachedReader:
    """Reads each token once; keys and values stay in one `cuflash.KVCache` per layer.

    Parameters
    ----------
    model : Model
    capacity : int
        Tokens the caches can hold.
    """

    def __init__(self, model: Model, capacity: int):
        config = model.config
        self.model = model
        self.caches = [
            cuflash.KVCache(1, capacity, config.kv_heads, config.head_dim, dtype=np.float32)
            for _ in range(config.layers)
        ]
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all caches."""
        return sum(cache.nbytes for cache in self.caches)

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Read `tokens` (l,) behind those already read and return the scores (vocabulary,) of the next one."""
        states = forward(self.model.weights, self.model.config, tokens[None], self._attend, self.length)
        self.length += len(tokens)
        return logits(self.model.weights, states[0, -1])

    def forget(self) -> None:
        """Start over with empty caches."""
        for cache in self.caches:
            cache.truncate(None, 0)
        self.length = 0

    def _attend(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        cache = self.caches[layer]
        cache.append(k, v, layout="blhd")
        if self.length == 0:
            return cuflash.attention(q, k, v, causal=True, layout="blhd")
        return cuflash.decode(q, cache, layout="blhd")


class StandardReader:
    """Reads everything again, from the first token, whenever one more is asked for."""

    def __init__(self, model: Model):
        self.model = model
        self.tokens = np.zeros(0, np.int64)

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Read all tokens so far and `tokens` (l,), and return the scores (vocabulary,) of the next one."""
        self.tokens = np.concatenate([self.tokens, tokens])
        states = forward(self.model.weights, self.model.config, self.tokens[None], standard_attention)
        return logits(self.model.weights, states[0, -1])


def standard_attention(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention as in a textbook, with the (l, l) weights of every head in memory; (b, l, h, d) arrays."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k.repeat(group, axis=2), v.repeat(group, axis=2)))
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3)


def generate(reader: Reader, tokens: np.ndarray, count: int, temperature: float = 0.0, seed: int = 0) -> Iterator[Step]:
    """Read `tokens`, then write `count` more, each read before the next is chosen; yield them as they come.

    Adding ``temperature`` times Gumbel noise to the scores and taking the greatest draws from their softmax (Gumbel
    1954). So at any temperature a token heads a ranking, and two readers with the same `seed` can be compared.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        began = time.perf_counter()
        scores = reader.read(tokens)
        if temperature:
            scores = scores + temperature * rng.gumbel(size=scores.shape)
        other, token = np.argsort(scores)[-2:].tolist()
        yield Step(token, float(scores[token]), other, float(scores[other]), time.perf_counter() - began)
        tokens = np.array([token])


def first_difference(ours: list[Step], theirs: list[Step]) -> int | None:
    """Index of the first step at which two runs chose different tokens, or None."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.token != b.token:
            return index
    return None
