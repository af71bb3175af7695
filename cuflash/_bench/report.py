"""Tables of measurements: with the machine they were read on and the bars they are held against, printed and kept."""

from __future__ import annotations

import hashlib
import json
import operator
import platform
import textwrap
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cuflash
from cuflash import _blas
from cuflash._device import cpu_device

NOT_TIMED = {"__main__.py", "_bench", "_demo", "_tools.py", "reference", "testing.py"}  # no call runs through these
RELATIONS = {">": operator.gt, ">=": operator.ge, "<=": operator.le}
HEADER_WIDTH = 10  # characters at which a column's name is broken over lines

Row = dict[str, Any]


class Bar(NamedTuple):
    """A figure and what it must reach; None where what it needs was not measured."""

    text: str
    figure: float | None
    relation: str
    limit: float

    @property
    def met(self) -> bool | None:
        """Whether it holds."""
        return None if self.figure is None else bool(RELATIONS[self.relation](self.figure, self.limit))

    def __str__(self) -> str:
        if self.figure is None:
            return f"bar: {self.text} {self.relation} {self.limit:g}: not measured"
        return f"bar: {self.text} {self.relation} {self.limit:g}: {self.figure:.3g}, {'met' if self.met else 'NOT MET'}"


class Table(NamedTuple):
    """Rows of equal columns under a title that says what one row measures."""

    title: str
    rows: list[Row]
    bars: Sequence[Bar] = ()
    notes: str = ""


def column(rows: Iterable[Row], name: str) -> list[float] | None:
    """A column's figures; None unless every row has one."""
    figures = [row.get(name) for row in rows]
    return None if None in figures or not figures else [float(figure) for figure in figures if figure is not None]


def geometric_mean(figures: Sequence[float] | None) -> float | None:
    """Of what `column` gives."""
    return None if figures is None else float(np.exp(np.mean(np.log(figures))))


def machine(*packages: str) -> dict[str, Any]:
    """What a figure must carry to mean anything; `packages` are those of the peers, left out where not installed."""
    blas = _blas.of_numpy(_blas.libraries())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "threads": cpu_device().threads,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas.get('internal_api', 'unknown')} {blas.get('version', '')}".strip(),
        "kernels": _blas.kernels(blas),
        "cuflash": cuflash.__version__,
        "sources": sources_digest(),
        "peers": {name: metadata.version(name) for name in packages if installed(name)},
    }


def installed(package: str) -> bool:
    """Whether a package of the index is here; nothing is imported."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def describe(machine: dict[str, Any]) -> str:
    """The machine in a line."""
    peers = "".join(f", {name} {version}" for name, version in machine["peers"].items())
    return (
        f"{machine['date']}: {machine['cpu']}, {machine['threads']} threads, Python {machine['python']}, "
        f"NumPy {machine['numpy']} with {machine['blas']} ({machine['kernels']} kernels){peers}; "
        f"cuflash {machine['cuflash']}, sources {machine['sources']}"
    )


def sources_digest() -> str:
    """Short digest of the modules that a call runs through: a figure read with others is out of date."""
    package = Path(cuflash.__file__).parent
    files = {path.relative_to(package): path for path in package.rglob("*.py")}
    digest = hashlib.sha256()
    for name in sorted(files):
        if name.parts[0] not in NOT_TIMED:
            digest.update(f"{name.as_posix()}\n{files[name].read_text(encoding='utf-8')}".encode())
    return digest.hexdigest()[:12]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(table: Table) -> None:
    """Print one table, its bars under it."""
    print(f"\n{table.title}")
    if table.rows:
        names = list(dict.fromkeys(name for row in table.rows for name in row))
        lines = [*_header(names), *([text(row.get(name)) for name in names] for row in table.rows)]
        widths = [max(map(len, cells)) for cells in zip(*lines)]
        for line in lines:
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip())
    for bar in table.bars:
        print(bar)
    if table.notes:
        print(textwrap.fill(table.notes, 120))


def _header(names: list[str]) -> list[list[str]]:
    """The names broken over lines, the last of each on the last line."""
    broken = [textwrap.wrap(name, HEADER_WIDTH, break_long_words=False, break_on_hyphens=False) for name in names]
    height = max(map(len, broken))
    return [list(line) for line in zip(*([""] * (height - len(name)) + name for name in broken))]


def text(value: Any) -> str:
    """A figure with three digits; "-" for what there is none of."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def save(path: str | Path, machine: dict[str, Any], tables: Sequence[Table]) -> None:
    """Write tables and machine as JSON."""
    kept = [{**table._asdict(), "bars": [{**bar._asdict(), "met": bar.met} for bar in table.bars]} for table in tables]
    Path(path).write_text(json.dumps({"machine": machine, "tables": kept}, indent=1) + "\n", encoding="utf-8")


def load(path: str | Path) -> tuple[dict[str, Any], list[Table]]:
    """What `save` wrote."""
    kept = json.loads(Path(path).read_text(encoding="utf-8"))
    tables = [
        Table(**{**table, "bars": [Bar(*(bar[field] for field in Bar._fields)) for bar in table["bars"]]})
        for table in kept["tables"]
    ]
    return kept["machine"], tables


def finish(tables: Sequence[Table], path: str | Path | None, *packages: str) -> dict[str, Any]:
    """End of a benchmark: print machine and tables, keep them where a path is given, and return the machine."""
    here = machine(*packages)
    print(describe(here))
    for table in tables:
        show(table)
    if path:
        save(path, here, tables)
    return here
