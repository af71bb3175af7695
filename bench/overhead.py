"""What a call costs beyond the arithmetic, and the import: ``python bench/overhead.py [--json FILE]``."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import timeit

import numpy as np
import timing

import cuflash


def main() -> None:
    """Print microseconds of calls on tiny arrays, and the seconds of the import beyond NumPy's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    given = parser.parse_args()
    timing.report("calls on tiny arrays, float32, us", calls(), given.json)
    print(f"import cuflash: {import_seconds('cuflash'):.3f} s, of which numpy {import_seconds('numpy'):.3f} s")


def calls() -> list[dict[str, object]]:
    """Best of 7 means over 2000 calls."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 4, 8), dtype=np.float32)
    out, lse = cuflash.attention(q, k, v, return_lse=True)
    cache = cuflash.KVCache(1, 16, 2, 8, dtype=np.float32)
    cache.append(k, v)
    token, positions = q[:, :, 0], np.arange(4)

    def append() -> None:
        cache.truncate(None, 4)
        cache.append(k[:, :, :1], v[:, :, :1])

    tiny = {
        "attention": lambda: cuflash.attention(q, k, v),
        "attention, causal": lambda: cuflash.attention(q, k, v, causal=True),
        "attention_backward": lambda: cuflash.attention_backward(out, q, k, v, out, lse),
        "decode": lambda: cuflash.decode(token, cache),
        "truncate and append": append,
        "rotary": lambda: cuflash.rotary(q, positions),
    }
    return [
        {"call": name, "us": min(timeit.repeat(call, number=2000, repeat=7)) / 2000 * 1e6}
        for name, call in tiny.items()
    ]


def import_seconds(module: str) -> float:
    """Median over fresh interpreters."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(9)
    ]
    return statistics.median(taken)


if __name__ == "__main__":
    main()
