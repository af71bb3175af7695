"""Where tests of the contract run: NumPy, and the GPU backend on the emulator or, on a machine that has one, on a GPU.

A backend moves arrays there and back, says how long a sequence may be so that a test takes no more than a second, and
how many random examples there is time for. Tests that are about one kind of backend say so by `on_numpy`,
`on_devices` or `on_emulator`.
"""

import contextlib
import functools
import os
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from levels import TEST_LEVEL

EMULATED_EXAMPLES = {1: 5, 2: 10}.get(TEST_LEVEL, 100)

on_numpy = pytest.mark.parametrize("backend", ["numpy"], indirect=True)


class Backend:
    """What all backends do alike."""

    def give(self, value):
        """A value with NumPy arrays moved to the backend: an array itself, or those of a dictionary."""
        if isinstance(value, dict):
            return {key: self.give(one) for key, one in value.items()}
        return self.asarray(value) if isinstance(value, np.ndarray) else value

    def to_numpy(self, array):
        """A result of the library as a NumPy array."""
        assert type(array) is type(self.asarray(np.zeros(0)))
        return host(array)

    def length(self, n):
        """A length of about n that ends in a tile where n does."""
        return n

    def examples(self, n):
        """How many of n random examples there is time for."""
        return n

    def tiles(self, kind):
        """Inside, "small" tiles, so that a few dozen keys have many edges; or those "tuned"."""
        return contextlib.nullcontext()


class NumpyBackend(Backend):
    """Arrays stay what they are."""

    name = "numpy"
    xp = np

    def asarray(self, array):
        return array

    @contextlib.contextmanager
    def tiles(self, kind):
        """Tiny work has threads, too."""
        from cuflash import _plan

        small = {"BLOCK_ROWS": 8, "SCORE_TILE": 32, "KV_TILE_MOST": 8, "BLOCKS_WANTED": 6, "BLOCK_ROWS_LEAST": 4}
        small |= {"PART_KEYS": 16, "BACKWARD_PART_KEYS_LEAST": 8, "SMALL_WORK": 0}
        small |= {"BOUNDED_ROWS_LEAST": 4, "BOUNDED_SCORES_LEAST": 0, "LOAD_TILE": 32, "LOAD_KEYS_LEAST": 2}
        small |= {"BLOCK_WORK_LEAST": 0}
        with tuned_to(kind, small, (_plan.make_plan, _plan.make_backward_plan)):
            yield


class CupyBackend(Backend):
    """A GPU."""

    name = "cupy"

    def __init__(self):
        import cupy

        self.xp = cupy

    def asarray(self, array):
        return self.xp.asarray(array)


def at_once(find):
    """Have calls prepared when they are seen for the first time."""
    return lambda *call: find(*call) or find(*call)


class EmulatorBackend(Backend):
    """The GPU backend, its kernels run on the CPU with every check on."""

    name = "emulator"

    def __init__(self, folder):
        from emulator import library, memory
        from emulator.device_array import DeviceArray
        from emulator.runtime import EmulatorRuntime

        from cuflash import _dispatch
        from cuflash._cuda import Backend

        library.load(folder)
        self.runtime = EmulatorRuntime(folder)
        made = Backend(self.runtime)
        if TEST_LEVEL > 1:
            made.calls.find = at_once(made.calls.find)
        _dispatch.register(self.name, DeviceArray, made)
        self.xp = types.ModuleType(self.name)
        self.xp.broadcast_to = np.broadcast_to
        self._move = lambda array: DeviceArray(memory.allocate(np.asarray(array)))

    def asarray(self, array):
        return self._move(array)

    def length(self, n):
        return n if n <= 96 else 64 + n % 32

    def examples(self, n):
        return min(n, EMULATED_EXAMPLES)

    @contextlib.contextmanager
    def tiles(self, kind):
        """Of 64 columns, and parts of 32 keys in decoding; wider operands keep their tiles."""
        from cuflash import _configs, _gpu_decode_plan, _gpu_forward_plan, _gpu_plan, _tuning

        plans = [_configs.fwd_mma, _configs.fwd_simt, _configs.bwd_q_simt, _configs.bwd_kv_simt, _configs.bwd_bias_simt]
        plans += [
            _configs.weights_simt,
            _configs.decode_simt,
            _configs.decode_mma,
            _configs.decode_fma,
            _gpu_forward_plan.plan_forward,
            _gpu_forward_plan.plan_weights,
        ]
        plans += [_gpu_plan.plan_backward, _gpu_decode_plan.plan_decode]
        small = {name: getattr(_tuning, name) | table for name, table in SMALL_TABLES.items()} | SMALL_NUMBERS
        with pytest.MonkeyPatch.context() as patch:
            if kind == "small":
                patch.setattr(_gpu_decode_plan, "PART_ROW_KEYS", 4)
            with tuned_to(kind, small, plans):
                yield


