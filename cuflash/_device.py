"""What a device can do, as a small value that planning reads. Here: the CPU as this process may use it."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

from cuflash.errors import ProblemError


class Device(NamedTuple):
    """Everything a plan may depend on; tests make their own."""

    threads: int  # how many run at once
    fast_exp2: bool = False  # NumPy has exp2 for this CPU's vectors: twice as fast as exp


def cpu_device() -> Device:
    """The CPU: threads from CUFLASH_NUM_THREADS or the cores this process may use."""
    asked = os.environ.get("CUFLASH_NUM_THREADS")
    return Device(_threads_asked(asked) if asked else available_cores(), _fast_exp2())


@lru_cache
def _fast_exp2() -> bool:
    """Whether NumPy runs exp2 beyond its baseline, as it does with AVX-512; before NumPy 2.1 it cannot be asked."""
    try:
        from numpy.lib.introspect import opt_func_info
    except ImportError:
        return False
    loops = opt_func_info(func_name="^exp2$").get("exp2", {})
    return bool(loops) and not any(loop["current"].startswith("baseline") for loop in loops.values())


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
