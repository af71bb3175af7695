"""Which kernels BLAS runs here, and whether this CPU could run wider ones.

OpenBLAS chooses its kernels by the CPU's model and knows none that is newer than itself: there it may run AVX2 kernels
where AVX-512 would do. What wider ones bring depends on the CPU: products of our tiles went from 115 to 170-185 GFLOP/s
a core on one of AMD's with AVX-512, from 102 to 88 on another (Zen 4). OPENBLAS_CORETYPE in the environment decides
instead, but only before NumPy is imported; it is the program's to set, never the library's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

VARIABLE = "OPENBLAS_CORETYPE"


class Width(NamedTuple):
    """An instruction set, by every name that is needed here."""

    text: str
    features: frozenset[str]  # NumPy's names, of which it reports one where the CPU has it
    kernels: tuple[str, ...]  # OpenBLAS's, the one to be asked for first


# Widest first.
WIDTHS = (
    Width("AVX-512", frozenset({"X86_V4", "AVX512_SKX"}), ("SkylakeX", "Cooperlake", "SapphireRapids")),
    Width("AVX2", frozenset({"X86_V3", "AVX2"}), ("Haswell", "Zen", "Excavator")),
    Width(
        "SSE or AVX",
        frozenset(),
        (
            "Prescott", "Core2", "Penryn", "Dunnington", "Atom", "Nano", "Nehalem", "Athlon", "Opteron", "Opteron_SSE3",
            "Barcelona", "Bobcat", "Sandybridge", "Bulldozer", "Piledriver", "Steamroller",
        ),
    ),
)  # fmt: skip


def libraries() -> list[dict[str, Any]]:
    """Every BLAS of this process, as threadpoolctl describes it."""
    from threadpoolctl import threadpool_info

    return [library for library in threadpool_info() if library["user_api"] == "blas"]


def of_numpy(blas: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The one that NumPy was built with, told by its version from SciPy's own; an empty mapping where there is none."""
    build: Any = np.show_config(mode="dicts")
    version = build["Build Dependencies"]["blas"].get("version")
    found = sorted(blas, key=lambda library: library["version"] != version)
    return found[0] if found else {}


def kernels(library: Mapping[str, Any]) -> str:
    """Name of a library's kernels, such as "Haswell"."""
    return str(library.get("architecture", "unknown"))


def cpu_features() -> set[str]:
    """NumPy's names of this CPU's vector instructions, those that it was built for included."""
    found: Any = np.show_config(mode="dicts")
    found = found["SIMD Extensions"]
    return {*found.get("baseline", ()), *found.get("found", ())}


def wider(blas: Iterable[Mapping[str, Any]], features: set[str]) -> Width | None:
    """The CPU's own width, where an OpenBLAS among the libraries stays below it."""
    of_cpu = next((level for level, width in enumerate(WIDTHS) if width.features & features), len(WIDTHS))
    for library in blas:
        if library["internal_api"] == "openblas":
            of_blas = (level for level, width in enumerate(WIDTHS) if kernels(library) in width.kernels)
            if next(of_blas, 0) > of_cpu:
                return WIDTHS[of_cpu]
    return None
