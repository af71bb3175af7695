"""Where the kernels' sources lie, what a kernel file is made of, and the three lines that are compiled.

A kernel file and all that it includes, directly or not, are its closure. The closure's digest is part of the key of
everything that is compiled from it: an edited header makes another kernel.
"""

from __future__ import annotations

import hashlib
import os.path
import posixpath
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cuflash.errors import CompileError

PACKAGE = Path(__file__).resolve().parent

# Any line with the directive, and the one form of it that can be followed.
_DIRECTIVE = re.compile(rb"^[ \t]*#[ \t]*include\b(.*)$", re.MULTILINE)
_QUOTED = re.compile(rb'[ \t]*"([^"]+)"')


@lru_cache
def folder() -> Path:
    """The folder rawkernels: the installed package's own, or the one beside the package in a checkout."""
    places = (PACKAGE / "rawkernels", PACKAGE.parent / "rawkernels")
    for place in places:
        if (place / "core" / "platform.cuh").is_file():
            return place
    raise CompileError(
        f"kernels: their sources are missing: neither {places[0]} nor {places[1]} has core/platform.cuh; "
        "install cuflash again"
    )


class Closure(NamedTuple):
    """A kernel file and everything it includes."""

    files: tuple[str, ...]  # below the folder, with forward slashes, sorted
    digest: str  # of their names and texts


def read_closure(file: str, root: Path) -> Closure:
    """Follow every `#include "..."` from `file`, a path below the folder `root`, as the compiler does.

    A name is looked for beside the file that includes it, then in `root`. Conditions are not evaluated: an include that
    is switched off belongs to the closure too. Nothing outside `root` can be included.

    Raises
    ------
    CompileError
        A file is missing or lies outside `root`, or an include is not of the one form.
    """
    texts: dict[str, bytes] = {}
    waiting = [(file, f"kernels: {file}")]
    while waiting:
        name, place = waiting.pop()
        if name in texts:
            continue
        try:
            texts[name] = (root / name).read_bytes()
        except OSError as error:
            raise CompileError(f"{place} cannot be read in {root}: {error.strerror}") from error
        for line, target in _includes(name, texts[name]):
            place = f'kernels: {name}, line {line}: #include "{target}"'
            waiting.append((_resolve(target, name, root, place), place))
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(texts[name]), texts[name]))
    return Closure(tuple(sorted(texts)), digest.hexdigest()[:32])


def _includes(name: str, text: bytes) -> list[tuple[int, str]]:
    """Line number and target of each include."""
    found = []
    for directive in _DIRECTIVE.finditer(text):
        line = text.count(b"\n", 0, directive.start()) + 1
        quoted = _QUOTED.match(directive[1])
        if quoted is None:
            raise CompileError(
                f'kernels: {name}, line {line}: only #include "file" can be followed, '
                f"got #include{directive[1].decode(errors='replace').rstrip()}"
            )
        found.append((line, quoted[1].decode()))
    return found


def _resolve(target: str, name: str, root: Path, place: str) -> str:
    """The path below `root` that an include in file `name` means."""
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if posixpath.isabs(beside) or beside.split("/")[0] == "..":
        raise CompileError(f"{place} leads out of {root}")
    for path in (beside, posixpath.normpath(target)):
        if path.split("/")[0] != ".." and os.path.isfile(root / path):
            return path
    raise CompileError(f"{place} is neither beside that file nor in {root}")


def entry_text(kernel: str, closure: Closure, file: str, instance: str) -> str:
    """The text of one variant: what it was made from, the kernel's file, and a function that runs one instance.

    >>> print(entry_text("copy", Closure(("copy.cu",), "0123"), "copy.cu", "cf::Copy<cf::CopyConfig{.dim = 8}>"))
    // copy, sources 0123
    #include "copy.cu"
    using K = cf::Copy<cf::CopyConfig{.dim = 8}>; extern "C" __global__ void \
__launch_bounds__(K::THREADS, K::BLOCKS_PER_SM) cuflash_copy(const __grid_constant__ K::Params params) \
{ K::run(params); }
    <BLANKLINE>
    """
    function = (
        f'extern "C" __global__ void __launch_bounds__(K::THREADS, K::BLOCKS_PER_SM) '
        f"{entry_name(kernel)}(const __grid_constant__ K::Params params) {{ K::run(params); }}"
    )
    return f'// {kernel}, sources {closure.digest}\n#include "{file}"\nusing K = {instance}; {function}\n'


def entry_name(kernel: str) -> str:
    """Name of the compiled function."""
    return f"cuflash_{kernel}"
