"""What the manuals of CUDA and CuPy leave open and later kernels depend on, tried with small kernels of their own.

None of it is a part of cuflash. A question's result is what was seen; a wrong number in an answer is an error.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from cuflash._bench.timing import time_on_gpu, time_on_host
from gpu.child import Cases, LeftOut, Settings

SIDE, BOX = 64, 32  # of a matrix of float32, and of the part that a tensor map fetches
SCALARS = 60  # arguments of a kernel
STRUCT = 700  # bytes of a kernel's one argument

FETCH = r"""
struct alignas(128) TensorMap { unsigned char bytes[128]; };
extern "C" __global__ void fetch(const __grid_constant__ TensorMap map, float* out, int x, int y) {
    __shared__ alignas(128) float tile[32 * 32];
    __shared__ alignas(8) unsigned long long arrived;
    const unsigned barrier = unsigned(__cvta_generic_to_shared(&arrived));
    const unsigned target = unsigned(__cvta_generic_to_shared(tile));
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(barrier) : "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 4096;" :: "r"(barrier) : "memory");
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
            :: "r"(target), "l"(&map), "r"(x), "r"(y), "r"(barrier) : "memory");
    }
    unsigned done = 0;
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(barrier) : "memory");
    for (int i = threadIdx.x; i < 32 * 32; i += blockDim.x) out[i] = tile[i];
}
"""
RANKS = r"""
__device__ void write_ranks(int* out) {
    unsigned rank, size;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    if (threadIdx.x == 0) { out[2 * blockIdx.x] = rank; out[2 * blockIdx.x + 1] = size; }
}
extern "C" __global__ void __cluster_dims__(2, 1, 1) fixed(int* out) { write_ranks(out); }
extern "C" __global__ void chosen(int* out) { write_ranks(out); }
"""
NAMES = [f"x{i}" for i in range(SCALARS)]
ARGUMENTS = f"""
struct Many {{ long long x[{STRUCT // 8}]; int tail; }};
extern "C" __global__ void one(const __grid_constant__ Many many, long long* out) {{
    if (many.tail == -1) *out = many.x[0];
}}
extern "C" __global__ void sixty({", ".join(f"long long {name}" for name in NAMES)}, long long* out) {{
    if (x0 == -1) *out = {" + ".join(NAMES)};
}}
"""
START = r"""
extern "C" __global__ void start(int* out) {
    extern __shared__ __align__(1024) unsigned char dynamic[];
    *out = int(__cvta_generic_to_shared(dynamic));
}
"""


def cases(settings: Settings) -> Cases:
    """One case for each question: an answer that crashes costs none of the others."""
    yield "tensor map by value", fetch_by_tensor_map
    yield "__cluster_dims__ through cuLaunchKernel", launch_fixed_cluster
    yield "cuLaunchKernelEx while a graph is captured", capture_chosen_cluster
    yield "many arguments or one struct", launch_arguments
    yield "start of dynamic shared memory", read_start


@cache
def module(text: str) -> Any:
    """Compiled by CuPy for this device."""
    import cupy

    return cupy.RawModule(code=text, backend="nvrtc", options=("--std=c++17",))


@cache
def driver() -> Any:
    """libcuda, which CuPy has loaded already."""
    return ctypes.CDLL("libcuda.so.1")


def succeed(status: int, function: str) -> None:
    """Raise where a function of the driver does not return 0."""
    if status:
        raise RuntimeError(f"{function} returned {status}")


def need_hopper() -> None:
    """Tensor maps and clusters exist from compute capability 9.0 on."""
    import cupy

    capability = cupy.cuda.Device().compute_capability
    if int(capability) < 90:
        raise LeftOut(f"needs compute capability 9.0, this is {capability}")


def encode_tensor_map(address: int) -> np.ndarray:
    """A map of a SIDE x SIDE matrix of float32 in boxes of BOX x BOX, as 128 raw bytes."""
    room = ctypes.create_string_buffer(256)
    start = -ctypes.addressof(room) % 128
    sizes, strides = (ctypes.c_uint64 * 2)(SIDE, SIDE), (ctypes.c_uint64 * 1)(4 * SIDE)
    box, steps = (ctypes.c_uint32 * 2)(BOX, BOX), (ctypes.c_uint32 * 2)(1, 1)
    float32, rank, plain = 7, 2, (0, 0, 0, 0)  # no interleaving, swizzling, promotion or filling with NaN
    place = ctypes.c_void_p(ctypes.addressof(room) + start)
    arguments = (place, float32, rank, ctypes.c_void_p(address), sizes, strides, box, steps, *plain)
    succeed(driver().cuTensorMapEncodeTiled(*arguments), "cuTensorMapEncodeTiled")
    return np.frombuffer(room.raw[start : start + 128], "V128").reshape(())


def fetch_by_tensor_map() -> dict[str, Any]:
    """A map of 128 bytes as a kernel's argument, `const __grid_constant__`, through CuPy's launch."""
    import cupy

    need_hopper()
    x = cupy.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    out = cupy.zeros((BOX, BOX), np.float32)
    where = (np.int32(16), np.int32(24))  # column and row
    module(FETCH).get_function("fetch")((1,), (128,), (encode_tensor_map(x.data.ptr), out, *where))
    right = bool((out == x[24 : 24 + BOX, 16 : 16 + BOX]).all())
    if not right:
        raise AssertionError(f"fetched {out[0, :4]}, expected {x[24, 16:20]}")
    return {"works": True}


def check_ranks(out: Any) -> None:
    """Two blocks of each cluster, in order."""
    found = out.get().reshape(-1, 2).tolist()
    if found != [[block % 2, 2] for block in range(len(found))]:
        raise AssertionError(f"ranks and sizes of clusters are {found}")


def launch_fixed_cluster() -> dict[str, Any]:
    """A kernel whose source fixes the cluster, launched as any other."""
    import cupy

    need_hopper()
    out = cupy.full(2 * 4, -1, np.int32)
    module(RANKS).get_function("fixed")((4,), (64,), (out,))
    check_ranks(out)
    return {"works": True}


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute with the size of a cluster."""

    _fields_ = [
        ("id", ctypes.c_uint),
        ("pad", ctypes.c_uint),
        ("cluster", ctypes.c_uint * 3),
        ("rest", ctypes.c_ubyte * 52),
    ]


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("count", ctypes.c_uint),
    ]


CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION


def capture_chosen_cluster() -> dict[str, Any]:
    """A cluster chosen at launch, by ctypes on libcuda, into a graph that CuPy's stream captures."""
    import cupy

    need_hopper()
    function = module(RANKS).get_function("chosen")
    out = cupy.full(2 * 4, -1, np.int32)
    attribute = LaunchAttribute(id=CLUSTER_DIMENSION, cluster=(2, 1, 1))
    pointer = ctypes.c_void_p(out.data.ptr)
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(pointer))
    stream = cupy.cuda.Stream(non_blocking=True)
    config = LaunchConfig((4, 1, 1), (64, 1, 1), 0, stream.ptr, ctypes.pointer(attribute), 1)
    kernel = ctypes.c_void_p(function.kernel.ptr)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        try:
            status = driver().cuLaunchKernelEx(ctypes.byref(config), kernel, arguments, None)
        finally:
            graph = stream.end_capture()
        succeed(status, "cuLaunchKernelEx")
        stream.synchronize()
        if (out != -1).any():
            raise AssertionError("the kernel ran while it was captured")
        graph.launch()
        stream.synchronize()
    check_ranks(out)
    return {"works": True}


def launch_arguments() -> dict[str, Any]:
    """Microseconds of a launch: of the host, and between events."""
    import cupy

    out = cupy.zeros(1, np.int64)
    many = np.zeros((), f"V{(STRUCT // 8 + 1) * 8}")
    one, sixty = (module(ARGUMENTS).get_function(name) for name in ("one", "sixty"))
    scalars = tuple(np.int64(i) for i in range(SCALARS))
    calls = {
        f"one struct of {many.nbytes} bytes": lambda: one((1,), (32,), (many, out)),
        f"{SCALARS} arguments": lambda: sixty((1,), (32,), (*scalars, out)),
    }
    found = {}
    for name, call in calls.items():
        on_gpu = time_on_gpu(cupy, call)
        found[name] = {"host us": round(1e6 * time_on_host(cupy, call), 2), "GPU us": round(1e6 * on_gpu.median, 2)}
    return found


def read_start() -> dict[str, int]:
    """Where dynamic shared memory lies that asks for an alignment of 1024."""
    import cupy

    out = cupy.zeros(1, np.int32)
    module(START).get_function("start")((1,), (32,), (out,), shared_mem=2048)
    address = int(out[0])
    return {"address": address, "modulo 1024": address % 1024}
