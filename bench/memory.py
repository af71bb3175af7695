"""Peak memory above inputs and outputs: ``python bench/memory.py [--length 16384] [--json FILE]``.

tracemalloc follows every allocation of NumPy's. Standard attention is counted, not run: its scores alone are
h * l * l numbers.
"""

from __future__ import annotations

import argparse
import tracemalloc

import numpy as np
import timing

import cuflash


def main() -> None:
    """Print the peak of one call, full and causal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--json")
    given = parser.parse_args()
    rows = [row(given.length, causal) for causal in (False, True)]
    timing.report("peak memory above inputs and outputs, b = 1, h = 8, d = 64, float32, MB", rows, given.json)


def row(length: int, causal: bool) -> dict[str, object]:
    """Peak of one call with `out` and `lse_out` given."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 8, length, 64), dtype=np.float32)
    out, lse = np.empty_like(q), np.empty(q.shape[:-1], np.float32)
    cuflash.attention(q[..., :8, :], k[..., :8, :], v[..., :8, :])  # what is loaded once does not count
    tracemalloc.start()
    cuflash.attention(q, k, v, causal=causal, out=out, lse_out=lse)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "l": length,
        "causal": causal,
        "cuflash": peak / 1e6,
        "scores of standard attention": 8 * length**2 * 4 / 1e6,
    }


if __name__ == "__main__":
    main()
