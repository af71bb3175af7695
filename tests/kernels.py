"""What the tests of compiling share: whether NVRTC is here, a kernel of three small files, and new processes."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cuflash import _kernels, _params, _sources
from cuflash._runtime import nvrtc
from cuflash.errors import CompileError

ROOT = Path(__file__).parent.parent
ARCH = "sm_80"

TINY = {
    "tiny.cu": """// tiny.cu -- y = 2 x.
#include "core/twice.cuh"
namespace cf {
template <TinyConfig CONFIG> struct Tiny {
    struct Params { const float* x; float* y; };
    static constexpr int THREADS = CONFIG.threads, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;
    static __device__ void run(const Params& params) { params.y[threadIdx.x] = twice(params.x[threadIdx.x]); }
};
}
""",
    "core/twice.cuh": """#pragma once
#include "platform.cuh"
namespace cf { __device__ inline float twice(float x) { return FACTOR * x; } }
""",
    "core/platform.cuh": """#pragma once
namespace cf { constexpr float FACTOR = 2; struct TinyConfig { int threads; }; }
""",
}
TINY_PARAMS = _params.Struct("Tiny<TinyConfig{.threads = 32}>::Params", x="u8", y="u8")
CONFIGS = [(("threads", threads),) for threads in (32, 64)]
LINE = _kernels.Kernel("tiny.cu", "Tiny", "TinyConfig", TINY_PARAMS, lambda wanted: CONFIGS)
VARIANT = _kernels.spec("tiny", threads=32)
SPECIAL = nvrtc.Compiled(bytes(range(256)) * 40, "ptxas info    : Used 18 registers\n")  # what nobody compiled


def write_tiny(root):
    """The kernel's files in a new folder."""
    for name, text in TINY.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def use_tiny(root, patch):
    """Make it the only kernel there is."""
    patch.setattr(_sources, "folder", lambda: root)
    patch.setattr(_kernels, "KERNELS", {"tiny": LINE})


@functools.cache
def missing_nvrtc():
    """Why nothing can be compiled here, or None."""
    try:
        nvrtc.version()
    except CompileError as error:
        return str(error)
    return None


def need_nvrtc():
    """Skip the test where NVRTC is missing; fail it where CUFLASH_REQUIRE lists nvrtc."""
    reason = missing_nvrtc()
    if reason and "nvrtc" in os.environ.get("CUFLASH_REQUIRE", "").split(","):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def start_python(code, **environment):
    """A new process that runs `code`, with the tests' folder to import from."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """What a process printed, when it has ended well."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out
