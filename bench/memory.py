"""Peak memory of one call beside every peer: ``python bench/memory.py [--shapes 4096x64 ...] [--json FILE]``.

MB beyond operands and result, b = 1, h = 8, float32. What a library allocates by itself is seen from outside only: as
growth of the process's resident memory, in a process of its own that has called the peer on a small problem before. Of
cuflash, tracemalloc's count stands beside it. Needs Linux for the former.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import peers
from shapes import ATTENTION

from cuflash._bench import report
from cuflash._bench.report import Row, installed
from cuflash._bench.timing import peak_bytes

SHAPES = ("2048x64", "4096x64", "16384x64")
SCORES_MOST = 1e9  # bytes; who keeps all scores is not run where they are more
ALL_SCORES = {("naive", False), ("naive", True), ("in place", False), ("in place", True), ("jax", False), ("jax", True)}
ALL_SCORES |= {("ort MHA", True)}  # its tiled kernel is for full attention


def main() -> None:
    """Print one row for each shape, full and causal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=ATTENTION, nargs="+", default=SHAPES, metavar="SHAPE")
    parser.add_argument("--json")
    given = parser.parse_args()
    rows = [row(name, causal) for name in given.shapes for causal in (False, True)]
    title = "peak memory of attention beyond operands and result, b = 1, h = 8, float32, MB; shapes are length x d"
    report.finish([report.Table(title, rows)], given.json, *peers.PACKAGES)


def row(name: str, causal: bool) -> Row:
    """Peaks of one shape."""
    shape = ATTENTION[name]
    scores = 4 * shape.b * shape.hq * shape.lq * shape.lk
    measured: Row = {"shape": name, "causal": causal, "scores": round(scores / 1e6, 1)}
    for peer, entry in peers.ATTENTION.entries.items():
        if all(map(installed, entry.packages)):
            skipped = (peer, causal) in ALL_SCORES and scores > SCORES_MOST
            measured[peer] = None if skipped else in_fresh_process(resident_peak, peer, name, causal)
    measured["cuflash, traced"] = in_fresh_process(traced_peak, "cuflash", name, causal)
    return measured


def in_fresh_process(measure, *arguments):
    """What `measure` returns in an interpreter that has done nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def prepared(peer: str, name: str, causal: bool):
    """The call of a peer that has been called on a small problem; None where it cannot do this."""
    shape = ATTENTION[name]
    for operands in (peers.ATTENTION.operands(size, "float32", causal) for size in (shape.small(), shape)):
        made = peers.ATTENTION.entries[peer].make(*operands)
        if made is None:
            return None
        if operands[0].shape[-2] != shape.lq:
            made.result(made.call())
    return made, operands[0].nbytes


def resident_peak(peer: str, name: str, causal: bool) -> float | None:
    """MB by which the process grew at most during the call, its result apart."""
    found = prepared(peer, name, causal)
    if found is None or not Path("/proc/self/clear_refs").exists():
        return None
    made, result_bytes = found
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status_bytes("VmRSS")
    kept = made.call()
    peak = status_bytes("VmHWM") - before - result_bytes
    del kept
    return round(max(0, peak) / 1e6, 1)


def status_bytes(field: str) -> int:
    """A size from Linux's description of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def traced_peak(peer: str, name: str, causal: bool) -> float:
    """MB that tracemalloc saw."""
    made, _ = prepared(peer, name, causal)
    return round(peak_bytes(made.call) / 1e6, 2)


if __name__ == "__main__":
    main()
