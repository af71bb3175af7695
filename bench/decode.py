"""A new token over a cache beside every peer: ``python bench/decode.py [--shapes 1x16384 ...] [--json FILE]``.

hq = 32, hk = 8, d = 128. The token's key and value are in the cache already, but for onnxruntime, whose operator
appends them itself. paged, int8 and float8 are cuflash's other caches. Milliseconds are medians; a ratio is the peer's
time over that of the plain cache.
"""

from __future__ import annotations

import argparse

import peers
from shapes import DECODE

from cuflash._bench import report
from cuflash._bench.report import Bar, Row

SHAPES = ("1x16384", "4x16384")


def main() -> None:
    """Print one row for each dtype and shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=DECODE, nargs="+", default=SHAPES, metavar="SHAPE")
    parser.add_argument("--dtypes", choices=peers.DTYPES, nargs="+", default=peers.DTYPES, metavar="DTYPE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    given = parser.parse_args()
    rows = [row(name, dtype, given.rounds) for name in given.shapes for dtype in given.dtypes]
    title = "decode, one token, hq = 32, hk = 8, d = 128, ms; shapes are b x tokens in the cache"
    report.finish([report.Table(title, rows, bars(rows))], given.json, *peers.PACKAGES)


def row(name: str, dtype: str, rounds: int) -> Row:
    """Times of one shape."""
    return {"shape": name, "dtype": dtype, **peers.DECODE.row(DECODE[name], dtype, rounds=rounds)}


def bars(rows: list[Row]) -> list[Bar]:
    """What was asked for, shape by shape."""
    found = []
    for name in SHAPES:
        by_dtype = {row["dtype"]: row for row in rows if row["shape"] == name}
        float32 = by_dtype.get("float32", {})
        found += [
            Bar(f"torch / cuflash, {name}, float32", float32.get("torch / cuflash"), ">=", 1.5),
            Bar(f"in place / cuflash, {name}, float32", float32.get("in place / cuflash"), ">=", 1),
            Bar(f"paged / cuflash, {name}, float32", float32.get("paged / cuflash"), "<=", 1.2),
        ]
        for dtype in ("float16", "bfloat16"):
            times = [by_dtype.get(other, {}).get("cuflash") for other in (dtype, "float32")]
            figure = None if None in times else times[0] / times[1]
            found.append(Bar(f"{dtype} / float32, {name}, cuflash", figure, "<=", 2))
    return found


if __name__ == "__main__":
    main()
