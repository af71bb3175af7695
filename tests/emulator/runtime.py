"""The runtime of the tests: the protocol of `cuflash._runtime`, with kernels that run on the machine.

A launch compiles the variant to PTX, translates it and runs it with every check on; a finding of the machine fails the
test that launched. Threads run in an order that changes from launch to launch but is the same in every run of a test.
"""

import ctypes
import functools
import itertools
from typing import NamedTuple

import numpy as np
from addresses import array_at

from cuflash import _kernels
from cuflash._device import Gpu
from cuflash._runtime import images
from cuflash.errors import ProblemError
from emulator import build, memory
from emulator.device_array import DeviceArray
from emulator.library import Config, machine
from emulator.ptx.translate import translate

ARCH = "compute_90"  # of the PTX that runs
LATE, AT_ONCE, RANDOMLY = range(3)  # when copies land
GPU = Gpu("sm_90a", sms=4, smem_block=227 * 1024)


# What a launch may write, by the fields of its struct, each byte once; all else is read-only.
WRITTEN = {
    "fwd_mma": {"out", "part_outs", "lse", "sum"}, "fwd_simt": {"out", "part_outs", "lse", "sum"},
    "weights_simt": {"weights"}, "bwd_prepare": {"delta"}, "bwd_q_simt": {"dq.data"},
    "bwd_kv_simt": {"dk.data", "dv.data"}, "bwd_bias_simt": {"dbias.data"}, "bwd_sinks": {"dsinks.data"},
    "sum_axes": {"out"}, "merge": {"out", "lse"}, "rotary": {"out"},
    "decode_mma": {"out", "lse"}, "decode_fma": {"out", "lse"}, "decode_simt": {"out", "lse"},
    "kv_append": {"cache.k", "cache.v", "cache.k_scale", "cache.v_scale"},
    "copy_pages": {"arrays"}, "scatter": {"at"},
}  # fmt: skip
# What blocks tell each other in one launch. Several run together then, and the order of all accesses is checked.
BETWEEN_BLOCKS = {
    "decode_mma": {"part_outs", "part_sums", "tickets"},
    "decode_fma": {"part_outs", "part_sums", "tickets"},
    "decode_simt": {"part_outs", "part_sums", "tickets"},
    "kv_append": {"lengths", "dropped", "tickets"},
}


class Finding(AssertionError):
    """The machine saw a kernel do what it must not."""


class Kernel(NamedTuple):
    """A translated variant."""

    function: ctypes.c_void_p
    param_bytes: int
    static_shared_bytes: int
    max_threads: int


