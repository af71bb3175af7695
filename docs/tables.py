"""Turn measured/*.json, which the benchmarks wrote, into the tables that benchmarks.rst includes; conf.py calls it.

A figure that was read with other sources than these is said to be out of date, under its table.
"""

import csv
from pathlib import Path

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
