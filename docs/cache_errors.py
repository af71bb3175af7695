"""Measure what keeping keys and values in fewer bits costs: ``python docs/cache_errors.py`` writes cache_errors.csv.

Each number is the error of `cuflash.decode` over a cache, relative to the norm of the exact result over the keys and
values as they were in float32, so the rounding of what is stored is part of it. `tests/test_quantised.py` measures
again and compares.
"""

import csv
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # this checkout, installed or not

import cuflash
from cuflash import reference

DTYPES = ("float32", "float16", "bfloat16", "int8", "float8_e4m3fn")
LENGTH, QUERIES, HEADS, DIM = 4096, 32, 8, 128
HEADER = ("dtype", "bits per number", "standard normal", "queries 4 times as large", "one feature of the keys 20 times")
QUANTISED = DTYPES[-2:]


def operands():
    """Queries, keys and values (1, h, l, d) in float32 for each column of errors."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, HEADS, QUERIES, DIM), dtype=np.float32)
    k, v = rng.standard_normal((2, 1, HEADS, LENGTH, DIM), dtype=np.float32)
    outlier = np.where(np.arange(DIM) == 7, np.float32(20), np.float32(1))
    return (q, k, v), (4 * q, k, v), (q, k * outlier, v)


def bits(dtype):
    """Bits that a key's number takes, its share of the scale included."""
    cache = cuflash.KVCache(1, 1, 1, DIM, dtype=dtype)
    return 8 * cache.nbytes / (2 * DIM)


def error(dtype, q, k, v):
    """Relative error of the result; with 16-bit and float32 caches, of the whole computation in that dtype."""
    exact = reference.attention(q, k, v)
    given = "float32" if dtype in QUANTISED else dtype
    cache = cuflash.KVCache(1, LENGTH, HEADS, DIM, dtype=dtype)
    cache.append(k.astype(given), v.astype(given))
    out = cuflash.decode(q.astype(given), cache, causal=False).astype(np.float64)
    return np.linalg.norm(out - exact) / np.linalg.norm(exact)


def measure():
    """A row for each dtype: its name, bits and errors."""
    import ml_dtypes  # noqa: F401  # lets NumPy know bfloat16 by name

    return [(dtype, bits(dtype), *(error(dtype, *given) for given in operands())) for dtype in DTYPES]


if __name__ == "__main__":
    with (HERE / "cache_errors.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for dtype, size, *errors in measure():
            writer.writerow((dtype, f"{size:g}", *(f"{one:.1e}" for one in errors)))
