"""Calls that are found again: what one launches is kept by all that it depends on, and later ones put in their own
addresses.

Nothing is looked at that lies on a device. So what a call launches follows from its options, from the shapes, strides
and dtypes of its arrays, and from where it is made. A call that comes for the second time is made once more for the
record: on stand-ins, arrays at addresses where nothing lies, and by a `Scribe`, a runtime that launches nothing but
writes down. All checks, plans and structs are made as ever; in the structs, addresses tell which array they point into.

    call ──► key ──┬─ new ──────────► the function itself
                   ├─ seen once ────► the function on stand-ins, by a Scribe ──► Prepared
                   └─ Prepared ─────► allocate, put in addresses, launch

What a key cannot hold takes the long way each time: numbers in the host's memory, unless they name sequences of a
cache; what is captured in a graph; arrays that overlap; whatever has to be converted or waited for first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from operator import itemgetter, mul
from typing import Any, NamedTuple

import numpy as np

from cuflash import masks
from cuflash._bias import Alibi
from cuflash._kernels import KERNELS, KernelSpec
from cuflash._problem.views import ends, overlap, span
from cuflash._runtime import Runtime

Array = Any
Perform = Callable[[Any, Callable[..., Any], Sequence[Any], dict[str, Any]], Any]

# What a key holds as it is, by its type and value: True is no 1.
PLAIN = frozenset((
    type(None), bool, int, float, str, np.bool_, np.int32, np.int64, np.float32, np.float64, masks.Window, masks.Causal,
))  # fmt: skip
WRITTEN = ("out", "lse_out", "workspace")  # options that are arrays to be filled
SEVERAL = (tuple, list)  # of what is PLAIN
NUMBERS_MOST = 1024  # in one of these, or in an array of the host
CALLS_KEPT = 1024  # of a process, and of a cache; at one more all are forgotten
FIRST, ROOM = 1 << 62, 1 << 48  # where stand-ins begin, and bytes from one to the next: no device has such addresses
ALIGNMENT = 16  # bytes: stand-ins are aligned as what they stand for


class Launch(NamedTuple):
    """A launch, with addresses still to be put in."""

    spec: KernelSpec
    grid: int | tuple[int, ...]
    threads: int
    smem_bytes: int
    params: bytes
    raw: np.dtype[Any]
    places: tuple[tuple[int, int, int], ...]  # 8-byte words of params: which, of which array, and bytes from its start


class Prepared(NamedTuple):
    """All that is left to do in a call of a known kind. Arrays count from those given, then those that are made."""

    made: tuple[tuple[tuple[int, ...], Any], ...]  # shapes and dtypes
    launches: tuple[Launch, ...]
    results: tuple[tuple[int, tuple[int, ...] | None] | None, ...]  # each an array, its axes transposed where told
    form: Callable[[Sequence[Any]], Any]  # from all results to what the function returns
    spans: tuple[tuple[int, int], ...]  # of each given array: bytes before its start, and to its end
    written: tuple[int, ...]  # given arrays that are filled
    held: tuple[Array, ...]  # what else launches point to
    held_ends: tuple[tuple[int, int], ...]

    def overlap(self, addresses: Sequence[int]) -> bool:
        """Whether an array to be filled may share memory with another."""
        for one in self.written:
            before, after = self.spans[one]
            start, stop = addresses[one] - before, addresses[one] + after
            for other, (other_before, other_after) in enumerate(self.spans):
                at = addresses[other]
                if start < at + other_after and at - other_before < stop and other != one:
                    return True
            for other_start, other_stop in self.held_ends:
                if start < other_stop and other_start < stop:
                    return True
        return False


class Found(NamedTuple):
    """A call that is known, with its own arrays."""

    prepared: Prepared
    runtime: Runtime
    given: list[Array]
    addresses: list[int]

    def value(self) -> Any:
        """What the function returns where that holds no array of the device: so it does before the launch."""
        return self.prepared.form(())

    def run(self) -> Any:
        """Launch, and return what the function returns."""
        prepared, runtime, given, addresses = self
        arrays, at = given.copy(), addresses.copy()
        for shape, dtype in prepared.made:
            array = runtime.empty(shape, dtype)
            arrays.append(array)
            at.append(array.data.ptr)
        for spec, grid, threads, smem_bytes, params, raw, places in prepared.launches:
            buffer = bytearray(params)
            words = memoryview(buffer).cast("Q")
            for word, index, offset in places:
                words[word] = at[index] + offset
            runtime.launch(spec, grid, threads, smem_bytes, np.ndarray((), raw, buffer))
        return prepared.form([
            None if result is None
            else arrays[result[0]] if result[1] is None
            else arrays[result[0]].transpose(result[1])
            for result in prepared.results
        ])  # fmt: skip


SEEN, NEVER = object(), object()  # in place of a `Prepared`: seen once, and cannot be prepared


class Calls:
    """The calls of a backend; those over a cache are kept by the cache."""

    def __init__(self, runtime: Runtime, make_backend: Callable[[Any], Any]) -> None:
        self._runtime, self._make_backend = runtime, make_backend
        self._known: dict[Any, Any] = {}

    def find(
        self, function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any], perform: Perform
    ) -> Found | None:
        """The call ``function(*args, **options)``, if it is known; the first argument is an array of the device.

        ``perform(backend, function, args, options)`` calls a function with one backend in place of all.
        """
        runtime, kind, device = self._runtime, type(args[0]), args[0].data.device_id
        known, cache = self._known, None
        key, given, addresses = [function, *options], [], []
        for value in chain(args, options.values()):
            own = type(value)
            if own is kind:
                data = value.data
                at = data.ptr
                if data.device_id != device:
                    return None
                given.append(value)
                addresses.append(at)
                key.append((value.shape, value.strides, value.dtype, at % ALIGNMENT))
            elif own in PLAIN:
                key.append((own, value))
            elif own is Alibi:
                key.append(value.slopes.tobytes())
            elif hasattr(own, "_prepared") and (cache := value._prepared()) is not None:
                known, numbers = cache
                key.append(numbers)
            elif own in SEVERAL and len(value) <= NUMBERS_MOST and all(type(one) in PLAIN for one in value):
                key.append((own, *map(type, value), *value))
            elif own is np.ndarray and cache is not None and value.size <= NUMBERS_MOST and value.dtype.kind in "iu":
                key.append((own, value.dtype.str, value.shape, value.tobytes()))
            else:
                return None
        # A bias over a cache must be as long as its sequences are known to be by now.
        if runtime.capturing() or (cache is not None and type(options.get("bias")) is kind):
            return None
        place = runtime.place()
        if place[0] != device:
            return None
        name = (place, *key)
        found = known.get(name)
        if found is None:
            if len(known) >= CALLS_KEPT:
                known.clear()
            known[name] = SEEN
            return None
        if found is SEEN:
            found = known[name] = self._prepare(function, args, options, given, perform)
        if found is SEEN or found is NEVER or found.overlap(addresses):
            return None
        return Found(found, runtime, given, addresses)

    def _prepare(
        self, function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any], given: list[Array],
        perform: Perform,
    ) -> Any:  # fmt: skip
        """A `Prepared`, or NEVER; SEEN again where a wrong call may come with other arrays."""
        scribe, kind = Scribe(self._runtime, given), type(args[0])
        stand_ins = iter(scribe.given)
        standing = [next(stand_ins) if type(value) is kind else value for value in args]
        named = {name: next(stand_ins) if type(value) is kind else value for name, value in options.items()}
        written = tuple(i for i, x in enumerate(scribe.given) if any(x is named.get(name) for name in WRITTEN))
        if any(overlap(given[i], other) for i in written for j, other in enumerate(given) if i != j):
            return SEEN
        try:
            return scribe.finish(perform(self._make_backend(scribe), function, standing, named), written)
        except Unpreparable:
            return NEVER


class Unpreparable(Exception):
    """Something depends on more than a key holds."""


class Scribe:
    """A runtime that launches nothing but writes down, for arrays that stand for those of a call."""

    def __init__(self, runtime: Runtime, given: Sequence[Array]) -> None:
        self.lasting = runtime
        self.gpu, self.place, self.check_current = runtime.gpu, runtime.place, runtime.check_current
        self._starts: list[int] = []
        self._made: list[tuple[tuple[int, ...], Any]] = []
        self._launches: list[Launch] = []
        self._held: list[Array] = []
        self.given = [self._stand_in(x.shape, x.dtype, x.strides, x.data.ptr % ALIGNMENT) for x in given]
        self._stand_ins = list(self.given)

    def _stand_in(self, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...], shift: int = 0) -> Array:
        self._starts.append(FIRST + len(self._starts) * ROOM + ROOM // 2 + shift)
        return self.lasting.array_at(self._starts[-1], shape, dtype, strides)

    def capturing(self) -> bool:
        return False

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        strides = [*accumulate(shape[:0:-1], mul, initial=np.dtype(dtype).itemsize)][::-1] if shape else ()
        array = self._stand_in(shape, dtype, tuple(strides))
        self._stand_ins.append(array)
        self._made.append((shape, dtype))
        return array

    def pointer(self, array: Array) -> int:
        at = self.lasting.pointer(array)
        if at < FIRST:
            self._held.append(array)
        return at

    def launch(
        self, spec: KernelSpec, grid: int | tuple[int, ...], threads: int, smem_bytes: int, params: np.ndarray
    ) -> None:
        content = params.tobytes()
        words, places = memoryview(content).cast("Q"), []
        for word in KERNELS[spec.kernel].params.address_words:
            if words[word] >= FIRST:
                index = _index(words[word])
                places.append((word, index, words[word] - self._starts[index]))
        self._launches.append(Launch(spec, grid, threads, smem_bytes, content, params.dtype, tuple(places)))

    def _refuse(self, *given: Any) -> Any:
        raise Unpreparable

    zeros = asarray = to_host = assign = array_at = _refuse

    def finish(self, result: Any, written: tuple[int, ...]) -> Prepared:
        """What was written down, given what the function returned: arrays, or something without any."""
        form: Callable[[Sequence[Any]], Any] = itemgetter(0)
        results: tuple[Any, ...] = (result,)
        if isinstance(result, tuple):
            form, results = getattr(result, "_make", tuple), result
        if not all(array is None or type(array) is type(self.given[0]) for array in results):
            form, results = (lambda _: result), ()
        return Prepared(
            tuple(self._made), tuple(self._launches),
            tuple(None if array is None else self._find(array) for array in results), form,
            tuple(span(x.shape, x.strides, x.dtype.itemsize) for x in self.given), written, tuple(self._held),
            tuple(map(ends, self._held)),
        )  # fmt: skip

    def _find(self, result: Array) -> tuple[int, tuple[int, ...] | None]:
        """Which array a result is, and how its axes were transposed."""
        index = _index(self.lasting.pointer(result))
        array = self._stand_ins[index]
        left: list[Any] = [*zip(array.shape, array.strides)]
        axes: list[int] = []
        for axis in zip(result.shape, result.strides):
            axes.append(left.index(axis))
            left[axes[-1]] = None
        return index, None if axes == sorted(axes) else tuple(axes)


def _index(address: int) -> int:
    return (address - FIRST) // ROOM
