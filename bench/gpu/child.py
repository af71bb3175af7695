"""The process of one stage: runs its cases one after another, and writes a line of JSON before and after each.

    python -m gpu.child STAGE MODULE:FUNCTION SETTINGS

The function gives (name, call) pairs and computes nothing yet; what a call returns goes into the line. A case that
raises is written down and the next one begins, unless the GPU is beyond use: then the process ends, and the runner
starts another that goes on behind the case.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

LINES = "lines.jsonl"
LOST_DEVICE = 3  # exit status
ERROR_LENGTH = 1500  # characters kept of a traceback

Cases = Iterable[tuple[str, Callable[[], Any]]]


class LeftOut(Exception):
    """Raised by a case that cannot run here, with the reason."""


class Settings(NamedTuple):
    """What a stage is told."""

    out: str  # folder for its files
    deadline: float  # of the stage, in seconds since the epoch
    skip: tuple[str, ...] = ()  # cases that have begun in an earlier process
    baseline_only: bool = False  # without the kernels of cuflash

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.time()


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add one line at once; it outlives the process."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=str) + "\n")


def run(stage: str, cases: Cases, settings: Settings) -> None:
    """Run what has not begun before."""
    path = Path(settings.out) / LINES
    for name, call in cases:
        if name in settings.skip:
            continue
        line = {"stage": stage, "case": name}
        if settings.seconds_left <= 0:
            append_line(path, {**line, "status": "no time"})
            continue
        append_line(path, {**line, "status": "begun"})
        start = time.perf_counter()
        try:
            found = {"status": "ok", "result": call()}
        except LeftOut as reason:
            found = {"status": "left out", "error": str(reason)}
        except Exception:
            found = {"status": "error", "error": traceback.format_exc()[-ERROR_LENGTH:]}
        append_line(path, {**line, **found, "seconds": round(time.perf_counter() - start, 3)})
        if found["status"] == "error" and not device_works():
            sys.exit(LOST_DEVICE)
        release_memory()
    append_line(path, {"stage": stage, "status": "end"})


def device_works() -> bool:
    """Whether the GPU still answers; after an illegal access nothing in this process does."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return True
    try:
        cupy.cuda.runtime.deviceSynchronize()
    except Exception:
        return False
    return True


def release_memory() -> None:
    """Give back what the pools of CuPy and PyTorch keep, so that neither starves the other."""
    gc.collect()
    if "cupy" in sys.modules:
        sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def main(stage: str, function: str, settings: str) -> None:
    """Find the stage's function and run its cases."""
    module, _, name = function.partition(":")
    given = Settings(**json.loads(settings))
    run(stage, getattr(importlib.import_module(module), name)(given), given)


if __name__ == "__main__":
    from gpu import child  # the module whose LeftOut the stages raise, of which this one is a copy

    child.main(*sys.argv[1:])
