"""Small kernels in C++ for the tests of the machine, written beside the test that runs them.

`@kernels(name="body", ...)` gives a test its kernels, `run, array = fixtures()` a test file its fixtures:
`run("name", array("out", 64), block=64)`. All bodies of a test file are compiled together.
"""

import ctypes
import functools
import os
import sys
from typing import NamedTuple

import numpy as np
import pytest

from emulator import build, library

PRELUDE = """
#include "machine/machine.hpp"
using namespace machine;
using u32 = uint32_t;
using u64 = uint64_t;
#define AT(line) ([] { static const Loc loc{"folder/kernel.cu", line, line}; return &loc; }())
constexpr u32 ALL = 0xffffffff;
inline u32 tid() { return registers->tid.x; }
inline u32 block() { return registers->ctaid.x; }
// One u32 of shared memory or, with an address, of global memory; `line` is where the source is said to stand.
inline void put(Site at, u32 offset, u32 value) { store_shared<4>(shared_base() + offset, &value, at); }
inline u32 get(Site at, u32 offset) { u32 value; load_shared<4>(&value, shared_base() + offset, at); return value; }
inline void put_to(Site at, u64 address, u32 value) { store_global<4>(address, &value, at); }
inline u32 get_from(Site at, u64 address) { u32 value; load_global<4>(&value, address, at); return value; }
"""
SCHEDULES = {
    "ascending": {"schedule": 0, "block_order": 0},
    "descending": {"schedule": 1, "block_order": 1},
    "random": {"schedule": 2, "block_order": 2, "seed": 7},
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
sources = {}  # bodies by module and by test and name


class Outcome(NamedTuple):
    """What a launch came to: the lines of its report, and its counters."""

    findings: int
    report: str
    counters: library.Counters

    def kinds(self):
        return [line[1 : line.index("]")] for line in self.report.splitlines() if line.startswith("[")]


def assert_clean(outcome):
    """The launch had no finding."""
    assert (outcome.findings, outcome.report) == (0, "")


def assert_finding(outcome, kind, *texts):
    """The launch had findings of this kind alone, and its report holds these texts."""
    assert set(outcome.kinds()) == {kind}, outcome.report
    for text in texts:
        assert text in outcome.report


def kernels(**bodies):
    """Gives a test its kernels. A body sees `arrays`, the addresses of the arrays that the launch names."""

    def register(test):
        for name, body in bodies.items():
            sources.setdefault(test.__module__, {})[f"{test.__name__}_{name}"] = body
        return test

    return register


@functools.cache
def compiled(module, folder):
    entry = 'extern "C" void {}(const void* params) {{\n{}{}\n}}\n'
    head = "    [[maybe_unused]] auto arrays = static_cast<const u64*>(params);\n"
    text = "".join(entry.format(name, head, body) for name, body in sources[module].items())
    return build.kernel(PRELUDE + text, folder)


def require_compiler():
    """Without g++ the whole test file is skipped, or fails where CUFLASH_REQUIRE lists the emulator."""
    if build.available():
        return
    reason = "g++ is missing, so the machine that runs kernels without a GPU cannot be built"
    if "emulator" in os.environ.get("CUFLASH_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)


def machine_folder(pytestconfig):
    """Where the machine and the kernels are built and kept."""
    return str(pytestconfig.cache.mkdir("emulator"))


def run_function(function, arrays, grid, block, shared, **config):
    machine = library.machine()
    fields = {"shared_base": 0x400, "resident_blocks": 1, "checks": 1} | config
    machine.machine_configure(ctypes.byref(library.Config(**fields)))
    axes = [(ctypes.c_uint32 * 3)(*(x if isinstance(x, tuple) else (x, 1, 1))) for x in (grid, block)]
    addresses = (ctypes.c_uint64 * max(len(arrays), 1))(*(array.address for array in arrays))
    findings = machine.machine_launch(ctypes.cast(function, ctypes.c_void_p), *axes, shared, ctypes.byref(addresses))
    return Outcome(findings, machine.machine_report().decode(), library.counters())


class Array:
    """An array of the machine: `values` are its bytes."""

    def __init__(self, name, nbytes, values=None, read_only=0, write_once=0, between_blocks=0, sparse=0):
        flags = read_only | write_once << 1 | between_blocks << 2 | sparse << 3
        self.address = library.machine().machine_create(nbytes, name.encode(), flags)
        assert self.address
        self.values = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.address))
        if values is not None:
            self.values[...] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def view(self, dtype="uint32"):
        return self.values.view(dtype)

    def destroy(self):
        assert library.machine().machine_destroy(self.address) == 0


def fixtures():
    """The fixtures of a test file: `run(name, *arrays, grid=, block=, shared=, ...)` and `array(name, nbytes, ...)`."""
    require_compiler()
    module = sys._getframe(1).f_globals["__name__"]

    @pytest.fixture
    def run(request, pytestconfig):
        folder = machine_folder(pytestconfig)
        library.load(folder)

        def launch(name, *arrays, grid=1, block=32, shared=1024, **config):
            function = getattr(compiled(module, folder), f"{request.node.originalname}_{name}")
            return run_function(function, arrays, grid, block, shared, **config)

        return launch

    @pytest.fixture
    def array(pytestconfig):
        library.load(machine_folder(pytestconfig))
        made = []

        def make(*args, **keywords):
            made.append(Array(*args, **keywords))
            return made[-1]

        yield make
        for one in made:
            library.machine().machine_destroy(one.address)

    return run, array
