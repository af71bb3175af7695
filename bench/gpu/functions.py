"""Benchmarks of decoding beside its peers, of the functions that only move memory, and of what a call costs the host.

Time that memory needs is counted from the bytes that must be read and written once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

import cuflash
from cuflash._bench.timing import Peer, time_on_gpu, time_on_host
from gpu import operands, peers
from gpu.attention import KERNELS, Makers, compare
from gpu.child import Cases, Settings
from gpu.operands import Array

HQ, HK, D = 32, 8, 128
BATCHES = (1, 8, 32)
LENGTHS = (32768, 4096, 1024, 16384)
DTYPES = ("float16", "bfloat16", "float32")
PAGE = 64  # tokens
TINY = (1, 2, 4, 8)  # (b, h, l, d)
SECONDS = 0.2


class Decoding(NamedTuple):
    """One new token of each sequence over a full cache."""

    dtype: str
    b: int
    length: int

    @property
    def name(self) -> str:
        """Short."""
        return f"{self.dtype} b{self.b} l{self.length}"

    @property
    def bytes_read(self) -> int:
        """Of the cache."""
        return 2 * self.b * HK * self.length * D * {"float32": 4}.get(self.dtype, 2)


# ---- decoding ------------------------------------------------------------------------------------------------------


def decode_cases(settings: Settings) -> Cases:
    """One case for each cache."""
    for length, b, dtype in product(LENGTHS, BATCHES, DTYPES):
        problem = Decoding(dtype, b, length)
        yield problem.name, partial(measure_decode, problem, settings.baseline_only)


def measure_decode(problem: Decoding, baseline_only: bool) -> dict[str, Any]:
    """All peers on one cache; keys and values lie as (b, hk, l, d) for those that have no cache."""
    import cupy as xp

    dtype, b, length = problem
    q = operands.normal(xp, 0, dtype, b, HQ, D)
    k, v = (operands.normal(xp, seed, dtype, b, HK, length, D) for seed in (1, 2))
    makers = decode_makers(xp, q, k, v, baseline_only)
    row = compare(xp, makers, problem, decode_head(xp, q, k, v), 4.0 * b * HQ * length * D, head_of_decode)
    row["GB/s"] = {name: round(1e-6 * problem.bytes_read / ms, 1) for name, ms in row["ms"].items()}
    return row


def decode_head(xp: Any, q: Array, k: Array, v: Array) -> Array:
    """The definition for the last sequence's second head, which shares the first head of keys."""
    return operands.attend(xp, q[-1, 1:2], k[-1, 0], v[-1, 0], False)[0][0]


def head_of_decode(out: Array) -> Array:
    """The same of a result."""
    return out[-1, 1]


def decode_makers(xp: Any, q: Array, k: Array, v: Array, baseline_only: bool) -> Makers:
    """What can be tried, cuflash first."""
    own = {
        "cuflash": partial(decode_contiguous, xp, q, k, v),
        "cuflash, paged": partial(decode_paged, xp, q, k, v),
    }
    kernels = KERNELS[q.dtype.name]
    torch = {f"torch {name}": partial(peers.torch_decode, name, xp, q, k, v) for name in kernels}
    return {**({} if baseline_only else own), **torch, "cupy": partial(peers.plain_decode, xp, q, k, v)}


def decode_contiguous(xp: Any, q: Array, k: Array, v: Array) -> Peer:
    """Over a KVCache, into an array that is there."""
    b, hk, length, d = k.shape
    cache = cuflash.KVCache(b, length, hk, d, dtype=k.dtype, xp=xp)
    cache.append(k, v)
    out = xp.empty_like(q)
    return Peer(lambda: cuflash.decode(q, cache, out=out))


