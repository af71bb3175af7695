"""Compiles the machine, and translated kernels against it, with g++; what has been compiled is kept by content.

A library's name is the digest of all that went into it: sources, flags, compiler and processor. It is written under
another name and moved into place, so that any number of processes may build into one folder.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-fPIC", "-shared", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv")
MACHINE_FLAGS = (*FLAGS, "-O2", "-ftree-vectorize", "-fno-semantic-interposition", "-Wl,-Bsymbolic")
# A register that the kernel reads before it writes it holds a pattern, the same one in every run.
KERNEL_FLAGS = (*FLAGS, "-O0", "-ftrivial-auto-var-init=pattern", "-w")
refused = {}  # messages by path: a source that does not compile is tried once


class CompilerError(Exception):
    """g++ refused a source: its messages, and where the source lies."""


def available():
    """Whether there is a compiler."""
    return shutil.which("g++") is not None


def machine(folder):
    """The path of the machine's library in `folder`."""
    files = sorted((HERE / "machine").glob("*.?pp"))
    name = f"libmachine-{digest(MACHINE_FLAGS, files)}.so"
    source = "".join(f'#include "machine/{path.name}"\n' for path in files if path.suffix == ".cpp")
    return compiled(Path(folder) / name, source, [*MACHINE_FLAGS, f"-Wl,-soname,{name}"])


def kernel(source, folder):
    """A translated C++ text, compiled and loaded: its `extern "C"` functions are attributes."""
    headers = [HERE / "machine" / "machine.hpp", *sorted((HERE / "ptx" / "prelude").glob("*.hpp"))]
    library = machine(folder)
    path = library.with_name(f"kernel-{digest((*KERNEL_FLAGS, library.name, source), headers)}.so")
    return ctypes.CDLL(str(compiled(path, source, [*KERNEL_FLAGS, str(library), "-Wl,-rpath,$ORIGIN"])))


def digest(texts, files):
    """Of texts and the contents of files, together with the compiler and the processor it compiles for."""
    content = [*texts, *(path.name + "\0" + path.read_text() for path in files), compiler()]
    return hashlib.sha256("\0".join(content).encode()).hexdigest()[:16]


@functools.cache
def compiler():
    """All that the compiler says of itself and of -march=native."""
    command = ["g++", "-march=native", "-E", "-dM", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compiled(path, source, arguments):
    """`path`, made by g++ from this text unless it exists; the text stays beside it for a debugger."""
    if path.exists():
        return path
    if path in refused:
        raise CompilerError(refused[path])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        made, text = Path(folder) / path.name, Path(folder) / path.with_suffix(".cpp").name
        text.write_text(source)
        command = ["g++", f"-I{HERE}", str(text), *arguments, "-o", str(made)]
        run = subprocess.run(command, capture_output=True, text=True)
        os.replace(text, path.with_suffix(".cpp"))
        if run.returncode:
            refused[path] = f"{path.with_suffix('.cpp')}:\n{run.stderr[:8000]}"
            raise CompilerError(refused[path])
        os.replace(made, path)
    return path
