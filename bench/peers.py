"""Who cuflash is timed beside: NumPy's formulas, and PyTorch, onnxruntime and JAX where they are installed.

What a peer returns is first held against the definition on a small problem; one that is wrong there is not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import libraries
import numpy as np
from shapes import Shape
from threadpoolctl import threadpool_limits

import cuflash
from cuflash import reference
from cuflash._bench import standard
from cuflash._bench.report import Row, installed
from cuflash._bench.timing import Peer, compare, relative_error

PACKAGES = ("scipy", "torch", "onnxruntime", "jax")  # whose versions a table carries
DTYPES = ("float32", "float16", "bfloat16")
BOUNDS = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}  # relative errors up to which a result is right
PAGE = 64  # tokens of a page

Array = Any
threadpool_limits(libraries.THREADS, "blas")


class Entry(NamedTuple):
    """How to make a peer, and where it can be made."""

    make: Callable[..., Peer | None]  # None: not this problem
    packages: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = DTYPES
    bound: float | None = None  # in place of the dtype's


class Family(NamedTuple):
    """Peers that compute the same from the same operands; cuflash is the first."""

    operands: Callable[..., tuple[Any, ...]]  # of a shape, a dtype's name and further arguments
    expected: Callable[..., Any]  # by the definition
    entries: dict[str, Entry]

    def make(self, dtype: str, operands: tuple[Any, ...]) -> dict[str, Peer]:
        """Every peer that is installed and can do it."""
        made = {
            name: entry.make(*operands)
            for name, entry in self.entries.items()
            if dtype in entry.dtypes and all(map(installed, entry.packages))
        }
        return {name: peer for name, peer in made.items() if peer is not None}

    def right(self, shape: Shape, dtype: str, *arguments: Any) -> set[str]:
        """Names of those whose result is that of the definition on a small problem of the kind."""
        operands = self.operands(shape.small(), dtype, *arguments)
        expected = self.expected(*operands)
        names = set()
        for name, peer in self.make(dtype, operands).items():
            error = relative_error(peer.result(peer.call()), expected)
            if error <= (self.entries[name].bound or BOUNDS[dtype]):
                names.add(name)
            else:
                print(f"{name} is off by {error:.1e} of the norm on {shape.small()}, {dtype}, {arguments}: not timed")
        return names

    def row(self, shape: Shape, dtype: str, *arguments: Any, rounds: int, number: int = 1, unit: float = 1e3) -> Row:
        """Times of every peer that is right, in one process and in turn, and their ratios to cuflash.

        None stands for a peer that is installed but cannot do this.
        """
        names = self.right(shape, dtype, *arguments)
        peers = self.make(dtype, self.operands(shape, dtype, *arguments))
        taken = compare({name: peer for name, peer in peers.items() if name in names}, rounds, number=number, unit=unit)
        first, *others = (name for name, entry in self.entries.items() if all(map(installed, entry.packages)))
        columns = [first, *others, *(f"{name} / {first}" for name in others)]
        return {**{name: taken.get(name) for name in columns}, "spread, %": taken["spread, %"]}


def _normal(seed: int, dtype: str, *shape: int) -> Array:
    numbers = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if dtype == "bfloat16":
        import ml_dtypes

        return numbers.astype(ml_dtypes.bfloat16)
    return numbers.astype(dtype, copy=False)


# ---- NumPy ---------------------------------------------------------------------------------------------------------


def _cuflash_backward(dout: Array, q: Array, k: Array, v: Array, causal: bool) -> Peer:
    out, lse = cuflash.attention(q, k, v, causal=causal, return_lse=True)
    return Peer(lambda: cuflash.attention_backward(dout, q, k, v, out, lse, causal=causal), lambda grads: grads[:3])


def _naive_backward(dout: Array, q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """From the probabilities that the forward pass would have kept, as in textbooks."""
    p = cuflash.attention_weights(q, k, causal=causal)
    scale = q.dtype.type(q.shape[-1] ** -0.5)

    def call() -> tuple[Array, ...]:
        dp = dout @ v.swapaxes(-1, -2)
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) * scale
        return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dout

    return Peer(call)


def _in_place_backward(dout: Array, q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """The same with one array of the scores' size beside the probabilities."""
    p = cuflash.attention_weights(q, k, causal=causal)
    out = p @ v
    scale = q.dtype.type(q.shape[-1] ** -0.5)

    def call() -> tuple[Array, ...]:
        ds = dout @ v.swapaxes(-1, -2)
        ds -= (dout * out).sum(axis=-1, keepdims=True)
        ds *= p
        dq, dk = ds @ k, ds.swapaxes(-1, -2) @ q
        dq *= scale
        dk *= scale
        return dq, dk, p.swapaxes(-1, -2) @ dout

    return Peer(call)


