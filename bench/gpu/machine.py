"""What a figure must carry to mean anything: the GPU and its clocks, versions, digests of the sources, and the two
ceilings that any kernel here works under, as they are measured and not as they are printed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import time
from importlib import metadata
from typing import Any

import numpy as np

from cuflash import _sources
from cuflash._bench import report, timing
from cuflash.errors import CompileError
from gpu.child import Cases, Settings

PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "torch", "triton", "numpy", "scipy", "ml_dtypes", "pytest", "pytest-xdist",
            "hypothesis", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "nvidia-cudnn-cu13")  # fmt: skip
COPIED = 2 << 30  # bytes
SIZE = 8192  # rows and columns of the products


def cases(settings: Settings) -> Cases:
    """The machine before anything else runs."""
    yield "gpu", read_gpu
    yield "clocks", timing.read_clocks
    yield "versions", read_versions
    yield "digests", read_digests


def ceilings(settings: Settings) -> Cases:
    """Bytes and operations a second of other people's best kernels; clocks right behind them, and when it is calm."""
    yield "copy", measure_copy
    for dtype in ("float16", "float32", "float64"):
        yield f"product, {dtype}", lambda dtype=dtype: measure_product(dtype)
    yield "clocks", timing.read_clocks


def name() -> str:
    """The current GPU's; an error where there is none."""
    import cupy

    return cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()


def read_gpu() -> dict[str, Any]:
    """What CUDA says of the device and itself."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    numbers = ("major", "minor", "multiProcessorCount", "totalGlobalMem", "l2CacheSize", "sharedMemPerBlockOptin",
               "regsPerMultiprocessor", "memoryBusWidth")  # fmt: skip
    found: dict[str, Any] = {key: int(properties[key]) for key in numbers if key in properties}
    found |= {"name": name(), "devices": runtime.getDeviceCount()}
    found |= {"CUDA of the driver": runtime.driverGetVersion(), "CUDA of CuPy": runtime.runtimeGetVersion()}
    asked = subprocess.run(
        ["nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    return {**found, "driver": asked.stdout.strip() or "unknown"}


def read_versions() -> dict[str, Any]:
    """Of everything that has a part in a figure; NVRTC as the loader finds it."""
    from cuflash._runtime import nvrtc

    versions: dict[str, Any] = {name: metadata.version(name) for name in PACKAGES if report.installed(name)}
    try:
        versions["NVRTC"] = nvrtc.version()
    except CompileError as error:
        versions["NVRTC"] = str(error)
    machine = {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}
    return {**versions, **machine, "cpu": report.machine()["cpu"]}


def read_digests() -> dict[str, str]:
    """Of the kernels' sources and of the modules that a call runs through."""
    return {"rawkernels": kernels_digest(), "sources": report.sources_digest()}


def kernels_digest() -> str:
    """Short digest of every kernel source, probes apart: a figure taken with others is out of date."""
    root = _sources.folder()
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.cu*")):
        place = path.relative_to(root).as_posix()
        if not place.startswith("probes/"):
            digest.update(f"{place}\n{path.read_text(encoding='utf-8')}".encode())
    return digest.hexdigest()[:12]


def measure_copy() -> dict[str, float]:
    """From the device to the device; bytes read and bytes written both count."""
    import cupy

    source, target = cupy.ones(COPIED, np.uint8), cupy.empty(COPIED, np.uint8)
    taken = timing.time_on_gpu(cupy, lambda: cupy.copyto(target, source), 1.0)
    return {"TB/s": 2e-12 * COPIED / taken.median, "spread": taken.spread}


def measure_product(dtype: str) -> dict[str, float]:
    """One large square product through cuBLAS, of random numbers."""
    import cupy

    a, b = (cupy.random.standard_normal((SIZE, SIZE), np.float32).astype(dtype) for _ in range(2))
    taken = timing.time_on_gpu(cupy, lambda: a @ b, 1.0)
    return {"TFLOP/s": 2e-12 * SIZE**3 / taken.median, "spread": taken.spread}


def after(settings: Settings) -> Cases:
    """The clocks when all is over, and again when the GPU has cooled for a moment."""
    yield "clocks", timing.read_clocks
    yield "clocks, calm", lambda: time.sleep(2) or timing.read_clocks()