def decode_paged(xp: Any, q: Array, k: Array, v: Array) -> Peer:
    """Over pages that the sequences took in turn."""
    b, hk, length, d = k.shape
    cache = cuflash.PagedKVCache(b * -(-length // PAGE), PAGE, hk, d, dtype=k.dtype, xp=xp)
    for _ in range(b):
        cache.add()
    for start in range(0, length, length // 4):
        part = slice(start, start + length // 4)
        cache.append(k[:, :, part], v[:, :, part])
    out = xp.empty_like(q)
    return Peer(lambda: cuflash.decode(q, cache, out=out))


# ---- what moves memory ---------------------------------------------------------------------------------------------


def memory_cases(settings: Settings) -> Cases:
    """Functions whose time is that of their bytes."""
    for name, dtype in product(MOVING, DTYPES):
        yield f"{name}, {dtype}", partial(measure_moving, name, dtype)


def measure_moving(name: str, dtype: str) -> dict[str, Any]:
    """Milliseconds, and GB/s of what must be moved at least."""
    import cupy as xp

    call, moved = MOVING[name](xp, dtype)
    taken = time_on_gpu(xp, call, SECONDS)
    found = {"ms": 1e3 * taken.median, "GB/s": 1e-9 * moved / taken.median, "spread, %": 100 * taken.spread}
    return {key: float(f"{figure:.4g}") for key, figure in found.items()} | {"host us": round(1e6 * taken.host, 1)}


Moving = tuple[Callable[[], Any], float]  # a call, and the bytes that it must move


def append_token(xp: Any, dtype: str, b: int = 32) -> Moving:
    """One token of each sequence behind those that are there."""
    x = operands.normal(xp, 0, dtype, b, HK, 1, D)
    cache = cuflash.KVCache(b, 4096, HK, D, dtype=x.dtype, xp=xp)
    return lambda: cache.append(x, x), 4 * x.nbytes


def append_prompt(xp: Any, dtype: str, length: int = 512) -> Moving:
    """A prompt of each of four sequences, with room for as many calls as are timed."""
    x = operands.normal(xp, 0, dtype, 4, HK, length, D)
    cache = cuflash.KVCache(4, 80 * length, HK, D, dtype=x.dtype, xp=xp)
    return lambda: cache.append(x, x), 4 * x.nbytes


def append_quantised(xp: Any, dtype: str, length: int = 512) -> Moving:
    """The same into a cache of int8."""
    x = operands.normal(xp, 0, dtype, 4, HK, length, D)
    cache = cuflash.KVCache(4, 80 * length, HK, D, dtype="int8", xp=xp)
    return lambda: cache.append(x, x), 2 * x.nbytes + 2 * x.size


def rotate(xp: Any, dtype: str, length: int = 8192) -> Moving:
    """All heads of a sequence."""
    x, positions = operands.normal(xp, 0, dtype, 1, HQ, length, D), xp.arange(length)
    out = xp.empty_like(x)
    return lambda: cuflash.rotary(x, positions, out=out), 2 * x.nbytes


def merge(xp: Any, dtype: str, parts: int = 8, length: int = 4096) -> Moving:
    """Results over eight sets of keys."""
    outs = operands.normal(xp, 0, dtype, parts, 1, HQ, length, D)
    lses = operands.normal(xp, 1, "float32", parts, 1, HQ, length)
    return lambda: cuflash.merge(outs, lses), outs.nbytes * (1 + 1 / parts)


MOVING: dict[str, Callable[..., Moving]] = {
    "append, one token": append_token,
    "append, prompt": append_prompt,
    "append, prompt to int8": append_quantised,
    "rotary": rotate,
    "merge": merge,
}


# ---- what a call costs the host ------------------------------------------------------------------------------------


def host_cases(settings: Settings) -> Cases:
    """Microseconds until a call on a few numbers has returned."""
    for name in {**({} if settings.baseline_only else OWN_CALLS), **OTHER_CALLS}:
        yield name, partial(measure_host, name)


def measure_host(name: str) -> dict[str, list[float]]:
    """The mean of some hundred calls, three times."""
    import cupy as xp

    call = {**OWN_CALLS, **OTHER_CALLS}[name](xp)
    return {"us": [round(1e6 * time_on_host(xp, call), 2) for _ in range(3)]}


def tiny(xp: Any, dtype: str = "float32") -> Array:
    """A few numbers, (b, h, l, d)."""
    return operands.normal(xp, 0, dtype, *TINY)


def tiny_token(xp: Any) -> Array:
    """(b, h, d)."""
    return operands.normal(xp, 0, "float32", TINY[0], TINY[1], TINY[3])


def tiny_cache(xp: Any) -> cuflash.KVCache:
    """With room for all tokens that are appended while the clock runs."""
    cache = cuflash.KVCache(TINY[0], 4096, TINY[1], TINY[3], dtype=np.float32, xp=xp)
    cache.append(tiny(xp), tiny(xp))
    return cache


def tiny_backward(xp: Any) -> Callable[[], Any]:
    """The gradient alone."""
    dout, q, k, v = (tiny(xp) for _ in range(4))
    out, lse = cuflash.attention(q, k, v, return_lse=True)
    return partial(cuflash.attention_backward, dout, q, k, v, out, lse)


def tiny_merge(xp: Any) -> Callable[[], Any]:
    """Of two parts."""
    return partial(cuflash.merge, xp.stack([tiny(xp)] * 2), xp.zeros((2, *TINY[:3]), np.float32))


def tiny_torch(kernel: str, xp: Any) -> Callable[[], Any]:
    """PyTorch's attention, whose kernels take 16-bit types."""
    return peers.torch_forward(kernel, xp, *(tiny(xp, "float16") for _ in range(3)), False).call


OWN_CALLS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "attention": lambda xp: partial(cuflash.attention, tiny(xp), tiny(xp), tiny(xp)),
    "attention, with out": lambda xp: partial(cuflash.attention, tiny(xp), tiny(xp), tiny(xp), out=tiny(xp)),
    "attention, causal": lambda xp: partial(cuflash.attention, tiny(xp), tiny(xp), tiny(xp), causal=True),
    "attention_backward": tiny_backward,
    "decode": lambda xp: partial(cuflash.decode, tiny_token(xp), tiny_cache(xp)),
    "decode, with out": lambda xp: partial(cuflash.decode, tiny_token(xp), tiny_cache(xp), out=tiny_token(xp)),
    "append": lambda xp: partial(tiny_cache(xp).append, tiny(xp)[:, :, :1], tiny(xp)[:, :, :1]),
    "rotary": lambda xp: partial(cuflash.rotary, tiny(xp), xp.arange(TINY[2])),
    "merge": tiny_merge,
}
OTHER_CALLS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "cupy.empty": lambda xp: partial(xp.empty, TINY, np.float32),
    "cupy.exp": lambda xp: partial(xp.exp, tiny(xp)),
    "cupy.exp, with out": lambda xp: partial(xp.exp, tiny(xp), tiny(xp)),
    **{f"torch {kernel}": partial(tiny_torch, kernel) for kernel in ("flash", "efficient", "math")},
}