class EmulatorRuntime:
    """`cuflash._runtime.Runtime` on the machine. `in_capture` stands for CuPy's stream."""

    def __init__(self, folder):
        self.folder = folder
        self.in_capture = False
        self.launches = []  # names of kernels
        self.host_reads = 0
        self.shared_bases = itertools.cycle((0x400, 0x480))
        self.landings = itertools.cycle((LATE, AT_ONCE, RANDOMLY))
        self.settings = {"schedule": 2, "block_order": 2, "checks": 1}  # and what else is not to change by itself
        self._kernels = {}

    @property
    def lasting(self):
        return self

    def gpu(self):
        return GPU

    def place(self):
        return (0,)

    def capturing(self):
        return self.in_capture

    def check_current(self, function, **arrays):
        pass

    def empty(self, shape, dtype):
        if self.in_capture:
            raise ProblemError("attention: an array would be allocated while a graph is captured")
        return DeviceArray(memory.empty(shape, dtype))

    def zeros(self, shape, dtype):
        array = self.empty(shape, dtype)
        array._values.view(np.uint8 if array.size else array.dtype)[...] = 0
        return array

    def asarray(self, host):
        if self.in_capture:
            raise ProblemError("attention: an array would be allocated while a graph is captured")
        return DeviceArray(memory.allocate(np.asarray(host)))

    def array_at(self, address, shape, dtype, strides):
        return DeviceArray(array_at(address, shape, dtype, strides))

    def assign(self, target, source):
        target[...] = source

    def pointer(self, array):
        return array._values.ctypes.data

    def to_host(self, array):
        self.host_reads += 1
        return array._values.copy()

    def launch(self, spec, grid, threads, smem_bytes, params):
        """As the protocol says; raises Finding."""
        grid = (grid,) if isinstance(grid, int) else tuple(grid)
        assert smem_bytes <= GPU.smem_block
        if 0 in grid:
            return
        kernel = self.kernel(spec)
        assert kernel.max_threads == threads, (spec, kernel, threads)
        assert kernel.param_bytes == params.nbytes, (spec, kernel, params.nbytes)
        self.launches.append(spec.kernel)
        number = len(self.launches)
        resident = 3 if spec.kernel in BETWEEN_BLOCKS else 1
        self.describe(spec.kernel, params)
        settings = {"seed": number, "shared_base": next(self.shared_bases), "landing": next(self.landings)}
        config = Config(resident_blocks=resident, **settings | self.settings)
        machine().machine_configure(ctypes.byref(config))
        shape = (ctypes.c_uint32 * 3)(*grid, *(1,) * (3 - len(grid)))
        block = (ctypes.c_uint32 * 3)(threads, 1, 1)
        raw = np.frombuffer(aligned(params.tobytes()), np.uint8)
        shared_bytes = kernel.static_shared_bytes + smem_bytes
        found = machine().machine_launch(kernel.function, shape, block, shared_bytes, raw.ctypes.data)
        if found:
            raise Finding(f"{spec}, launch {number}\n{machine().machine_report().decode()}")

    def describe(self, kernel, params):
        """Give the arrays of a launch their names in its struct, and say what may be done with them."""
        if kernel not in WRITTEN:  # a probe, which says it itself
            return
        written, shared = WRITTEN[kernel], BETWEEN_BLOCKS.get(kernel, set())
        flags = {}
        for name, offset in pointers(_kernels.KERNELS[kernel].params.dtype):
            allocation = memory.at(int.from_bytes(params.tobytes()[offset : offset + 8], "little"))
            if allocation is not None:
                use = memory.BETWEEN_BLOCKS if name in shared else memory.WRITE_ONCE if name in written else 0
                names, uses = flags.setdefault(allocation, ([], set()))
                names.append(name)
                uses.add(use)
        for allocation, (names, uses) in flags.items():
            allocation.describe(" or ".join(names), max(uses) or memory.READ_ONLY)

    def kernel(self, spec):
        """The translated variant; compiled once for each text."""
        found = self._kernels.get(spec)
        if found is None:
            ptx = images.obtain(spec, ARCH, ("-lineinfo",)).image
            translation = translate(ptx.decode().rstrip("\0"))
            (facts,) = translation.kernels.values()
            library = build.kernel(translation.cpp, self.folder)
            function = ctypes.cast(getattr(library, f"kernel_{facts.name}"), ctypes.c_void_p)
            found = Kernel(function, facts.param_bytes, facts.static_shared_bytes, facts.max_threads)
            self._kernels[spec] = found
        return found


@functools.cache
def pointers(dtype, name="", offset=0):
    """Names and offsets of the pointers in a struct: its fields of unsigned 64-bit numbers."""
    if dtype.subdtype is not None:
        element, shape = dtype.subdtype
        parts = [pointers(element, name, offset + i * element.itemsize) for i in range(int(np.prod(shape)))]
        return [pointer for part in parts for pointer in part]
    if dtype.fields is None:
        return [(name, offset)] if dtype == np.uint64 else []
    return [
        pointer
        for key, (field, start) in ((key, dtype.fields[key][:2]) for key in dtype.names)
        for pointer in pointers(field, f"{name}.{key}" if name else key, offset + start)
    ]


def aligned(data, alignment=64):
    """A copy of bytes at a multiple of `alignment`."""
    buffer = np.zeros(len(data) + alignment, np.uint8)
    start = -buffer.ctypes.data % alignment
    buffer[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return buffer[start : start + len(data)]
