"""Compiled kernels as files that many processes read and write at once, without locks.

A file is complete or absent: it is written under a name of its own and then renamed. What a killed process leaves is
such a name, removed a day later. A file carries a checksum, so one that was damaged or cut off counts as absent; no
other trust is put in the disk, and nothing is flushed to it. Processes that miss the same file compile it each, and the
last one's stays: waiting for another process is waiting for one that may have been killed.

A file is the image itself, so that CUDA's tools read it, then what NVRTC said and which key it was stored under:

    image | JSON | sizes of both, SHA-256 of both, MAGIC

The folder is held to `LIMIT_BYTES`: who stores a file removes those that were not used for longest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import struct
import sys
import time
import warnings
from pathlib import Path

from cuflash._runtime.nvrtc import Compiled
from cuflash.errors import PerformanceWarning

LIMIT_BYTES = 512 << 20  # some thousands of kernels
DAY = 86400  # seconds

_MAGIC = b"cuflash1"
_FOOTER = struct.Struct("<QQ32s8s")
_warned: set[str] = set()


def folder() -> Path:
    """CUFLASH_CACHE_DIR, or a folder of cuflash among the user's caches.

    Raises
    ------
    OSError
        The user has no home.
    """
    given = os.environ.get("CUFLASH_CACHE_DIR")
    if given:
        return Path(given)
    try:
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            return (Path(local) if local else Path.home() / "AppData" / "Local") / "cuflash" / "Cache"
        caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (caches if caches.is_absolute() else Path.home() / ".cache") / "cuflash"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def warn_once(topic: str, message: str) -> None:
    """A PerformanceWarning, the first time that this process has one on the topic."""
    if topic not in _warned:
        _warned.add(topic)
        warnings.warn(message, PerformanceWarning, stacklevel=2)


def read_file(path: Path) -> tuple[Compiled, str] | None:
    """What a file holds and the key it was stored under; None where it is absent, damaged, or cannot be read."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    start = len(data) - _FOOTER.size
    if start < 0:
        return None
    image_bytes, notes_bytes, checksum, magic = _FOOTER.unpack_from(data, start)
    if magic != _MAGIC or image_bytes + notes_bytes != start or hashlib.sha256(data[:start]).digest() != checksum:
        return None
    notes = json.loads(data[image_bytes:start])
    return Compiled(data[:image_bytes], notes["log"]), notes["key"]


def write_file(path: Path, compiled: Compiled, key: str) -> None:
    """Store under `path`, replacing what is there at once.

    Raises
    ------
    OSError
        It could not be stored; `path` is as before.
    """
    notes = json.dumps({"key": key, "log": compiled.log}).encode()
    checksum = hashlib.sha256(compiled.image + notes).digest()
    footer = _FOOTER.pack(len(compiled.image), len(notes), checksum, _MAGIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(unfinished, "xb") as file:
            file.write(compiled.image + notes + footer)
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def load(name: str, key: str) -> Compiled | None:
    """A kernel from the cache; None where it has to be compiled."""
    try:
        path = folder() / name
    except OSError:
        return None
    found = read_file(path)
    if found is None or found[1] != key:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used now: see `_prune`
    return found[0]


def store(name: str, key: str, compiled: Compiled) -> bool:
    """Put a kernel into the cache. Where that fails it warns once, and returns False: nothing depends on it."""
    try:
        path = folder() / name
        write_file(path, compiled, key)
    except OSError as error:
        if load(name, key) is not None:  # Windows: another process stored it, and a third is reading it
            return True
        warn_once(
            "store",
            f"kernels: compiled ones cannot be kept on disk ({error}), so each process compiles them again; "
            "CUFLASH_CACHE_DIR names a folder that can be written",
        )
        return False
    with contextlib.suppress(OSError):
        _prune(path.parent)
    return True


def _prune(cache: Path) -> None:
    """Remove what killed processes left, and the files unused for longest where all take more than LIMIT_BYTES."""
    now = time.time()
    files = []
    for path in cache.iterdir():
        with contextlib.suppress(OSError):  # another process removes files too
            status = path.stat()
            if path.suffix == ".tmp" and now - status.st_mtime > DAY:
                path.unlink()
            elif path.suffix in (".cubin", ".ptx"):
                files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= LIMIT_BYTES:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size
