"""Time and memory.

On the CPU peers take turns in one process, so a machine whose speed drifts is the same for all; on a GPU its own events
take the time, and the cache is flushed before each call.
"""

from __future__ import annotations

import math
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

# Seconds. The thread pools of the peer before spin on meanwhile, and then sleep: onnxruntime's for 0.04, OpenBLAS's for
# up to 0.09. A pause would do as well, but cores that have slept start slowly.
WARM = 0.1


class Peer(NamedTuple):
    """One way to compute something, its operands prepared as it likes them."""

    call: Callable[[], Any]  # what is timed
    result: Callable[[Any], Any] = lambda out: out  # what it returned, laid out as by cuflash; not timed


def relative_error(actual: Any, expected: Any) -> float:
    """Distance over the norm of what is expected; of several arrays the greatest."""
    if isinstance(expected, tuple):
        return float(np.max([relative_error(*pair) for pair in zip(actual, expected, strict=True)]))  # NaN stays NaN
    actual, expected = (np.asarray(x).astype(np.float64) for x in (actual, expected))
    if actual.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def alternate(calls: Mapping[str, Callable[[], Any]], rounds: int, number: int = 1) -> dict[str, list[float]]:
    """Seconds of each function in each round, called in turn; the mean of `number` calls.

    Each turn calls for `WARM` seconds before the calls that count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            warm = time.perf_counter() + WARM
            while time.perf_counter() < warm:
                call()
            start = time.perf_counter()
            for _ in range(number):
                call()
            seconds[name].append((time.perf_counter() - start) / number)
    return seconds


def compare(
    peers: Mapping[str, Peer], rounds: int, *, number: int = 1, unit: float = 1e3, digits: int = 4
) -> dict[str, Any]:
    """Columns of a table: the median time of each peer, its ratio to the first one's, and how sure they are.

    `unit` is how many of the table's units are a second. `spread, %` is half the distance between the quartiles, of
    the median, for the peer where it is greatest.
    """
    seconds = alternate({name: peer.call for name, peer in peers.items()}, rounds, number)
    median = {name: float(np.median(taken)) for name, taken in seconds.items()}
    first, *others = peers
    spread = max(np.ptp(np.percentile(taken, (25, 75))) / 2 / median[name] for name, taken in seconds.items())
    return {
        **{name: _rounded(unit * median[name], digits) for name in peers},
        **{f"{name} / {first}": _rounded(median[name] / median[first], digits) for name in others},
        "spread, %": round(100 * float(spread), 1),
    }


def _rounded(value: float, digits: int) -> float:
    """So many significant digits, more than which no clock here is good for."""
    return float(f"{value:.{digits}g}")


def peak_bytes(call: Callable[[], Any]) -> int:
    """Greatest sum of bytes that Python and NumPy allocated during a call and had not yet freed, its result apart."""
    tracemalloc.start()
    try:
        result = call()
        return tracemalloc.get_traced_memory()[1] - int(getattr(result, "nbytes", 0))
    finally:
        tracemalloc.stop()


# ---- GPU -----------------------------------------------------------------------------------------------------------

FEWEST, MOST = 5, 50  # rounds of one call
CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "utilization.gpu")  # as nvidia-smi names them


class GpuTimes(NamedTuple):
    """Of one call, in seconds."""

    median: float  # on the GPU
    spread: float  # half the distance between the quartiles, of the median
    host: float  # until the call returned, the mean
    rounds: int


def time_on_gpu(cupy: Any, call: Callable[[], Any], seconds: float = 0.2) -> GpuTimes:
    """Time a call whose work goes to CuPy's current stream, for about so long.

    Before each call twice the L2 cache is overwritten, so operands come from memory; that is also work enough for the
    GPU to be still busy when the host has handed over the call, so what is timed is the GPU's part alone. The first
    call, which may compile, does not count.
    """
    call()
    _wait(cupy)
    start = time.perf_counter()
    call()
    host = time.perf_counter() - start
    _wait(cupy)
    both = time.perf_counter() - start
    flush, one_flush = _flusher(cupy)
    flushes = max(1, math.ceil(2 * host / one_flush))
    rounds = min(MOST, max(FEWEST, int(seconds / (both + flushes * one_flush))))

    events, host = [], 0.0
    for _ in range(rounds):
        for _ in range(flushes):
            flush()
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        start = time.perf_counter()
        call()
        host += time.perf_counter() - start
        end.record()
        events.append((begin, end))
    _wait(cupy)
    taken = [1e-3 * cupy.cuda.get_elapsed_time(*pair) for pair in events]
    median = float(np.median(taken))
    spread = float(np.ptp(np.percentile(taken, (25, 75))) / 2 / median)
    return GpuTimes(median, spread, host / rounds, rounds)


def time_on_host(cupy: Any, call: Callable[[], Any], number: int = 300) -> float:
    """Seconds until a call returns, the mean, with a GPU that has nothing else to do; the work itself must be tiny."""
    for _ in range(10):
        call()
    _wait(cupy)
    start = time.perf_counter()
    for _ in range(number):
        call()
    taken = time.perf_counter() - start
    _wait(cupy)
    return taken / number


def read_clocks() -> dict[str, str]:
    """The first GPU's clocks and what may hold them back, as nvidia-smi says; nothing where it cannot be asked."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(CLOCKS, map(str.strip, printed.splitlines()[0].split(","))))


def _flusher(cupy: Any) -> tuple[Callable[[], Any], float]:
    """A function that overwrites twice the L2 cache, and the seconds that it takes."""
    runtime = cupy.cuda.runtime
    bytes_l2 = runtime.deviceGetAttribute(runtime.cudaDevAttrL2CacheSize, runtime.getDevice())
    room = cupy.empty(2 * bytes_l2, np.uint8)

    def flush() -> None:
        room.data.memset_async(0, room.nbytes)

    flush()
    _wait(cupy)
    start = time.perf_counter()
    for _ in range(10):
        flush()
    _wait(cupy)
    return flush, (time.perf_counter() - start) / 10


def _wait(cupy: Any) -> None:
    cupy.cuda.get_current_stream().synchronize()
