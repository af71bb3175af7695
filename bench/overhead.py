"""What a call costs beyond the arithmetic, and what the import does: ``python bench/overhead.py [--json FILE]``.

Arrays of a few elements, float32, beside every peer. Microseconds are medians of means over 500 calls; a ratio is the
peer's time over ours.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

import numpy as np
import peers
from shapes import TINY

import cuflash
from cuflash._bench import report
from cuflash._bench.report import Row, Table
from cuflash._bench.timing import Peer, compare

CALLS = 500


def main() -> None:
    """Print microseconds of calls on tiny arrays, and the seconds of the import beyond NumPy's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    given = parser.parse_args()
    imports = {module: import_seconds(module) for module in ("numpy", "cuflash")}
    tables = [
        Table("calls on tiny arrays, float32, us", calls(given.rounds)),
        Table("imports in fresh interpreters, s", [imports]),
    ]
    report.finish(tables, given.json, *peers.PACKAGES)


def calls(rounds: int) -> list[Row]:
    """One row for each function."""
    settings = {"rounds": rounds, "number": CALLS, "unit": 1e6}
    one_token = TINY._replace(lq=1)
    rows = {
        "attention": peers.ATTENTION.row(TINY, "float32", False, **settings),
        "attention, causal": peers.ATTENTION.row(TINY, "float32", True, **settings),
        "attention_backward": peers.BACKWARD.row(TINY, "float32", False, **settings),
        "decode": peers.DECODE.row(one_token, "float32", **settings),
        **{name: compare({"cuflash": Peer(call)}, **settings) for name, call in without_peers().items()},
    }
    return [{"call": name, **row} for name, row in rows.items()]


def without_peers():
    """Calls that nobody else has by themselves."""
    x = np.random.default_rng(0).standard_normal((TINY.b, TINY.hk, TINY.lk, TINY.d), dtype=np.float32)
    cache = cuflash.KVCache(TINY.b, 16, TINY.hk, TINY.d, dtype=np.float32)
    cache.append(x, x)
    newest, positions = x[:, :, :1], np.arange(TINY.lk)

    def append() -> None:
        cache.truncate(None, TINY.lk)
        cache.append(newest, newest)

    return {"truncate and append": append, "rotary": lambda: cuflash.rotary(x, positions)}


def import_seconds(module: str) -> float:
    """Median over fresh interpreters."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(9)
    ]
    return statistics.median(taken)


if __name__ == "__main__":
    main()
