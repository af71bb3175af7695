"""Operands as kernels take them: addresses, strides in elements on at most four batch axes, integers by value or by
address. No array is copied, but for a few integers of a size that no kernel reads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from cuflash._gpu_plan import Step
from cuflash._params import ATTENTION, BATCH_AXES, DTYPES, FARTHEST, UNSET, Struct
from cuflash._problem.arrays import known_float
from cuflash._problem.attention import Operands, Problem
from cuflash._problem.packed import Pack
from cuflash._problem.views import memory_order
from cuflash._runtime import Runtime
from cuflash.errors import UnsupportedError

Array = Any
Numbers = tuple[float, ...]  # a struct's, as `Struct.values` returns them

NO_STRIDES = (0,) * (BATCH_AXES + 3)
NO_REALS = (0, *NO_STRIDES, 0)
NO_TOKENS = (0, 0, 0, 0)  # `TokenStrides` of no array
CONSTANTS, CONSTANT_BYTES = 256, 1 << 16  # host arrays of at most so many bytes are kept on the device: the last used


class Batch(NamedTuple):
    """The batch axes of a call on those of a kernel: as they are if these are enough, else merged."""

    sizes: tuple[int, ...]  # BATCH_AXES of them
    axes: tuple[int, ...] | None = None  # counted from the last, -1: of each run that was merged the last axis

    def strides(self, array: Array, trailing: int = 3) -> tuple[int, ...]:
        """The fields of `Strides` for an array (*batch, head, row, col), or the first two or one of these."""
        return _elements(array.strides, array.dtype.itemsize, trailing, self.axes)

    def sizes_of(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of batch axes that are either those of the call or 1, for all of a run alike."""
        return _sizes(own, self.axes)


def find_batch(problem: Problem, operands: Operands, *others: Array | None) -> Batch:
    """What operands and other arrays (*batch, head, row, col) or (*batch, head, row) can be addressed by together."""
    batch = problem.batch
    if len(batch) <= BATCH_AXES:
        return Batch(_sizes(batch, None))
    arrays = (*operands, *others)
    known = [array for array in arrays if hasattr(array, "ndim") and array.ndim >= len(batch)]
    return merge_batch(problem.function, batch, [(array, array.ndim - len(batch)) for array in known])


def merge_batch(function: str, batch: tuple[int, ...], arrays: Sequence[tuple[Array, int]]) -> Batch:
    """What arrays, each with the number of its axes behind those of the batch, can be addressed by together."""
    if len(batch) <= BATCH_AXES:
        return Batch(_sizes(batch, None))
    strides = tuple(_pad(array.strides[: array.ndim - trailing], len(batch)) for array, trailing in arrays)
    axes = merge_axes(batch, strides)
    if len(axes) > BATCH_AXES:
        raise UnsupportedError(
            f"{function}: {len(axes)} of the batch axes {batch} cannot be told as one with another, but GPU "
            f"kernels take {BATCH_AXES}; copy the operands that are transposed or sliced there, or loop over an axis"
        )
    ends = tuple(axis - len(batch) for axis in axes)
    return Batch(_sizes(batch, ends), ends)


