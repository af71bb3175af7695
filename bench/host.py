"""What calls on CuPy arrays cost the host, measured without a GPU: ``python bench/host.py [--json FILE]``.

The arrays are CuPy's own, over memory of the host; a runtime stands in that launches nothing and allocates nothing. So
what is missing is what CuPy itself takes to look up device and stream, to allocate, and to launch. Microseconds are
medians of means over 500 calls: of a call that is found again, and of the same call by the long way, which is what its
first time takes.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import cupy
import numpy as np

import cuflash
from cuflash import _dispatch
from cuflash._bench import report
from cuflash._bench.report import Bar, Row, Table
from cuflash._bench.timing import Peer, compare
from cuflash._cuda import Backend
from cuflash._device import Gpu

CALLS = 500
MOST = 25  # us that a call may take
H200 = Gpu("sm_90a", 132, 227 << 10)


class Nowhere:
    """A runtime on whose device nothing happens; all that is allocated lies at one place."""

    def __init__(self) -> None:
        self.lasting = self
        self._memory = np.zeros(1 << 26, np.uint8)

    def gpu(self) -> Gpu:
        """The one that calls are planned for."""
        return H200

    def place(self) -> tuple[int, ...]:
        """The only one."""
        return (0,)

    def capturing(self) -> bool:
        """Never."""
        return False

    def check_current(self, function: str, **arrays: Any) -> None:
        """It is one device."""
        assert all(array.data.device_id == 0 for array in arrays.values())

    def array_at(self, address: int, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None) -> Any:
        """As `cuflash._runtime.cupy_runtime` does it."""
        memory = cupy.cuda.memory.UnownedMemory(address, 0, None, device_id=0)
        return cupy.ndarray(shape, dtype, cupy.cuda.memory.MemoryPointer(memory, 0), strides)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """What is written there is lost."""
        return self.array_at(self._memory.ctypes.data, shape, dtype, None)

    def own(self, array: np.ndarray) -> Any:
        """An array of memory of its own."""
        memory = cupy.cuda.memory.UnownedMemory(array.ctypes.data, array.nbytes, array, device_id=0)
        return cupy.ndarray(array.shape, array.dtype, cupy.cuda.memory.MemoryPointer(memory, 0))

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Memory of its own."""
        return self.own(np.zeros(shape, dtype))

    def asarray(self, host: np.ndarray) -> Any:
        """A copy."""
        return self.own(host.copy())

    def pointer(self, array: Any) -> int:
        """Where an array begins."""
        return int(array.data.ptr)

    def launch(self, *launch: Any) -> None:
        """Nothing."""


def main() -> None:
    """Print microseconds of each function."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    given = parser.parse_args()
    runtime = Nowhere()
    _dispatch.register("cupy", cupy.ndarray, Backend(runtime))
    rows = [
        {"call": name, **compare(ways, given.rounds, number=CALLS, unit=1e6)} for name, ways in calls(runtime).items()
    ]
    report.finish(
        [Table("calls on CuPy arrays, float16, us of the host", rows, bars(rows))], given.json, "cupy-cuda13x"
    )


def bars(rows: list[Row]) -> list[Bar]:
    """No call is to take longer than MOST."""
    return [Bar(f"{row['call']}, us", row["cuflash"], "<=", MOST) for row in rows]


def calls(runtime: Nowhere) -> dict[str, dict[str, Peer]]:
    """Each by both ways."""

    def array(*shape: int) -> Any:
        return runtime.zeros(shape, np.float16)

    x, token, starts = array(2, 8, 128, 64), array(2, 8, 64), runtime.asarray(np.arange(0, 257, 128))
    packed, lse = array(256, 8, 64), runtime.zeros((2, 8, 128), np.float32)
    rows = cuflash.KVCache(2, 1024, 8, 64, dtype=np.float16, xp=cupy)
    pages = cuflash.PagedKVCache(128, 16, 8, 64, dtype=np.float16, xp=cupy)
    pages.add(), pages.add()
    for cache in (rows, pages):
        cache.append(x, x)
    found = {
        "attention": (cuflash.attention, (x, x, x), {"causal": True}),
        "attention, out": (cuflash.attention, (x, x, x), {"causal": True, "out": array(*x.shape)}),
        "attention_backward": (cuflash.attention_backward, (x, x, x, x, x, lse), {"causal": True}),
        "attention_varlen": (cuflash.attention_varlen, (packed, packed, packed, starts, starts), {"causal": True}),
        "rotary": (cuflash.rotary, (x, runtime.asarray(np.arange(128))), {}),
        "decode, rows": (cuflash.decode, (token, rows), {"out": array(*token.shape)}),
        "decode, pages": (cuflash.decode, (token, pages), {"out": array(*token.shape)}),
    }
    ways = {
        name: {
            "cuflash": Peer(partial(function, *args, **options)),
            "the long way": Peer(partial(function.__wrapped__, *args, **options)),
        }
        for name, (function, args, options) in found.items()
    }
    for name, cache in (("append, rows", rows), ("append, pages", pages)):
        ways[name] = {
            "cuflash": Peer(partial(append, cache, x[:, :, :1])),
            "the long way": Peer(partial(append, cache, x[:, :, :1], forget=True)),
        }
    return ways


def append(cache: Any, new: Any, forget: bool = False) -> None:
    """A token for each sequence, always at the same place."""
    if forget:
        cache._calls.clear()
    cache.append(new, new)
    cache._lengths.settle(128)


if __name__ == "__main__":
    main()
