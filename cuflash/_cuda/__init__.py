"""The GPU backend: every function a few launches, none of which waits for the device or reads what it holds.

`operands` turns arrays into the structs of kernels; `forward`, `backward` and `transforms` launch what `_gpu_plan`
says. It is written against the protocol of `_runtime`, so that the kernels can run elsewhere than on CuPy's device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cuflash._cuda.backward import backward, backward_varlen
from cuflash._cuda.caches import Kept, append, copy_pages, decode, explain_decode, scatter
from cuflash._cuda.forward import forward, forward_varlen, weights
from cuflash._cuda.prepared import Calls
from cuflash._cuda.transforms import merge, rotary
from cuflash._gpu_forward_plan import plan_forward, plan_weights
from cuflash._gpu_plan import plan_backward
from cuflash._problem.attention import Problem
from cuflash._runtime import Runtime

_PLANS: dict[str, Callable[..., Any]] = {
    "forward": plan_forward,
    "forward with lse": partial(plan_forward, with_lse=True),
    "weights": plan_weights,
    "backward": plan_backward,
}


class Backend:
    """The functions of `cuflash._numpy` on the arrays of a runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.calls = Calls(runtime, Backend)
        self.forward = partial(forward, runtime)
        self.forward_varlen = partial(forward_varlen, runtime)
        self.backward = partial(backward, runtime)
        self.backward_varlen = partial(backward_varlen, runtime)
        self.weights = partial(weights, runtime)
        self.decode = partial(decode, runtime)
        self.explain_decode = partial(explain_decode, runtime)
        self.append = partial(append, runtime)
        self.copy_pages = partial(copy_pages, runtime)
        self.scatter = partial(scatter, runtime)
        self.keep = partial(Kept, runtime)
        self.zeros = runtime.zeros
        self.merge = partial(merge, runtime)
        self.rotary = partial(rotary, runtime)

    def plan(self, kind: str, problem: Problem, *totals: tuple[int, int]) -> Any:
        """How one of `_PLANS` would be computed on the current device; packed sequences give their totals."""
        return _PLANS[kind](problem, self.runtime.gpu(), *totals)
