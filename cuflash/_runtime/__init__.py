"""Compiling and launching: the protocol that the GPU backend is written against, and the one over CuPy.

The files here: `nvrtc` makes machine code of text, `cache` keeps it on disk, `images` decides where the code of a
variant comes from, `cupy_runtime` knows devices, streams and launches. CuPy is imported in this folder only, inside
functions.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from cuflash._device import Gpu
from cuflash._kernels import KernelSpec

Array = Any


class Runtime(Protocol):
    """What a backend needs of the machine that it launches kernels on.

    Only `to_host` waits for the device. Everything else is put on the current stream of the current device.
    """

    @property
    def lasting(self) -> Runtime:
        """The runtime for what outlives a call: this one, unless a call is only written down."""

    def gpu(self) -> Gpu:
        """The current device."""

    def place(self) -> tuple[int, ...]:
        """A name for the current device, stream and thread: what is written on one is ready there and nowhere else."""

    def capturing(self) -> bool:
        """Whether what is put on the current stream goes into a graph."""

    def check_current(self, function: str, **arrays: Array) -> None:
        """Raise ProblemError, in the name of `function`, where an array lies on another device than the current one."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array in C order. ProblemError while a graph is captured: what it allocates would not outlive the call."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """As `empty`, filled."""

    def asarray(self, host: np.ndarray) -> Array:
        """A small array of the backend's own, not in pinned memory, on the device. ProblemError as in `empty`."""

    def array_at(self, address: int, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...]) -> Array:
        """An array of the current device by its address, whatever lies there; nothing is touched."""

    def assign(self, target: Array, source: Array) -> None:
        """``target[...] = source``, whatever their dtypes."""

    def pointer(self, array: Array) -> int:
        """Address of the first element of a view."""

    def launch(
        self, spec: KernelSpec, grid: int | tuple[int, ...], threads: int, smem_bytes: int, params: np.ndarray
    ) -> None:
        """Run a variant with one struct, as `Struct.pack` made it; a grid without blocks launches nothing.

        `smem_bytes` is dynamic shared memory of a block. A variant that this process has not launched on this device
        is read from disk or compiled, and that is a ProblemError while a graph is captured.
        """

    def to_host(self, array: Array) -> np.ndarray:
        """A copy on the host; waits for the current stream."""
