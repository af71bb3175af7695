"""Benchmarks of attention and its gradient, beside every peer that the machine has.

A peer's result for one head is held against the definition first; one that is wrong is not timed, and says by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

import cuflash
from cuflash._bench.timing import Peer, time_on_gpu
from gpu import operands, peers
from gpu.child import Cases, Settings
from gpu.operands import DTYPES, Array, Problem

LENGTHS = (4096, 1024, 8192, 2048)  # the first ones first, should time run out
DIMS = (128, 64)
SECONDS = 0.12  # that a peer is timed for
KERNELS = {  # that PyTorch has
    "float16": ("flash", "cudnn", "efficient", "math"),
    "bfloat16": ("flash", "cudnn", "efficient", "math"),
    "float32": ("efficient", "math"),
    "float64": ("math",),
}

Makers = Mapping[str, Callable[[], Peer]]


def problems() -> Iterator[Problem]:
    """In the order of their worth."""
    for length, dtype, d, causal in product(LENGTHS, DTYPES, DIMS, (False, True)):
        yield Problem(dtype, d, length, causal)


def forward_cases(settings: Settings) -> Cases:
    """One case for each problem."""
    for problem in problems():
        yield problem.name, partial(measure_forward, problem, settings.baseline_only)


def backward_cases(settings: Settings) -> Cases:
    """The gradient alone; everybody has run the forward pass before."""
    for problem in problems():
        yield problem.name, partial(measure_backward, problem, settings.baseline_only)


def measure_forward(problem: Problem, baseline_only: bool) -> dict[str, Any]:
    """All peers on one problem."""
    import cupy as xp

    q, k, v = (operands.normal(xp, seed, problem.dtype, *problem.shape) for seed in range(3))
    expected = operands.attend(xp, q[-1, -1], k[-1, -1], v[-1, -1], problem.causal)[0]
    makers = forward_makers(xp, problem, q, k, v, baseline_only)
    return compare(xp, makers, problem, expected, problem.operations)


def measure_backward(problem: Problem, baseline_only: bool) -> dict[str, Any]:
    """All peers on one problem."""
    import cupy as xp

    dout, q, k, v = (operands.normal(xp, seed, problem.dtype, *problem.shape) for seed in (3, 0, 1, 2))
    expected = operands.gradients(xp, *(x[-1, -1] for x in (dout, q, k, v)), problem.causal)
    makers = backward_makers(xp, problem, dout, q, k, v, baseline_only)
    return compare(xp, makers, problem, expected, 2.5 * problem.operations)


def forward_makers(xp: Any, problem: Problem, q: Array, k: Array, v: Array, baseline_only: bool) -> Makers:
    """What can be tried, cuflash first."""
    causal = problem.causal
    own = {"cuflash": lambda: Peer(lambda: cuflash.attention(q, k, v, causal=causal))}
    torch = {
        f"torch {name}": partial(peers.torch_forward, name, xp, q, k, v, causal) for name in KERNELS[problem.dtype]
    }
    plain = {"cupy": partial(peers.plain_forward, xp, q, k, v, causal)}
    triton = {"triton": partial(peers.triton_forward, xp, q, k, v, causal)}
    if problem.dtype != "float16":  # it compiles for seconds
        triton = {}
    return {**({} if baseline_only else own), **torch, **plain, **triton}


def backward_makers(
    xp: Any, problem: Problem, dout: Array, q: Array, k: Array, v: Array, baseline_only: bool
) -> Makers:
    """What can be tried, cuflash first."""
    causal = problem.causal

    def own() -> Peer:
        out, lse = cuflash.attention(q, k, v, causal=causal, return_lse=True)
        return Peer(lambda: cuflash.attention_backward(dout, q, k, v, out, lse, causal=causal), lambda grads: grads[:3])

    torch = {
        f"torch {name}": partial(peers.torch_backward, name, xp, dout, q, k, v, causal)
        for name in KERNELS[problem.dtype]
    }
    plain = {"cupy": partial(peers.plain_backward, xp, dout, q, k, v, causal)}
    return {**({} if baseline_only else {"cuflash": own}), **torch, **plain}


def last_head(result: Any) -> Any:
    """Of an array (b, h, l, d), or of each of several."""
    return tuple(map(last_head, result)) if isinstance(result, (tuple, list)) else result[-1, -1]


def compare(
    xp: Any,
    makers: Makers,
    problem: Problem,
    expected: Any,
    operations: float,
    part: Callable[[Any], Any] = last_head,
    clock: Callable[..., Any] = time_on_gpu,
) -> dict[str, Any]:
    """Milliseconds, rates and errors of every peer that is right; why there are none of the others."""
    row: dict[str, Any] = {"ms": {}, "TFLOP/s": {}, "spread, %": {}, "host us": {}, "error": {}, "absent": {}}
    for name, make in makers.items():
        try:
            peer = make()
            error = operands.error(xp, part(peer.result(peer.call())), expected)
            row["error"][name] = float(f"{error:.2g}")
            if not error <= operands.BOUNDS[problem.dtype]:
                row["absent"][name] = f"wrong: off by {error:.1e} of the norm"
                continue
            taken = clock(xp, peer.call, SECONDS)
        except Exception as problem_of_peer:
            if name == "cuflash":
                raise
            row["absent"][name] = f"{type(problem_of_peer).__name__}: {str(problem_of_peer).splitlines()[0][:200]}"
            continue
        row["ms"][name] = float(f"{1e3 * taken.median:.4g}")
        row["TFLOP/s"][name] = float(f"{1e-12 * operations / taken.median:.4g}")
        row["spread, %"][name] = round(100 * taken.spread, 1)
        row["host us"][name] = round(1e6 * taken.host, 1)
        del peer
    return row
