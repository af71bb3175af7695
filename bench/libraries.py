"""PyTorch, onnxruntime and JAX as peers, each imported when the first of its peers is made.

Each gets its operands in the layout and memory that it likes best, prepared before the clock starts, and as many
threads as cuflash.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

import cuflash
from cuflash._bench.timing import Peer
from cuflash._device import cpu_device

Array = Any
THREADS = cpu_device().threads


def _by_head(x: Array) -> Array:
    """(b, l, h, d) from (b, h, l, d) or back, in a memory order of its own."""
    return np.ascontiguousarray(x.swapaxes(1, 2))


# ---- PyTorch -------------------------------------------------------------------------------------------------------


@cache
def _torch() -> Any:
    import torch

    torch.set_num_threads(THREADS)
    return torch


def _tensor(x: Array) -> Any:
    torch = _torch()
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def _sdpa(*tensors: Any, **options: Any) -> Callable[[], Any]:
    """scaled_dot_product_attention, once its flash kernel has shown that it takes these operands."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    attend = partial(_torch().nn.functional.scaled_dot_product_attention, *tensors, **options)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attend()
    return attend


def torch_attention(q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """Forward pass."""
    return Peer(_sdpa(*map(_tensor, (q, k, v)), is_causal=causal), lambda out: out.float().numpy())


def torch_backward(dout: Array, q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """Gradient alone."""
    leaves = [_tensor(x).requires_grad_() for x in (q, k, v)]
    out = _sdpa(*leaves, is_causal=causal)()
    gradient = _tensor(dout)
    return Peer(lambda: _torch().autograd.grad(out, leaves, gradient, retain_graph=True))


def torch_decode(q: Array, kv_cache: cuflash.KVCache) -> Peer:
    """Keys and values by head, which took three quarters of the time that views of (b, l, hk, d) took."""
    k, v = (_tensor(_by_head(x)) for x in (kv_cache.k, kv_cache.v))
    attend = _sdpa(_tensor(q)[:, :, None], k, v, enable_gqa=True)
    return Peer(attend, lambda out: out[:, :, 0].float().numpy())


# ---- onnxruntime ---------------------------------------------------------------------------------------------------


def _onnx_node(
    operator: str, inputs: dict[str, Array | None], outputs: dict[str, str | None], **attributes: Any
) -> Peer:
    """One of onnxruntime's own operators as a model of its own.

    An output that is given the name of an input is written into that input's memory. Threads may spin, as they do by
    default: `timing.WARM` is longer.
    """
    import onnxruntime
    from onnx import helper

    given = {name: array for name, array in inputs.items() if array is not None}
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in given.items()}
    names = [name if name in given else "" for name in inputs]
    graph = helper.make_graph(
        [helper.make_node(operator, names, [*outputs], domain="com.microsoft", **attributes)],
        operator,
        [helper.make_tensor_value_info(name, types[name], array.shape) for name, array in given.items()],
        [helper.make_tensor_value_info(name, types["q"], None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)  # one that onnxruntime 1.20 reads
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    binding = session.io_binding()
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in given.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name, place in outputs.items():
        if place is None:
            binding.bind_output(name, "cpu")
        else:
            binding.bind_ortvalue_output(name, values[place])
    return Peer(lambda: session.run_with_iobinding(binding), lambda _: binding.get_outputs()[0].numpy())


def _packed(x: Array) -> Array:
    """(b, l, h * d), as onnxruntime takes operands."""
    return _by_head(x).reshape(x.shape[0], x.shape[2], -1)


def _unpacked(peer: Peer, heads: int) -> Peer:
    def result(out: Any) -> Array:
        packed = peer.result(out)
        return packed.reshape(*packed.shape[:2], heads, -1).swapaxes(1, 2)

    return Peer(peer.call, result)


def onnx_mha(q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """Forward pass; full attention has a tiled kernel, causal attention keeps all scores."""
    inputs = dict(zip("qkv", map(_packed, (q, k, v))))
    heads = q.shape[1]
    peer = _onnx_node("MultiHeadAttention", inputs, {"out": None}, num_heads=heads, unidirectional=int(causal))
    return _unpacked(peer, heads)


def _lengths(b: int, length: int) -> dict[str, Array]:
    """What GroupQueryAttention asks for: the place of the last token, and the length."""
    return {"last": np.full(b, length - 1, np.int32), "length": np.array(length, np.int32)}


def onnx_gqa(q: Array, k: Array, v: Array, causal: bool) -> Peer | None:
    """Causal only. With outputs for keys and values it has a tiled kernel, without them it is half as fast."""
    if not causal:
        return None
    inputs = {**dict(zip("qkv", map(_packed, (q, k, v)))), "past_k": None, "past_v": None}
    outputs = {"out": None, "new_k": None, "new_v": None}
    hq, hk = q.shape[1], k.shape[1]
    peer = _onnx_node(
        "GroupQueryAttention", {**inputs, **_lengths(len(q), k.shape[2])}, outputs, num_heads=hq, kv_num_heads=hk
    )
    return _unpacked(peer, hq)


def onnx_decode(q: Array, kv_cache: cuflash.KVCache) -> Peer:
    """The token's key and value are handed in and appended in place; the others are in buffers of its own layout."""
    b, hq, _ = q.shape
    past = {"past_k": _by_head(kv_cache.k), "past_v": _by_head(kv_cache.v)}
    newest = {name: x[:, -1:].reshape(b, 1, -1) for name, x in (("k", kv_cache.k), ("v", kv_cache.v))}
    peer = _onnx_node(
        "GroupQueryAttention",
        {"q": q.reshape(b, 1, -1), **newest, **past, **_lengths(b, kv_cache.capacity)},
        {"out": None, "new_k": "past_k", "new_v": "past_v"},
        num_heads=hq,
        kv_num_heads=kv_cache.kv_heads,
    )
    return Peer(peer.call, lambda out: peer.result(out).reshape(q.shape))


# ---- JAX -----------------------------------------------------------------------------------------------------------


@cache
def _jax() -> Any:
    os.environ.setdefault("NPROC", str(THREADS))  # the number of threads of XLA's pool
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    return jax


def jax_attention(q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """Forward pass, compiled."""
    jax = _jax()
    operands = [jax.numpy.asarray(_by_head(x)) for x in (q, k, v)]
    attend = jax.jit(lambda *x: jax.nn.dot_product_attention(*x, is_causal=causal))
    return Peer(lambda: attend(*operands).block_until_ready(), _by_head_of)


def jax_backward(dout: Array, q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """Gradient alone, compiled."""
    jax = _jax()
    gradient, *operands = [jax.numpy.asarray(_by_head(x)) for x in (dout, q, k, v)]
    _, vjp = jax.vjp(lambda *x: jax.nn.dot_product_attention(*x, is_causal=causal), *operands)
    back = jax.jit(lambda vjp, gradient: vjp(gradient))  # what the forward pass kept is an operand, not a constant
    return Peer(
        lambda: jax.block_until_ready(back(vjp, gradient)), lambda gradients: tuple(map(_by_head_of, gradients))
    )


def jax_decode(q: Array, kv_cache: cuflash.KVCache) -> Peer:
    """Grouped heads over a cache as cuflash keeps it."""
    jax = _jax()
    token, k, v = (jax.numpy.asarray(x) for x in (q[:, None], kv_cache.k, kv_cache.v))
    attend = jax.jit(jax.nn.dot_product_attention)
    return Peer(lambda: attend(token, k, v).block_until_ready(), lambda out: np.asarray(out)[:, 0])


def _by_head_of(out: Any) -> Array:
    return np.asarray(out).swapaxes(1, 2)