def _sizes(batch: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    if axes is not None:
        stops = [len(batch) + axis + 1 for axis in axes]
        batch = tuple(prod(batch[start:stop]) for start, stop in zip((0, *stops), stops))
    return (1,) * (BATCH_AXES - len(batch)) + batch


def merge_axes(shape: tuple[int, ...], strides: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Runs of axes that are one axis in every array, by the last axis of each that is longer than 1.

    An axis and the one before it are one where a step along the latter is a walk along all of the former.
    """
    kept: list[int] = []
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        if kept and all(each[kept[-1]] == each[axis] * size for each in strides):
            kept[-1] = axis
        else:
            kept.append(axis)
    return tuple(kept)


def _pad(own: tuple[int, ...], count: int) -> tuple[int, ...]:
    return (0,) * (count - len(own)) + own


@lru_cache(maxsize=4096)
def _elements(strides: tuple[int, ...], itemsize: int, trailing: int, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """Strides in bytes as the fields of `Strides`, the batch axes chosen by `axes`."""
    steps = _whole(strides, itemsize)
    batch, rest = steps[: len(steps) - trailing], steps[len(steps) - trailing :]
    if axes is not None:
        batch = tuple(batch[axis] if -axis <= len(batch) else 0 for axis in axes)
    return (*_pad(batch, BATCH_AXES), *rest, *(0,) * (3 - trailing))


@lru_cache(maxsize=4096)
def _whole(strides: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    if any(stride % itemsize for stride in strides):
        raise UnsupportedError(
            f"GPU kernels count strides in elements of {itemsize} bytes, but an array has strides {strides} in bytes; "
            "copy it"
        )
    return tuple(stride // itemsize for stride in strides)


def in_elements(strides: tuple[int, ...], array: Array) -> tuple[int, ...]:
    """Some strides in bytes of an array."""
    return _whole(strides, array.dtype.itemsize)


@lru_cache(maxsize=1024)
def fill_axes(function: str, axes: tuple[tuple[int, ...], ...], count: int) -> tuple[tuple[int, ...], ...]:
    """Sizes, and strides of several arrays: merged as by `merge_axes` and, at the front, filled up to `count`."""
    sizes, *strides = axes
    ends = merge_axes(sizes, strides)
    if len(ends) > count:
        raise UnsupportedError(
            f"{function}: {len(ends)} axes cannot be told as one with another (sizes {sizes}), but GPU kernels take "
            f"{count} here; copy what is transposed or sliced"
        )
    runs = zip((0, *(end + 1 for end in ends)), ends)
    empty = count - len(ends)
    merged = tuple(prod(sizes[start : end + 1]) for start, end in runs)
    return ((1,) * empty + merged, *((0,) * empty + tuple(each[end] for end in ends) for each in strides))


def dtype_name(array: Array) -> str:
    """One of the four."""
    return str(known_float(array.dtype))


def empty_like(runtime: Runtime, like: Array, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """A new array in the memory order of `like`, so that undoing a transpose of it is free."""
    dtype = like.dtype if dtype is None else dtype
    if len(shape) != like.ndim or like.flags.c_contiguous:
        return runtime.empty(shape, dtype)
    order = memory_order(like.strides)
    return runtime.empty(tuple(shape[axis] for axis in order), dtype).transpose(*map(order.index, range(len(order))))


class Remembered:
    """Arrays of a device by what they were made of: the last ones used, and whatever is held elsewhere.

    A copy is empty.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: OrderedDict[Any, Array] = OrderedDict()
        self._alive: WeakValueDictionary[Any, Array] = WeakValueDictionary()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Remembered, (self._most,)

    def get(self, key: Any, make: Callable[[], Array]) -> Array:
        """The array of a key, made if it is not here any more."""
        with self._lock:
            found = self._alive.get(key)
            if found is None:
                found = self._alive[key] = make()
            self._last[key] = found
            self._last.move_to_end(key)
            if len(self._last) > self._most:
                self._last.popitem(last=False)
            return found


_constants = Remembered(CONSTANTS)
_in_graphs: dict[Any, Array] = {}  # of `_constants`


def constant(runtime: Runtime, host: np.ndarray) -> Array:
    """A float64 array of the host on the device; a small one is kept there for the next call that has the same numbers.

    It is kept for the current stream: on another one its copy may not be done yet. One that is used while a graph is
    captured stays until the process ends: nobody tells when the last replay is over.
    """
    if host.nbytes > CONSTANT_BYTES:
        return runtime.asarray(np.ascontiguousarray(host))
    lasting = runtime.lasting
    key = (lasting, lasting.place(), host.tobytes(), host.shape)
    found = _constants.get(key, lambda: lasting.asarray(host.copy()))
    if lasting.capturing():
        _in_graphs[key] = found
    return found


def on_device(runtime: Runtime, function: str, operands: Operands) -> Operands:
    """Operands with no array left on the host, and with integers that kernels read; all lie on the current device.

    What is new here must be held until its kernel has been launched.
    """
    o = operands
    runtime.check_current(function, q=o.q, k=o.k, v=o.v)
    if type(o.q_offset) is int and type(o.kv_lengths) is int and o.mask is o.bias is o.slopes is o.sinks is None:
        return o
    given = {
        "mask": o.mask, "bias": o.bias, "sinks": o.sinks, "q_offset": o.q_offset, "kv_lengths": o.kv_lengths,
    }  # fmt: skip
    lying = {name: x for name, x in given.items() if x is not None and type(x) not in (int, np.ndarray)}
    runtime.check_current(function, **lying)
    return o._replace(
        q_offset=_integers_on_device(runtime, o.q_offset), kv_lengths=_integers_on_device(runtime, o.kv_lengths),
        slopes=None if o.slopes is None else constant(runtime, o.slopes),
    )  # fmt: skip


def converted(runtime: Runtime, array: Array, dtype: Any) -> Array:
    """A copy in C order of an array on the device, in another dtype. ProblemError while a graph is captured."""
    copy = runtime.empty(array.shape, dtype)
    runtime.assign(copy, array)
    return copy


def _integers_on_device(runtime: Runtime, value: Any) -> Any:
    """Integers of 4 or 8 signed bytes on the device; a number, and None, as they are."""
    if value is None or type(value) is int:
        return value
    if type(value) is np.ndarray:
        near = np.maximum(np.minimum(value, FARTHEST).astype(np.int64), -FARTHEST)
        return runtime.asarray(np.ascontiguousarray(near))
    return value if value.dtype in (np.int32, np.int64) else converted(runtime, value, np.int64)


class Packed(NamedTuple):
    """Where sequences lie packed."""

    q_starts: Array  # int64, without gaps
    kv_starts: Array
    totals: tuple[int, int]  # rows of q and of k


def pack_on_device(runtime: Runtime, pack: Pack) -> Packed:
    """Where the members of a pack start, as kernels read it."""
    lying = {
        name: array
        for name, array in (("q_starts", pack.q_starts), ("kv_starts", pack.kv_starts))
        if type(array) is not np.ndarray
    }
    runtime.check_current(pack.call.problem.function, **lying)
    q_starts, kv_starts = (_starts(runtime, array) for array in (pack.q_starts, pack.kv_starts))
    operands = pack.call.operands
    return Packed(q_starts, kv_starts, (operands.q.shape[1], operands.k.shape[1]))


def _starts(runtime: Runtime, starts: Array) -> Array:
    if type(starts) is np.ndarray:
        return runtime.asarray(starts)
    if starts.dtype == np.int64 and starts.flags.c_contiguous:
        return starts
    return converted(runtime, starts, np.int64)


def integers(runtime: Runtime, value: Any, batch: Batch) -> Numbers:
    """The fields of `Integers`."""
    if value is None or type(value) is int:
        number = UNSET if value is None else max(-FARTHEST, min(value, FARTHEST))
        return (0, number, 0, 0, 0, 0, 0)
    return (runtime.pointer(value), 0, *batch.strides(value, 0)[:BATCH_AXES], value.dtype.itemsize)


def reals(runtime: Runtime, array: Array | None, batch: Batch, trailing: int = 3) -> Numbers:
    """The fields of `Reals`, and of `Gradient`; (hq,) has one trailing axis."""
    if array is None:
        return NO_REALS
    return (runtime.pointer(array), *batch.strides(array, trailing), DTYPES[dtype_name(array)])


def of_array(runtime: Runtime, array: Array | None, batch: Batch, trailing: int = 3) -> tuple[int, tuple[int, ...]]:
    """Address and strides; null for None."""
    if array is None:
        return 0, NO_STRIDES
    return runtime.pointer(array), batch.strides(array, trailing)


def attention_fields(
    runtime: Runtime, problem: Problem, operands: Operands, batch: Batch, packed: Packed | None = None
) -> Numbers:
    """The fields of `Attention`, but for the last: `q_tiles` differs from kernel to kernel."""
    p, o = problem, operands
    pointer = runtime.pointer
    mask, mask_strides = of_array(runtime, o.mask, batch)
    starts = (0, 0) if packed is None else (pointer(packed.q_starts), pointer(packed.kv_starts))
    return ATTENTION.values(
        q=pointer(o.q), k=pointer(o.k), v=pointer(o.v),
        q_strides=batch.strides(o.q), k_strides=batch.strides(o.k), v_strides=batch.strides(o.v),
        mask=mask, mask_strides=mask_strides,
        bias=reals(runtime, o.bias, batch), slopes=reals(runtime, o.slopes, batch, 1),
        sinks=reals(runtime, o.sinks, batch, 1),
        q_offset=integers(runtime, o.q_offset, batch), kv_lengths=integers(runtime, o.kv_lengths, batch),
        q_starts=starts[0], kv_starts=starts[1],
        left=side(p.left), right=side(p.right),
        scale=p.scale, softcap=p.softcap or 0.0, batch=batch.sizes,
        hq=p.hq, group=p.group, lq=p.lq, lk=p.lk, d=p.d, dv=p.dv,
        q_tiles=0,
    )[:-1]  # fmt: skip


def side(width: int | None) -> int:
    """A side of the window; one that is given never counts as unlimited, whatever offset kernels have to cut."""
    return FARTHEST if width is None else min(width, FARTHEST // 4)


def launch(runtime: Runtime, step: Step, params: Struct, **fields: Any) -> None:
    """Put a step of a plan on the current stream, if it has any block."""
    if step.grid:
        runtime.launch(step.spec, step.grid, step.threads, step.smem_bytes, params.pack(**fields))
