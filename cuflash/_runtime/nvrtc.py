"""From a variant to machine code, through CuPy's binding of NVRTC: no GPU and no driver is needed.

CuPy's own compile path is not used: it compiles for sm_90 where wgmma needs sm_90a, flushes denormals to zero, and its
cache does not look into included files.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from cuflash import _kernels, _sources
from cuflash._kernels import KernelSpec
from cuflash.errors import CompileError

INSTALL = (
    'pip install "cuflash[cuda13]", or for drivers of CUDA 12 "cuflash[cuda12]"; to compile only, '
    "pip install cupy-cuda13x nvidia-cuda-nvrtc"
)


class Compiled(NamedTuple):
    """What NVRTC made of a variant."""

    image: bytes  # a cubin, or PTX for a virtual architecture
    log: str  # with ptxas' report on registers

    @property
    def registers(self) -> int | None:
        """Registers of a thread; None for PTX."""
        return _number(r"Used (\d+) registers", self.log)

    @property
    def spill_bytes(self) -> int | None:
        """Bytes that a thread moves out of registers and back; None for PTX."""
        stores, loads = (_number(rf"(\d+) bytes spill {way}", self.log) for way in ("stores", "loads"))
        return None if stores is None or loads is None else stores + loads


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None


class Source(NamedTuple):
    """All that the compiler is given for a variant and an architecture, its own version apart."""

    variant: KernelSpec
    closure: _sources.Closure
    text: str
    options: tuple[str, ...]  # without the include path, which changes nothing

    @property
    def identity(self) -> str:
        """A digest: equal for what compiles to the same code."""
        lines = "\n".join([self.closure.digest, *self.options, "", self.text])
        return hashlib.sha256(lines.encode()).hexdigest()[:32]


def read_source(variant: KernelSpec, arch: str, extra: tuple[str, ...] = ()) -> Source:
    """Read a variant's files and write its entry.

    Arithmetic is IEEE: NVRTC's defaults keep denormals and round divisions and square roots correctly. Products and
    sums are contracted, which rounds once less.
    """
    file = _kernels.KERNELS[variant.kernel].file
    closure = _sources.read_closure(file, _sources.folder())
    text = _sources.entry_text(variant.kernel, closure, file, _kernels.instance(variant))
    return Source(variant, closure, text, ("--std=c++20", f"--gpu-architecture={arch}", "--ptxas-options=-v", *extra))


def compile_source(source: Source) -> Compiled:
    """Compile to a cubin where the architecture is a real one (sm_...), to PTX where it is virtual (compute_...).

    Raises
    ------
    CompileError
        NVRTC or CuPy is missing, or NVRTC refuses the text or an option.
    """
    nvrtc, root = _binding(), _sources.folder()
    options = (*source.options, f"-I{root}")
    # NVRTC looks for included files beside the program first, and beside a name without a folder lies the working
    # directory: a file there must not take the place of ours.
    name = root / f"{_sources.entry_name(source.variant.kernel)}.cu"
    program = nvrtc.createProgram(source.text, str(name), (), ())
    try:
        nvrtc.compileProgram(program, options)
        log = nvrtc.getProgramLog(program).rstrip("\0")
        if any("=compute_" in option for option in options):
            return Compiled(nvrtc.getPTX(program), log)
        return Compiled(_whole(nvrtc.getCUBIN(program)), log)
    except nvrtc.NVRTCError as error:
        known = ", ".join(map(str, supported_archs()))
        message = f"kernels: NVRTC {version()}, for compute capabilities {known}, refuses {source.variant}: {error}"
        raise CompileError(message, nvrtc.getProgramLog(program), options, _dump(source)) from error
    finally:
        nvrtc.destroyProgram(program)


def _whole(cubin: bytes) -> bytes:
    """A cubin with the last byte that CuPy 14.2 strips: it takes it for the end of a text.

    The file ends with its table of segments, whose place and size are in the header.
    """
    (offset,), (size, count) = struct.unpack_from("<Q", cubin, 32), struct.unpack_from("<HH", cubin, 54)
    return cubin + b"\0" * (offset + size * count - len(cubin))


def _dump(source: Source) -> str | None:
    """Write the text where a person can compile it again; always the same file for the same text."""
    path = Path(tempfile.gettempdir()) / f"cuflash-{source.identity}.cu"
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(source.text)
        os.replace(file.name, path)
    except OSError:
        return None
    return str(path)


def version() -> str:
    """NVRTC's version, such as "13.4". Builds that share it share what is cached.

    Telling builds apart takes an empty compilation, 25 to 40 ms at the first kernel of each process.
    """
    return ".".join(map(str, _binding().getVersion()))


def supported_archs() -> tuple[int, ...]:
    """Architectures that this NVRTC compiles for: 75 for sm_75."""
    return tuple(_binding().getSupportedArchs())


@lru_cache
def _binding() -> Any:
    """CuPy's module, after a look whether it finds the library."""
    try:
        from cupy.cuda import nvrtc
    except ImportError as error:
        raise CompileError(f"kernels: compiling them needs CuPy ({error}): {INSTALL}") from error
    try:
        nvrtc.getVersion()
    except (RuntimeError, OSError) as error:
        raise CompileError(f"kernels: CuPy does not find NVRTC ({error}): {INSTALL}") from error
    return nvrtc
