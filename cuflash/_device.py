"""What a device can do, as a small value that planning reads: the CPU as this process may use it, or a GPU."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

from cuflash.errors import ProblemError


class Device(NamedTuple):
    """Everything a plan may depend on; tests make their own."""

    threads: int  # how many run at once


class Gpu(NamedTuple):
    """A GPU, as plans and the compiler need it."""

    arch: str  # as in `exact_arch`
    sms: int  # multiprocessors
    smem_block: int  # bytes of shared memory that a block may ask for


def exact_arch(major: int, minor: int) -> str:
    """The architecture that code for just this compute capability is compiled for, as NVRTC calls it.

    The instructions of the tensor cores and of copies of 9.0 to 11.x exist in architectures named with an `a` only;
    code for those runs on that one capability. Other code runs on later minors of its major too.

    >>> exact_arch(8, 9), exact_arch(9, 0), exact_arch(12, 0)
    ('sm_89', 'sm_90a', 'sm_120')
    """
    return f"sm_{major}{minor}{'a' if 9 <= major <= 11 else ''}"


def capability(arch: str) -> int:
    """The compute capability in an architecture's name.

    >>> capability("sm_90a"), capability("compute_120")
    (90, 120)
    """
    return int(arch.partition("_")[2].rstrip("a"))


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
