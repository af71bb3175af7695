"""The machine's library as ctypes sees it: one device per process."""

import ctypes
from ctypes import c_char_p, c_int, c_int64, c_uint32, c_uint64, c_void_p

from emulator import build

PROTOTYPES = {
    "machine_create": (c_void_p, [c_uint64, c_char_p, c_uint32]),
    "machine_destroy": (c_int, [c_void_p]),
    "machine_describe": (c_int, [c_void_p, c_char_p, c_uint32]),
    "machine_configure": (None, [c_void_p]),
    "machine_launch": (c_int64, [c_void_p, c_void_p, c_void_p, c_uint32, c_void_p]),
    "machine_report": (c_char_p, []),
    "machine_findings": (c_uint64, [c_char_p]),
    "machine_counters": (None, [c_void_p]),
}
_loaded = None


class Config(ctypes.Structure):
    """`MachineConfig` of machine.hpp."""

    _fields_ = [
        ("shared_base", c_uint32),
        ("schedule", c_uint32),
        ("seed", c_uint32),
        ("block_order", c_uint32),
        ("resident_blocks", c_uint32),
        ("checks", c_uint32),
        ("landing", c_uint32),
        ("most_steps", c_uint64),
    ]


class Counters(ctypes.Structure):
    """`MachineCounters` of machine.hpp."""

    _fields_ = [
        (name, c_uint64)
        for name in ("switches", "global_loads", "global_stores", "shared_loads", "shared_stores", "atomics",
                     "collectives", "barriers", "copies", "mmas", "matrix_loads", "bank_conflicts")
    ]  # fmt: skip


def counters():
    """What the last launch did."""
    found = Counters()
    machine().machine_counters(ctypes.byref(found))
    return found


def load(folder):
    """Builds the machine in `folder` if it is not there and loads it; the process keeps the first one it loaded."""
    global _loaded
    if _loaded is None:
        library = ctypes.CDLL(str(build.machine(folder)))
        for name, (result, arguments) in PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        _loaded = library
    return _loaded


def machine():
    """The library that `load` has loaded."""
    assert _loaded is not None, "emulator.library.load(folder) comes first"
    return _loaded