# Queries, keys, blocks of a multiprocessor, bytes of shared memory: the smallest tiles that kernels compile with.
SMALL_TABLES = {
    "FWD_MMA": {(32, 32): ((32, 16, 2, 2, 5504),), (64, 64): ((32, 16, 2, 2, 8576),)},
    "FWD_SIMT": {(2, 64): (16, 16, 2, 6176), (4, 64): (16, 16, 2, 6176), (8, 64): (16, 16, 2, 7216)},
    "BWD_Q_SIMT": {(2, 64): (16, 16, 2, 6368), (4, 64): (16, 16, 2, 6368), (8, 64): (16, 16, 2, 7536)},
    "BWD_KV_SIMT": {(2, 64): (16, 32, 2, 10976), (4, 64): (16, 32, 2, 10976), (8, 64): (16, 16, 2, 7536)},
    "BWD_BIAS_SIMT": {(2, 128): (16, 16, 2, 6352), (4, 64): (16, 16, 2, 6352), (8, 64): (16, 16, 2, 7504)},
    "WEIGHTS_SIMT": {(2, 128): (16, 16, 2, 6288), (4, 64): (16, 16, 2, 6288), (8, 64): (16, 16, 2, 7456)},
    "DECODE_MMA": {(2, 64): ((16, 2, 2, 2, 20864),), (1, 64): ((16, 2, 2, 2, 13184),)},
    "DECODE_FMA": {(4, 64): ((4, 2, 2, 2, 16832),)},
    "DECODE_SIMT": {(4, 64): ((8, 16, 2, 5072),), (8, 64): ((8, 16, 2, 5584),)},
}

SMALL_NUMBERS = {"FEW_QUERIES": 4, "PART_KEYS_LEAST": 32}


@contextlib.contextmanager
def tuned_to(kind, small, plans):
    """Inside, other numbers of `_tuning` where `kind` is "small"; `plans` are the functions that remember them."""
    from cuflash import _tuning

    if kind == "tuned":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            assert hasattr(_tuning, name), name
            patch.setattr(_tuning, name, value)
        forget(plans)
        yield
    forget(plans)


def forget(plans):
    """Plans, and the calls that were prepared with them, but for those over caches, which tests make themselves."""
    from cuflash import _dispatch

    for plan in plans:
        plan.cache_clear()
    for made in _dispatch._backends.values():
        if hasattr(made, "calls"):
            made.calls._known.clear()


def host(array):
    """Any array as a NumPy array: on the emulator the memory itself, on a GPU a copy."""
    if isinstance(array, np.ndarray):
        return array
    if type(array).__module__ == "emulator":
        return array._values
    return sys.modules["cupy"].asnumpy(array)


def anything(**strategies):
    """`hypothesis.given` for a test that takes `backend`: with as many examples as there is time for there."""

    def decorate(test):
        many = given(**strategies)(test)
        few = settings(max_examples=EMULATED_EXAMPLES)(given(**strategies)(test))

        @functools.wraps(many)
        def run(backend, **fixtures):
            return (few if backend.name == "emulator" else many)(backend=backend, **fixtures)

        return pytest.mark.grows(run)

    return decorate


def missing_emulator():
    """Why kernels cannot be run here, or None."""
    from emulator import build
    from kernels import missing_nvrtc

    if not build.available():
        return "g++ is not installed: tests of the kernels on the emulator are left out"
    return missing_nvrtc()


def missing_gpu():
    """Why there is no GPU here, or None."""
    try:
        import cupy

        return None if cupy.cuda.runtime.getDeviceCount() else "there is no GPU here"
    except Exception as error:
        return f"there is no GPU here: {error}"


def names():
    """The backends of this run, of which `cupy` is left out where there is no GPU: it would only be skipped."""
    return ["numpy", "emulator", *["cupy"] * (missing_gpu() is None)]


on_devices = pytest.mark.parametrize("backend", names()[1:], indirect=True)
on_emulator = pytest.mark.parametrize("backend", ["emulator"], indirect=True)


@functools.cache
def make(name, folder):
    """The backend of a name; there is one of each in a process."""
    if name == "numpy":
        return NumpyBackend()
    if name == "cupy":
        return CupyBackend()
    reason = missing_emulator()
    if reason and "emulator" in os.environ.get("CUFLASH_REQUIRE", "").split(","):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return EmulatorBackend(folder)
