"""Time and memory on the CPU: peers take turns in one process, so a machine whose speed drifts is the same for all."""

from __future__ import annotations

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
