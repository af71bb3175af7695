"""Turn measured/*.json, which the benchmarks wrote, into the tables that benchmarks.rst includes; conf.py calls it.

A figure that was read with other sources than these is said to be out of date, under its table.
"""

import csv
from pathlib import Path

from cuflash import _tuning
from cuflash._bench import report

HERE = Path(__file__).parent


def write(measured=HERE / "measured", out=HERE / "generated"):
    """For each file NAME.json: NAME-1.csv, ..., one for each of its tables, and NAME.inc with machine and bars."""
    out.mkdir(exist_ok=True)
    for path in sorted(measured.glob("*.json")):
        machine, tables = report.load(path)
        for number, table in enumerate(tables, 1):
            write_csv(out / f"{path.stem}-{number}.csv", table.rows)
        bars = [f"- {str(bar).removeprefix('bar: ')}" for table in tables for bar in table.bars]
        (out / f"{path.stem}.inc").write_text("\n".join([provenance(machine), "", *bars, ""]), encoding="utf-8")


def write_kernels(out=HERE / "generated"):
    """Counts of each row of the tables of tensor-core kernels, for kernels/*.rst."""
    out.mkdir(exist_ok=True)
    rows = [count_fwd_mma(*dims, *row[:3]) for dims, rows in _tuning.FWD_MMA.items() for row in rows]
    write_csv(out / "fwd_mma.csv", rows)


def count_fwd_mma(head_dim, value_dim, q_tile, kv_tile, warps):
    """One tile of keys: instructions of a warp, clocks of a multiprocessor, and the bound that follows."""
    row_tiles = q_tile // 16 // warps
    products = row_tiles * kv_tile * (head_dim + value_dim) // 128
    loads = row_tiles * head_dim // 16 + kv_tile * (head_dim + value_dim) // 256
    multiply_adds = q_tile * kv_tile * (head_dim + value_dim)
    read = 2 * (q_tile * head_dim + warps * kv_tile * (head_dim + value_dim))
    clocks = {
        "tensor 8.0": multiply_adds / 1024,
        "tensor 9.0": multiply_adds / 1288,
        "shared": (read + 2 * kv_tile * (head_dim + value_dim)) / 128,
        "ex2": q_tile * kv_tile / 16,
    }
    bounds = {
        f"busy {arch}": f"{min(1, clocks[f'tensor {arch}'] / max(clocks['shared'], clocks['ex2'])):.0%}"
        for arch in ("8.0", "9.0")
    }
    shape = {"d, dv": f"{head_dim}, {value_dim}", "queries x keys, warps": f"{q_tile} x {kv_tile}, {warps}"}
    counts = {"products": str(products), "loads": str(loads)}
    return shape | counts | {name: f"{number:.0f}" for name, number in clocks.items()} | bounds


def write_csv(path, rows):
    """One table; a ratio to cuflash stands behind the time it is of."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    ratios = {name.removesuffix(" / cuflash"): name for name in names if name.endswith(" / cuflash")}
    shown = [name for name in names if name not in ratios.values()]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(shown)
        writer.writerows([cell(row, name, ratios.get(name)) for name in shown] for row in rows)


def cell(row, name, ratio):
    """A figure, with its ratio where it has one."""
    if row.get(name) is None:
        return "–"  # a hyphen would begin a list
    text = report.text(row[name])
    return text if row.get(ratio) is None else f"{text} ({report.text(row[ratio])}×)"


def provenance(machine):
    """Where and when, and whether that is still what the sources do."""
    stale = "" if machine["sources"] == report.sources_digest() else " **The sources have changed since.**"
    return f"Measured {report.describe(machine)}.{stale}"
