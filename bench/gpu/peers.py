"""Other ways to the same result on a GPU: PyTorch's attention by each of its kernels, plain CuPy, and Triton.

Each function makes a `Peer` for operands that are CuPy arrays; PyTorch sees their memory, nothing is copied. A peer
that cannot do a problem raises, when it is made or when it is first called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cuflash._bench.timing import Peer

Array = Any
BACKENDS = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION", "math": "MATH"}


def tensor(x: Array) -> Any:
    """PyTorch's view of an array; bfloat16 under the name of another type, since not every library exports it."""
    import torch

    if x.dtype.name == "bfloat16":
        return torch.from_dlpack(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(x)


def array(xp: Any, t: Any) -> Array:
    """The same the other way."""
    import torch

    t = t.detach()
    if t.dtype == torch.bfloat16:
        import ml_dtypes

        return xp.from_dlpack(t.view(torch.int16)).view(ml_dtypes.bfloat16)
    return xp.from_dlpack(t)


def _with_backend(backend: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """A call during which PyTorch may use one kernel alone."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = getattr(SDPBackend, BACKENDS[backend])

    def restricted() -> Any:
        with sdpa_kernel(chosen):
            return call()

    return restricted


def torch_forward(backend: str, xp: Any, q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """scaled_dot_product_attention; as many heads of keys as of queries."""
    import torch

    attend = partial(torch.nn.functional.scaled_dot_product_attention, *map(tensor, (q, k, v)), is_causal=causal)
    return Peer(_with_backend(backend, attend), partial(array, xp))


def torch_backward(backend: str, xp: Any, dout: Array, q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """Its gradient alone."""
    import torch

    leaves = [tensor(x).detach().requires_grad_() for x in (q, k, v)]
    attend = partial(torch.nn.functional.scaled_dot_product_attention, *leaves, is_causal=causal)
    out, gradient = _with_backend(backend, attend)(), tensor(dout)
    call = partial(torch.autograd.grad, out, leaves, gradient, retain_graph=True)
    return Peer(call, lambda grads: tuple(array(xp, grad) for grad in grads))


def torch_decode(backend: str, xp: Any, q: Array, k: Array, v: Array) -> Peer:
    """One query (b, hq, d) over keys and values (b, hk, l, d): a full cache, laid out as this peer likes it."""
    import torch

    t, k, v = tensor(q)[:, :, None], tensor(k), tensor(v)
    attend = partial(torch.nn.functional.scaled_dot_product_attention, t, k, v, enable_gqa=q.shape[1] != k.shape[1])
    return Peer(_with_backend(backend, attend), lambda out: array(xp, out)[:, :, 0])


def plain_forward(xp: Any, q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """softmax(q k^T / sqrt(d)) v with the whole score matrix, in the dtype of the operands."""
    return Peer(lambda: _weights(xp, q, k, causal) @ v)


def plain_backward(xp: Any, dout: Array, q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """From the probabilities that the forward pass has kept."""
    p, scale = _weights(xp, q, k, causal), q.dtype.type(q.shape[-1] ** -0.5)

    def call() -> tuple[Array, ...]:
        dp = dout @ v.swapaxes(-1, -2)
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) * scale
        return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dout

    return Peer(call)


def plain_decode(xp: Any, q: Array, k: Array, v: Array) -> Peer:
    """As `torch_decode`; heads that share keys are the rows of one product."""
    b, hq, d = q.shape
    grouped = q.reshape(b, k.shape[1], hq // k.shape[1], d)
    return Peer(lambda: (_weights(xp, grouped, k, False) @ v).reshape(q.shape))


def _weights(xp: Any, q: Array, k: Array, causal: bool) -> Array:
    scores = q * q.dtype.type(q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)
    if causal:
        hidden = xp.arange(k.shape[-2]) > xp.arange(q.shape[-2])[:, None] + k.shape[-2] - q.shape[-2]
        scores = xp.where(hidden, q.dtype.type(-np.inf), scores)
    scores -= scores.max(axis=-1, keepdims=True)
    weights = xp.exp(scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def triton_forward(xp: Any, q: Array, k: Array, v: Array, causal: bool) -> Peer:
    """A kernel as one would write it first."""
    from gpu import triton_attention

    operands = [tensor(x) for x in (q, k, v)]
    return Peer(lambda: triton_attention.attend(*operands, causal), partial(array, xp))
