"""Forward attention beside standard attention in NumPy: ``python bench/attention.py [--lengths ...] [--json FILE]``.

b = 1, h = 8, float32. Milliseconds are medians; a ratio is the peer's time over ours.
"""

from __future__ import annotations

import argparse

import numpy as np
import peers
import timing

import cuflash


def main() -> None:
    """Print one row for each length, head dim, and full or causal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--dims", type=int, nargs="+", default=[64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    given = parser.parse_args()
    rows = [
        row(length, d, causal, given.rounds) for length in given.lengths for d in given.dims for causal in (False, True)
    ]
    timing.report("attention, b = 1, h = 8, float32, ms", rows, given.json)


def row(length: int, d: int, causal: bool, rounds: int) -> dict[str, object]:
    """Times of one shape."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 8, length, d), dtype=np.float32)
    seconds = timing.alternate(
        {
            "cuflash": lambda: cuflash.attention(q, k, v, causal=causal),
            "naive": lambda: peers.naive(q, k, v, causal),
            "in place": lambda: peers.in_place(q, k, v, causal),
        },
        rounds,
    )
    times = {name: value * 1e3 for name, value in seconds.items()}
    ratios = {f"{name} / cuflash": times[name] / times["cuflash"] for name in ("naive", "in place")}
    return {"l": length, "d": d, "causal": causal, **times, **ratios}


if __name__ == "__main__":
    main()
