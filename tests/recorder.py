"""A runtime that launches nothing but remembers what it was asked to launch, over arrays that nobody can read.

Arrays lie in plain memory: those of the emulator, or CuPy's own, which need no driver as long as nothing is computed.
From the struct of a launch `Launch.read` makes an array of what the kernel would find at an address with some strides,
so that tests compare numbers, not strides.
"""

from typing import NamedTuple

import numpy as np
import pytest
from addresses import array_at
from emulator import device_array
from emulator.device_array import DeviceArray

from cuflash import _dispatch, _kernels
from cuflash._cuda import Backend
from cuflash._device import Gpu
from cuflash._problem import arrays

DTYPES = (np.float16, "bfloat16", np.float32, np.float64)
INTEGERS_READ = {4: np.int32, 8: np.int64}


class Launch(NamedTuple):
    """One launch, with its struct unpacked."""

    kernel: str
    config: dict
    grid: int
    threads: int
    smem_bytes: int
    params: np.ndarray

    def read(self, address, strides, shape, dtype):
        """An array (*batch, head, row, col) of what lies there; `strides` is a struct of strides, in elements."""
        steps = [*strides["batch"], strides["head"], strides["row"], strides["col"]]
        assert len(shape) == len(steps)
        return look(address, shape, steps, dtype)


def look(address, shape, steps, dtype):
    """A view of memory by address, and strides in elements."""
    return array_at(address, shape, dtype, [int(step) * np.dtype(dtype).itemsize for step in steps])


class StandIn:
    """Arrays of the emulator, which can do whatever NumPy's can but be looked at."""

    home = "emulator"

    def __init__(self, patch):
        patch.setattr(device_array, "on_device", lambda values: True)
        patch.setitem(arrays._LIBRARIES, DeviceArray, self.home)
        self.kind = DeviceArray

    def make(self, values):
        return DeviceArray(values)

    def at(self, address, shape, dtype, strides):
        return DeviceArray(array_at(address, shape, dtype, strides))


class Cupy:
    """Arrays of the CuPy that is installed; what has to compute fails without a GPU."""

    home = "cupy"

    def __init__(self, patch):
        self._cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
        self.kind = self._cupy.ndarray

    def make(self, values):
        return self.at(values.ctypes.data, values.shape, values.dtype, values.strides, values)

    def at(self, address, shape, dtype, strides, owner=None):
        memory = self._cupy.cuda.memory
        pointer = memory.MemoryPointer(memory.UnownedMemory(address, 1 << 40, owner, device_id=0), 0)
        return self._cupy.ndarray(shape, dtype, pointer, strides)


KINDS = {"stand-in": StandIn, "cupy": Cupy}
_current = []  # the kind of arrays of the test that runs


def on_device(values):
    """An array of the device in the memory of a NumPy array."""
    return _current[-1].make(values)


def values_of(array):
    """A NumPy array in the memory of one of the device."""
    return look(array.data.ptr, array.shape, [step // array.dtype.itemsize for step in array.strides], array.dtype)


class Recorder:
    """`cuflash._runtime.Runtime` without a device."""

    def __init__(self, gpu, kind):
        self._gpu, self.kind, self.home = gpu, kind.kind, kind.home
        self.launches, self.made, self.moved, self.checked = [], [], [], {}
        self.current = 0
        self._kept = []

    @property
    def lasting(self):
        return self

    def gpu(self):
        return self._gpu

    def place(self):
        return (self.current,)

    def capturing(self):
        return False

    def check_current(self, function, **arrays):
        assert all(type(array) is self.kind for array in arrays.values())
        self.checked |= dict.fromkeys(arrays, function)

    def empty(self, shape, dtype):
        self.made.append((tuple(shape), np.dtype(dtype)))
        return self._keep(np.full(shape, 77, dtype))

    def zeros(self, shape, dtype):
        return self._keep(np.zeros(shape, dtype))

    def _keep(self, values):
        """Memory that tests may look at as long as the recorder is there, whoever has let go of it."""
        self._kept.append(values)
        return on_device(values)

    def asarray(self, host):
        assert type(host) is np.ndarray
        self.moved.append(host)
        return self._keep(host.copy())

    def array_at(self, address, shape, dtype, strides):
        return _current[-1].at(address, shape, dtype, strides)

    def assign(self, target, source):
        target[...] = source

    def pointer(self, array):
        return array.data.ptr

    def launch(self, spec, grid, threads, smem_bytes, params):
        unpacked = _kernels.KERNELS[spec.kernel].params.unpack(params)
        self.launches.append(Launch(spec.kernel, dict(spec.config), grid, threads, smem_bytes, unpacked))

    def names(self):
        """The kernels that were launched."""
        return [launch.kernel for launch in self.launches]


H200 = Gpu("sm_90a", 132, 227 << 10)


def install(patch, gpu=H200, kind="stand-in"):
    """A recorder that arrays of this kind are computed by from now on."""
    chosen = KINDS[kind](patch)
    patch.setattr("recorder._current", [chosen])
    recorder = Recorder(gpu, chosen)
    patch.setitem(_dispatch._backends, chosen.home, Backend(recorder))
    return recorder


def seen(launch, name, shape, dtype, problem=None):
    """What a kernel finds of a named array (*batch, head, row, col) of its struct."""
    problem = launch.params["problem"] if problem is None else problem
    whole = (*problem["batch"], *shape)
    if name in problem.dtype.names and problem[name].dtype.names:  # Reals
        return launch.read(problem[name]["data"], problem[name]["strides"], whole, dtype)
    return launch.read(problem[name], problem[f"{name}_strides"], whole, dtype)


def expect(found, array, batch, shape):
    """`found` has the numbers of `array` broadcast to (*batch, *shape), its batch axes merged or not."""
    np.testing.assert_array_equal(found.ravel(), np.broadcast_to(array, (*batch, *shape)).ravel())


def integers_seen(launch, name):
    """What a kernel finds of integers for all batch entries."""
    problem = launch.params["problem"]
    given = problem[name]
    if not given["data"]:
        return np.full(int(np.prod(problem["batch"])), given["value"])
    return look(given["data"], problem["batch"], given["batch"], INTEGERS_READ[int(given["bytes"])]).ravel()


def operands(normal, batches, hq=4, hk=2, lq=9, lk=7, d=3, dv=2, dtype="float32"):
    shapes = ((hq, lq, d), (hk, lk, d), (hk, lk, dv))
    return [normal(*batch, *shape, dtype=dtype, seed=i) for i, (batch, shape) in enumerate(zip(batches, shapes))]


def fill(launch, name, array, shape):
    """A kernel that counts up the elements of its output, in the order of C, fills the whole array in that order."""
    batch = launch.params["problem"]["batch"]
    target = launch.read(launch.params[name], launch.params[f"{name}_strides"], (*batch, *shape), array.dtype)
    target[...] = np.arange(target.size).reshape(target.shape)
    np.testing.assert_array_equal(values_of(array).ravel(), np.arange(target.size))
