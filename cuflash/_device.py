"""What a device can do, as a small value that planning reads. Here: the CPU as this process may use it."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

from cuflash.errors import ProblemError


class Device(NamedTuple):
    """Everything a plan may depend on; tests make their own."""

    threads: int  # how many run at once


def cpu_device() -> Device:
    """The CPU: threads from CUFLASH_NUM_THREADS or the cores this process may use."""
    asked = os.environ.get("CUFLASH_NUM_THREADS")
    return Device(_threads_asked(asked) if asked else available_cores())


def available_cores() -> int:
    """Cores in this process's affinity mask, or, where the system keeps none, all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache
def _threads_asked(text: str) -> int:
    try:
        threads = int(text)
    except ValueError:
        threads = 0
    if threads < 1:
        raise ProblemError(f"CUFLASH_NUM_THREADS is {text!r}, but must be a whole number of threads, 1 or more")
    return threads
