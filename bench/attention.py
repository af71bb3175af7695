"""Forward attention beside every peer: ``python bench/attention.py [--shapes 1024x64 ...] [--rounds N] [--json FILE]``.

b = 1, h = 8. Milliseconds are medians; a ratio is the peer's time over ours.
"""

from __future__ import annotations

import argparse

import peers
from shapes import ATTENTION

from cuflash._bench import report
from cuflash._bench.report import Bar, Row

AVX512_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")
SHAPES = ("1024x64", "1024x128", "4096x64", "4096x128")


def main() -> None:
    """Print one row for each shape, full and causal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=ATTENTION, nargs="+", default=SHAPES, metavar="SHAPE")
    parser.add_argument("--dtype", choices=peers.DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    given = parser.parse_args()
    rows = [row(name, given.dtype, causal, given.rounds) for name in given.shapes for causal in (False, True)]
    table = report.Table(f"attention, b = 1, h = 8, {given.dtype}, ms; shapes are length x d", rows)
    if given.dtype == "float32":
        table = table._replace(bars=bars(rows))
    report.finish([table], given.json, *peers.PACKAGES)


def row(name: str, dtype: str, causal: bool, rounds: int) -> Row:
    """Times of one shape."""
    return {"shape": name, "causal": causal, **peers.ATTENTION.row(ATTENTION[name], dtype, causal, rounds=rounds)}


def bars(rows: list[Row]) -> list[Bar]:
    """What was asked for, of the rows that it was asked for."""
    asked = [row for row in rows if row["shape"] in SHAPES]
    against_torch = report.column(asked, "torch / cuflash") if len(asked) == 2 * len(SHAPES) else None
    mean = report.geometric_mean(against_torch)
    found = [
        Bar("geometric mean of torch / cuflash over 1024, 4096 x 64, 128 x full, causal", mean, ">=", 0.85),
        Bar("least of them", against_torch and min(against_torch), ">=", 0.7),
    ]
    if report.machine()["kernels"] in AVX512_KERNELS:
        found.append(Bar("the mean, where BLAS runs its AVX-512 kernels", mean, ">=", 1.1))
    longest = {row["causal"]: row for row in rows if row["shape"] == "4096x64"}
    for causal, limit in ((False, 1.8), (True, 3.5)):
        figure = longest.get(causal, {}).get("naive / cuflash")
        found.append(Bar(f"naive / cuflash, 4096x64, {'causal' if causal else 'full'}", figure, ">=", limit))
    return found


if __name__ == "__main__":
    main()
