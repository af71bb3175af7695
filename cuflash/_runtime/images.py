"""Where the machine code of a variant comes from: CUFLASH_CUBIN_DIR, the cache, or NVRTC."""

from __future__ import annotations

import os
from pathlib import Path

from cuflash import _kernels, _sources
from cuflash._kernels import KernelSpec
from cuflash._runtime import cache, nvrtc
from cuflash._runtime.nvrtc import Compiled, Source

SCHEMA = "1"  # of keys; another number and nothing stored before is found

_unsaved: dict[str, Compiled] = {}  # by key: what could not be stored on disk


def obtain(variant: KernelSpec, arch: str, extra: tuple[str, ...] = ()) -> Compiled:
    """Machine code of a variant for `arch`, compiled at most once for a folder of the cache.

    `extra` are further options of NVRTC. A file of CUFLASH_CUBIN_DIR is taken where it was made from the present
    sources with the same options, by whatever NVRTC: then neither NVRTC nor the cache is asked.
    """
    source = nvrtc.read_source(variant, arch, extra)
    name = _kernels.file_name(variant, arch)
    compiled = _precompiled(name, source)
    if compiled is not None:
        return compiled
    key = f"{SCHEMA}-{nvrtc.version()}-{source.identity}"
    name = f"{variant.kernel}-{key}.{'ptx' if arch.startswith('compute_') else 'cubin'}"
    compiled = _unsaved.get(key) or cache.load(name, key)
    if compiled is None:
        compiled = nvrtc.compile_source(source)
        # Files that changed while NVRTC read them may have become something else than their digest says.
        if _sources.read_closure(_kernels.KERNELS[variant.kernel].file, _sources.folder()) != source.closure:
            return compiled
        if not cache.store(name, key, compiled):
            _unsaved[key] = compiled
    return compiled


def _precompiled(name: str, source: Source) -> Compiled | None:
    """The variant's file of CUFLASH_CUBIN_DIR, if there is one that still fits."""
    given = os.environ.get("CUFLASH_CUBIN_DIR")
    if not given:
        return None
    path = Path(given, name)
    found = cache.read_file(path)
    if found is not None and found[1] == f"{SCHEMA}-{source.identity}":
        return found[0]
    if not path.parent.is_dir():
        cache.warn_once(given, f"kernels: CUFLASH_CUBIN_DIR={given} is not a folder; kernels are compiled instead")
    elif path.exists():
        cache.warn_once(
            given,
            f"kernels: {name} of CUFLASH_CUBIN_DIR={given} is damaged or was made from other sources; such files "
            "are not used and kernels are compiled; `python -m cuflash warmup --arch ... --out ...` makes them anew",
        )
    return None


def precompile(variant: KernelSpec, arch: str, out: Path) -> Path:
    """Compile into a folder that CUFLASH_CUBIN_DIR can name; returns the file."""
    source = nvrtc.read_source(variant, arch)
    path = out / _kernels.file_name(variant, arch)
    cache.write_file(path, nvrtc.compile_source(source), f"{SCHEMA}-{source.identity}")
    return path
