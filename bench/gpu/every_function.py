"""One small call of every public function, for compute-sanitizer: ``python -m gpu.every_function [numpy]``.

On CuPy arrays, or to try the script itself, on NumPy's. CuPy's pool is switched off, so that each array is an
allocation of its own and one number beyond its end is an error. Each function that ran is printed; one that raises is
printed with its error, and the exit status is 1.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import cuflash
from cuflash._bench import report

DTYPES = ["float16", "float32", "float64"]
if report.installed("ml_dtypes"):
    import ml_dtypes  # noqa: F401  gives NumPy the name bfloat16

    DTYPES.append("bfloat16")
B, HQ, HK, LQ, LK, D, DV = 2, 4, 2, 67, 131, 40, 24  # tiles and warps are nowhere full


def main(library: str = "cupy") -> int:
    """Run all, one after another."""
    xp = importlib.import_module(library)
    if library == "cupy":
        xp.cuda.set_allocator(None)
    failed = 0
    for name, call in Functions(xp).calls():
        try:
            call()
            if library == "cupy":
                xp.cuda.Device().synchronize()
        except Exception as error:
            failed = 1
            print(f"failed: {name}: {type(error).__name__}: {error}", flush=True)
        else:
            print(f"ran: {name}", flush=True)
    return failed


class Functions:
    """The calls, on arrays of one library."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def normal(self, *shape: int, dtype: str = "float32") -> Any:
        """Numbers that are the same in every run."""
        return self.xp.asarray(np.random.default_rng(0).standard_normal(shape).astype(dtype))

    def calls(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Name and call of each."""
        for dtype in DTYPES:
            q, k, v = self.qkv(dtype)
            yield f"attention, {dtype}", partial(cuflash.attention, q, k, v, causal=True, return_lse=True)
            yield f"attention_vjp, {dtype}", partial(self.run_gradient, q, k, v, causal=True, window=50)
            yield f"decode, {dtype}", partial(self.run_decode, dtype)
            yield f"decode in parts, {dtype}", partial(self.run_decode, dtype, splits=3)
        q, k, v = self.qkv("float32")
        options = {
            "mask": self.normal(LQ, LK) > 0,
            "bias": self.normal(HQ, 1, LK),
            "sinks": self.normal(HQ),
            "kv_lengths": self.xp.asarray([0, 100]),
            "softcap": 5.0,
        }
        for name, value in {**options, "Alibi": cuflash.Alibi(self.normal(HQ))}.items():
            option = "bias" if name == "Alibi" else name
            yield f"attention_vjp with {name}", partial(self.run_gradient, q, k, v, **{option: value})
        yield "attention_weights", partial(cuflash.attention_weights, q, k, causal=True)
        yield "attention_varlen", self.run_varlen
        yield "decode, int8", partial(self.run_decode, "float32", splits=3, stored="int8")
        yield "decode, float8", partial(self.run_decode, "float32", stored="float8_e4m3fn")
        yield "paged decode", self.run_paged
        yield "merge", lambda: cuflash.merge(self.normal(3, B, HQ, LQ, D), self.normal(3, B, HQ, LQ))
        yield "rotary", lambda: cuflash.rotary(self.normal(B, HQ, LQ, D), self.xp.arange(LQ))

    def qkv(self, dtype: str) -> list[Any]:
        """Operands with two query heads for each of the others."""
        return [self.normal(B, *shape, dtype=dtype) for shape in ((HQ, LQ, D), (HK, LK, D), (HK, LK, DV))]

    def run_gradient(self, *operands: Any, **options: Any) -> None:
        """Forward and backward."""
        out, vjp = cuflash.attention_vjp(*operands, **options)
        vjp(out)

    def run_varlen(self) -> None:
        """Three packed sequences, one of them empty."""
        starts = self.xp.asarray([0, 40, 40, LQ])
        x = self.normal(LQ, HQ, D)
        out, lse = cuflash.attention_varlen(x, x, x, starts, starts, return_lse=True)
        cuflash.attention_varlen_backward(out, x, x, x, out, lse, starts, starts)

    def run_decode(self, dtype: str, splits: int | None = None, stored: str | None = None) -> None:
        """A cache that is filled twice, and one token."""
        cache = cuflash.KVCache(B, LK, HK, D, dtype=stored or dtype, xp=self.xp)
        for length in (LK - 5, 3):
            x = self.normal(B, HK, length, D, dtype=dtype)
            cache.append(x, x)
        cuflash.decode(self.normal(B, HQ, 1, D, dtype=dtype), cache, splits=splits)

    def run_paged(self) -> None:
        """Two sequences that share pages until one is written."""
        cache = cuflash.PagedKVCache(20, 16, HK, D, dtype="float32", xp=self.xp)
        first = cache.add()
        x = self.normal(1, HK, 50, D)
        cache.append(x, x, seqs=[first])
        second = cache.fork(first)
        x = self.normal(2, HK, 1, D)
        cache.append(x, x, seqs=[first, second])
        cuflash.decode(self.normal(2, HQ, 1, D), cache, seqs=[first, second])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
