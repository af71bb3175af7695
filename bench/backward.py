"""The gradient alone beside every peer: ``python bench/backward.py [--shapes 1024x64 ...] [--rounds N] [--json FILE]``.

b = 1, h = 8. Everybody has run the forward pass before and kept what they like: cuflash out and lse, NumPy's formulas
and JAX the probabilities. Milliseconds are medians; a ratio is the peer's time over ours.
"""

from __future__ import annotations

import argparse

import peers
from shapes import ATTENTION

from cuflash._bench import report
from cuflash._bench.report import Bar, Row

SHAPES = ("1024x64", "4096x64")


def main() -> None:
    """Print one row for each shape, full and causal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=ATTENTION, nargs="+", default=SHAPES, metavar="SHAPE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    given = parser.parse_args()
    rows = [row(name, causal, given.rounds) for name in given.shapes for causal in (False, True)]
    title = "dq, dk, dv from dout, b = 1, h = 8, float32, ms; shapes are length x d"
    report.finish([report.Table(title, rows, bars(rows))], given.json, *peers.PACKAGES)


def row(name: str, causal: bool, rounds: int) -> Row:
    """Times of one shape."""
    return {"shape": name, "causal": causal, **peers.BACKWARD.row(ATTENTION[name], "float32", causal, rounds=rounds)}


def bars(rows: list[Row]) -> list[Bar]:
    """What was asked for."""
    against_torch = report.column([row for row in rows if row["shape"] in SHAPES], "torch / cuflash")
    return [
        Bar("least of torch / cuflash, d = 64", against_torch and min(against_torch), ">=", 0.8),
        Bar("their geometric mean", report.geometric_mean(against_torch), ">=", 0.8),
    ]


if __name__ == "__main__":
    main()