def _paged_decode(q: Array, kv_cache: cuflash.KVCache) -> Peer:
    """The same tokens in pages of PAGE, which lie in memory in no order."""
    b, capacity, hk, d = kv_cache.k.shape
    paged = cuflash.PagedKVCache(b * -(-capacity // PAGE), PAGE, hk, d, dtype=kv_cache.dtype)
    others = [paged.add() for _ in range(len(paged.k))]
    first = np.zeros((len(others), hk, 1, d), kv_cache.dtype)
    paged.append(first, first)
    for seq in np.random.default_rng(0).permutation(others):
        paged.free(int(seq))
    for _ in range(b):
        paged.add()
    paged.append(kv_cache.k, kv_cache.v, layout="blhd")
    return Peer(lambda: cuflash.decode(q, paged))


def _quantised_decode(name: str, q: Array, kv_cache: cuflash.KVCache) -> Peer:
    quantised = cuflash.KVCache(*kv_cache.k.shape, dtype=name)
    quantised.append(kv_cache.k, kv_cache.v, layout="blhd")
    return Peer(lambda: cuflash.decode(q, quantised))


def _in_place_decode(q: Array, kv_cache: cuflash.KVCache) -> Peer:
    """In float32 throughout."""
    token = q.astype(np.float32)
    return Peer(lambda: standard.decode_in_place(token, kv_cache.k, kv_cache.v).astype(q.dtype, copy=False))


# ---- families ------------------------------------------------------------------------------------------------------


def _attention_operands(shape: Shape, dtype: str, causal: bool) -> tuple[Any, ...]:
    b, hq, hk, lq, lk, d = shape
    return (*(_normal(i, dtype, b, *size, d) for i, size in enumerate(((hq, lq), (hk, lk), (hk, lk)))), causal)


def _backward_operands(shape: Shape, dtype: str, causal: bool) -> tuple[Any, ...]:
    return (_normal(3, dtype, shape.b, shape.hq, shape.lq, shape.d), *_attention_operands(shape, dtype, causal))


def _decode_operands(shape: Shape, dtype: str) -> tuple[Any, ...]:
    """A token's query and a full cache."""
    b, hq, hk, _, lk, d = shape
    q, k, v = (_normal(i, dtype, *size) for i, size in enumerate(((b, hq, d), (b, lk, hk, d), (b, lk, hk, d))))
    kv_cache = cuflash.KVCache(b, lk, hk, d, dtype=q.dtype)
    kv_cache.append(k, v, layout="blhd")
    return q, kv_cache


ATTENTION = Family(
    _attention_operands,
    lambda q, k, v, causal: reference.attention(q, k, v, causal=causal),
    {
        "cuflash": Entry(lambda q, k, v, causal: Peer(lambda: cuflash.attention(q, k, v, causal=causal))),
        "naive": Entry(lambda *operands: Peer(lambda: standard.naive(*operands)), dtypes=("float32",)),
        "in place": Entry(lambda *operands: Peer(lambda: standard.in_place(*operands)), dtypes=("float32",)),
        "torch": Entry(libraries.torch_attention, ("torch",)),
        "ort MHA": Entry(libraries.onnx_mha, ("onnxruntime", "onnx"), ("float32", "float16")),
        "ort GQA": Entry(libraries.onnx_gqa, ("onnxruntime", "onnx"), ("float32", "float16")),
        "jax": Entry(libraries.jax_attention, ("jax",), ("float32", "bfloat16")),
    },
)
BACKWARD = Family(
    _backward_operands,
    lambda dout, q, k, v, causal: reference.attention_backward(dout, q, k, v, causal=causal)[:3],
    {
        "cuflash": Entry(_cuflash_backward),
        "naive": Entry(_naive_backward, dtypes=("float32",)),
        "in place": Entry(_in_place_backward, dtypes=("float32",)),
        "torch": Entry(libraries.torch_backward, ("torch",), ("float32",)),
        "jax": Entry(libraries.jax_backward, ("jax",), ("float32", "bfloat16")),
    },
)
# What the quantised caches lose is theirs; the bounds find what is wrong.
DECODE = Family(
    _decode_operands,
    reference.decode,
    {
        "cuflash": Entry(lambda q, kv_cache: Peer(lambda: cuflash.decode(q, kv_cache))),
        "paged": Entry(_paged_decode),
        "int8": Entry(partial(_quantised_decode, "int8"), dtypes=("float32",), bound=0.02),
        "float8": Entry(partial(_quantised_decode, "float8_e4m3fn"), ("ml_dtypes",), ("float32",), bound=0.06),
        "in place": Entry(_in_place_decode),
        "torch": Entry(libraries.torch_decode, ("torch",)),
        "ort GQA": Entry(libraries.onnx_decode, ("onnxruntime", "onnx"), ("float32", "float16")),
        "jax": Entry(libraries.jax_decode, ("jax",), ("float32", "bfloat16")),
    },
)
