"""Timing on the CPU: peers take turns in one process, so that a machine whose speed drifts is the same for all."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import cuflash
from cuflash._device import cpu_device

WARM = 0.1  # seconds


def alternate(peers: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each function over `rounds`, called in turn.

    Each turn calls for `WARM` seconds before the call that counts: meanwhile the threads of the peer before it stop
    spinning, as OpenBLAS's do for a while. A pause would do that too, but cores that have slept start slowly.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, call in peers.items():
            warm = time.perf_counter() + WARM
            while time.perf_counter() < warm:
                call()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def machine() -> dict[str, Any]:
    """What a figure must carry to mean anything."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu_name(),
        "threads": cpu_device().threads,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cuflash": cuflash.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def report(title: str, rows: list[dict[str, Any]], path: str | None) -> None:
    """Print rows as a table, and write them with the machine as JSON where a path is given."""
    print(f"{title}: " + ", ".join(f"{name} {value}" for name, value in machine().items()))
    names = list(rows[0])
    texts = [[_text(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in texts)) for i, name in enumerate(names)]
    for line in [names, *texts]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))
    if path:
        Path(path).write_text(json.dumps({"title": title, "machine": machine(), "rows": rows}, indent=1) + "\n")


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
