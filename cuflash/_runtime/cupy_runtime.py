"""The Runtime over CuPy. It has not run on a GPU yet: its tests drive it with a stand-in for CuPy."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np

from cuflash._device import Gpu, exact_arch
from cuflash._kernels import KernelSpec
from cuflash._runtime import Array, images
from cuflash._sources import entry_name
from cuflash.errors import ProblemError

SMEM_WITHOUT_ASKING = 48 << 10  # bytes; for more of it a function has to be told


class CupyRuntime:
    """Launches on CuPy's current device and stream."""

    def __init__(self) -> None:
        import cupy

        self._cupy: Any = cupy
        self._gpus: dict[int, Gpu] = {}
        self._functions: dict[tuple[int, KernelSpec], Any] = {}
        self._loading: dict[tuple[int, KernelSpec], threading.Lock] = {}

    @property
    def lasting(self) -> CupyRuntime:
        """Itself."""
        return self

    def gpu(self) -> Gpu:
        """The current device."""
        cuda = self._cupy.cuda
        device = cuda.runtime.getDevice()
        found = self._gpus.get(device)
        if found is None:
            capability = cuda.Device(device).compute_capability  # "90"
            runtime = cuda.runtime
            found = self._gpus[device] = Gpu(
                exact_arch(int(capability[:-1]), int(capability[-1])),
                runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, device),
                runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
            )
        return found

    def place(self) -> tuple[int, ...]:
        """A name for the current device and stream, and for the thread: the default stream may be one for each."""
        cuda = self._cupy.cuda
        return cuda.runtime.getDevice(), cuda.get_current_stream().ptr, threading.get_ident()

    def check_current(self, function: str, **arrays: Array) -> None:
        """Raise ProblemError where an array lies on another device than the current one."""
        device = self._cupy.cuda.runtime.getDevice()
        for name, array in arrays.items():
            if array.data.device_id != device:
                raise ProblemError(
                    f"{function}: `{name}` is on device {array.data.device_id}, but the current device is {device}: "
                    f"call within `with cupy.cuda.Device({array.data.device_id}):`, or move the array"
                )

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array in C order."""
        self._refuse_capture()
        return self._cupy.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array in C order, filled on the current stream."""
        self._refuse_capture()
        return self._cupy.zeros(shape, dtype)

    def asarray(self, host: np.ndarray) -> Array:
        """A small host array on the device; CuPy copies it into pinned memory first, and from there on the stream."""
        self._refuse_capture()
        return self._cupy.array(host)

    def array_at(self, address: int, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...]) -> Array:
        """An array of memory that CuPy neither owns nor looks at."""
        memory = self._cupy.cuda.memory
        device = self._cupy.cuda.runtime.getDevice()
        pointer = memory.MemoryPointer(memory.UnownedMemory(address, 0, None, device), 0)
        return self._cupy.ndarray(shape, dtype, pointer, strides)

    def assign(self, target: Array, source: Array) -> None:
        """By a kernel of CuPy's, on the current stream."""
        target[...] = source

    def pointer(self, array: Array) -> int:
        """Address of the first element of a view."""
        return int(array.data.ptr)

    def launch(
        self, spec: KernelSpec, grid: int | tuple[int, ...], threads: int, smem_bytes: int, params: np.ndarray
    ) -> None:
        """Run a variant on the current stream."""
        blocks = grid if isinstance(grid, tuple) else (grid,)
        if 0 in blocks:  # CuPy would launch one block
            return
        place = (self._cupy.cuda.runtime.getDevice(), spec)
        function = self._functions.get(place)
        if function is None:
            function = self._load(place, smem_bytes)
        function(blocks, (threads,), (params,), shared_mem=smem_bytes)

    def to_host(self, array: Array) -> np.ndarray:
        """A copy on the host; waits for the current stream."""
        return self._cupy.asnumpy(array)

    def _load(self, place: tuple[int, KernelSpec], smem_bytes: int) -> Any:
        """Put a variant on the device, once; other threads load other variants meanwhile.

        A variant's shared memory is the same at each launch.
        """
        spec = place[1]
        with self._loading.setdefault(place, threading.Lock()):
            if place in self._functions:
                return self._functions[place]
            if self.capturing():
                raise ProblemError(
                    f"kernels: {spec.kernel} is not on the device yet, and loading it cannot be captured in a graph: "
                    "make the same call once before the capture begins"
                )
            module = self._cupy.cuda.function.Module()
            module.load(images.obtain(spec, self.gpu().arch).image)
            function = module.get_function(entry_name(spec.kernel))
            if smem_bytes > SMEM_WITHOUT_ASKING:
                driver = self._cupy.cuda.driver
                attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                driver.funcSetAttribute(function.ptr, attribute, smem_bytes)
            self._functions[place] = function
            return function

    def capturing(self) -> bool:
        """Whether what is put on the current stream goes into a graph."""
        return bool(self._cupy.cuda.get_current_stream().is_capturing())

    def _refuse_capture(self) -> None:
        if self.capturing():
            raise ProblemError(
                "a graph is being captured, and memory that a call allocates would not outlive it: hand in "
                "`out`, `lse_out` (where lse is wanted) and `workspace`"
            )


@lru_cache(maxsize=1)
def runtime() -> CupyRuntime:
    """The one of this process."""
    return CupyRuntime()


def absence() -> str | None:
    """Why there is no runtime here, as words after "cupy: "; None where there is one."""
    try:
        import cupy
    except ImportError as error:
        return f"cannot be imported ({error})"
    try:
        return None if cupy.cuda.runtime.getDeviceCount() else "finds no GPU"
    except RuntimeError as error:  # no driver
        return f"finds no GPU ({error})"
