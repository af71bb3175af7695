"""Caches on the device of tests/stand_in.py, and a look into them. Its kernels are in NumPy, or run on the emulator."""

import backends
import numpy as np
import stand_in

import cuflash
from cuflash import _dispatch
from cuflash._problem import arrays

HEADS, DIM = 2, 3
KINDS = ("flat", "paged")
KERNELS = ("in NumPy", "on the emulator")


class EmulatedArray(stand_in.DeviceArray):
    """In the memory of the emulator's machine."""

    __hash__ = None

    @staticmethod
    def allocate(array):
        from emulator import memory

        return memory.allocate(array)


class EmulatedRuntime(stand_in.Runtime):
    """The stand-in with the kernels themselves."""

    array = EmulatedArray

    def __init__(self, machine):
        super().__init__()
        self._machine = machine

    def _run(self, spec, *launch):
        self.log.append(spec.kernel)
        self._machine.launch(spec, *launch)


class Device:
    """A device as long as a test runs; `kernels` is one of KERNELS."""

    def __init__(self, kernels, config, monkeypatch):
        if kernels == "in NumPy":
            self.runtime = stand_in.Runtime()
        else:
            self.runtime = EmulatedRuntime(backends.make("emulator", str(config.cache.mkdir("emulator"))).runtime)
        monkeypatch.setitem(_dispatch._backends, stand_in.HOME, stand_in.Backend(self.runtime))
        arrays.register(self.runtime.array, stand_in.HOME)
        self.log = self.runtime.log

    def put(self, numbers):
        """An array on the device."""
        return self.runtime.asarray(np.asarray(numbers))

    def get(self, array):
        """The memory of an array on the device: what is written there is written by hand."""
        return array._values

    def cache(self, kind, *sizes, dtype="float32", **options):
        """A cache of HEADS heads."""
        like = self.put(np.zeros(1, np.float32))
        made = kind(*sizes, HEADS, DIM, dtype=dtype, like=like, **options)
        self.log.clear()
        return made

    def flat(self):
        """A KVCache of two rows of 8 tokens."""
        return self.cache(cuflash.KVCache, 2, 8)

    def paged(self):
        """A PagedKVCache with two sequences in pages of 4 tokens."""
        cache = self.cache(cuflash.PagedKVCache, 12, 4)
        cache.add(), cache.add()
        self.log.clear()
        return cache

    def tokens(self, b, l, seed=0):
        """Keys on the device that are the values as well, and the numbers that they are."""
        numbers = np.random.default_rng([b, l, seed]).standard_normal((b, HEADS, l, DIM), dtype=np.float32)
        return self.put(numbers), numbers

    def fill(self, cache, l, **options):
        """Append tokens to two sequences; returns their numbers."""
        new, numbers = self.tokens(2, l)
        cache.append(new, new, **options)
        return numbers

    def lengths(self, cache, count=2):
        """Of the first sequences."""
        return self.get(cache.lengths)[:count].tolist()

    def stored(self, cache, seq):
        """Keys of a sequence, (hk, length, d)."""
        i = np.arange(self.get(cache.lengths)[seq])
        if cache.page_table is None:
            return self.get(cache.k)[seq, i].swapaxes(0, 1)
        pages = self.get(cache.page_table)[seq, i // cache.page_size]
        assert (pages >= 0).all()
        return self.get(cache.k)[pages, i % cache.page_size].swapaxes(0, 1)

    def capture(self, call):
        """The graph of a call."""
        self.runtime.graph = graph = []
        try:
            call()
        finally:
            self.runtime.graph = None
        return graph

    def replay(self, graph):
        """Run it."""
        self.runtime.replay(graph)
