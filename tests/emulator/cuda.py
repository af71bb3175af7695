"""Kernels in CUDA C++ for the tests of the translator: NVRTC makes PTX, and a cubin of the same text, so that ptxas has
read every instruction; the PTX is translated and runs on the machine.
"""

import functools

from kernels import need_nvrtc

from emulator import build, library
from emulator.ptx.translate import translate
from emulator.small_kernels import machine_folder, run_function

ARCH = "90a"


class CompileFailure(Exception):
    """NVRTC or ptxas refused the text."""


@functools.cache
def compile_text(source, target, *options):
    """What NVRTC makes of a text for "compute_90a" (PTX, as text) or "sm_90a" (a cubin)."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, ("--std=c++20", "-lineinfo", f"--gpu-architecture={target}", *options))
        if target.startswith("sm_"):
            return nvrtc.getCUBIN(program)
        ptx = nvrtc.getPTX(program)
        return (ptx.decode() if isinstance(ptx, bytes) else ptx).rstrip("\0")
    except nvrtc.NVRTCError as error:
        raise CompileFailure(nvrtc.getProgramLog(program)) from error
    finally:
        nvrtc.destroyProgram(program)


class Kernels:
    """The kernels of a CUDA C++ text, or of a PTX text. `ptx` and `translation` are there to look at."""

    def __init__(self, folder, ptx):
        self.ptx = ptx
        self.translation = translate(ptx)
        self.library = build.kernel(self.translation.cpp, folder)

    def run(self, name, *arrays, grid=1, block=32, shared=0, **config):
        """Launch with the arrays' addresses as parameters; `shared` bytes are the dynamic ones."""
        facts = self.translation.kernels[name]
        assert facts.param_bytes == 8 * len(arrays), facts
        function = getattr(self.library, f"kernel_{name}")
        return run_function(function, arrays, grid, block, facts.static_shared_bytes + shared, **config)


def cuda_kernels(pytestconfig, source, arch=ARCH, *options):
    """The kernels of a CUDA C++ text; skips the test where g++ or NVRTC is missing."""
    need_nvrtc()
    folder = machine_folder(pytestconfig)
    library.load(folder)
    compile_text(source, f"sm_{arch}", *options)
    return Kernels(folder, compile_text(source, f"compute_{arch}", *options))
