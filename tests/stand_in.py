"""A device for tests of what the host does around caches: arrays that it cannot read, and kernels written in NumPy.

The kernels do what the heads of rawkernels/*.cu say, from nothing but their structs, so what is packed wrongly comes
out wrongly. A captured graph is a list of launches, and replaying it runs them again.
"""

import ctypes
import itertools
import weakref

import numpy as np
from addresses import array_at

from cuflash import _kernels, _params
from cuflash._cuda.caches import Kept, append, copy_pages, decode, scatter
from cuflash._cuda.prepared import Calls
from cuflash._device import Gpu
from cuflash._gpu_decode_plan import WAVES_MOST
from cuflash.errors import ProblemError

HOME = "standin"
_allocations = weakref.WeakValueDictionary()  # by address


class HostRead(AssertionError):
    """The host looked at what lies on the device, or had it compute something that no kernel of ours does."""


def allocate(array):
    """Make an array known as the device's."""
    _allocations[array.ctypes.data] = array
    return array


class DeviceArray:
    """A view of the device's memory. `_values` is for kernels and for `to_host`."""

    __hash__ = None
    allocate = staticmethod(allocate)

    def __init__(self, values):
        self._values = values

    shape = property(lambda self: self._values.shape)
    strides = property(lambda self: self._values.strides)
    dtype = property(lambda self: self._values.dtype)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    nbytes = property(lambda self: self._values.nbytes)
    flags = property(lambda self: self._values.flags)
    data = property(lambda self: DevicePointer(self._values.ctypes.data))

    def __deepcopy__(self, memo):
        return type(self)(self.allocate(self._values.copy()))

    def __len__(self):
        return len(self._values)

    def __getitem__(self, index):
        parts = index if isinstance(index, tuple) else (index,)
        if not all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts):
            raise HostRead(f"{index!r} would take a kernel of the array library")
        return type(self)(np.asarray(self._values[index]))

    def __setitem__(self, index, value):
        if not isinstance(value, DeviceArray):
            raise HostRead("an array of the host cannot be assigned: that would wait for the copy")
        self._values[index] = value._values

    def swapaxes(self, one, other):
        return type(self)(self._values.swapaxes(one, other))

    def transpose(self, *axes):
        return type(self)(self._values.transpose(*axes))

    def __array_function__(self, function, types, args, keywords):
        if function is not np.broadcast_to:
            raise HostRead(f"numpy.{function.__name__} of {self.shape}")
        return type(self)(np.broadcast_to(args[0]._values, *args[1:], **keywords))

    def _read(self, *_, **__):
        raise HostRead(f"the host looks at an array of shape {self.shape}")

    __array__ = __array_ufunc__ = __bool__ = __int__ = __float__ = __index__ = __iter__ = __contains__ = _read
    __eq__ = __ne__ = __lt__ = __gt__ = __add__ = __radd__ = __sub__ = __rsub__ = item = tolist = astype = _read


class DevicePointer:
    device_id = 0

    def __init__(self, ptr):
        self.ptr = ptr


class Runtime:
    """`cuflash._runtime.Runtime`. `log` has the names of the kernels that were launched, and "wait" for each look."""

    array = DeviceArray

    def __init__(self):
        self.log = []
        self.graph = None  # of a capture in progress
        self.allocated = 0  # arrays

    @property
    def lasting(self):
        return self

    def gpu(self):
        return Gpu("sm_90a", 4, 1 << 17)

    def place(self):
        return (0,)

    def capturing(self):
        return self.graph is not None

    def check_current(self, function, **arrays):
        assert all(isinstance(array, DeviceArray) for array in arrays.values())

    def empty(self, shape, dtype):
        array = self._allocate(shape, dtype)
        array.view(np.uint8 if array.size else array.dtype)[...] = 0xFF  # NaN
        return self.array(array)

    def zeros(self, shape, dtype):
        return self.array(self._allocate(shape, dtype))

    def asarray(self, host):
        assert type(host) is np.ndarray
        array = self._allocate(host.shape, host.dtype)
        array[...] = host
        return self.array(array)

    def _allocate(self, shape, dtype):
        if self.capturing():
            raise ProblemError("attention: an array would be allocated while a graph is captured")
        self.allocated += 1
        return self.array.allocate(np.zeros(shape, dtype))

    def array_at(self, address, shape, dtype, strides):
        return self.array(array_at(address, shape, dtype, strides))

    def assign(self, target, source):
        target[...] = source

    def pointer(self, array):
        return array.data.ptr

    def launch(self, spec, grid, threads, smem_bytes, params):
        assert params.nbytes == _kernels.KERNELS[spec.kernel].params.dtype.itemsize
        assert 0 < grid < 2**31 and 0 < threads <= 1024 and 0 <= smem_bytes <= self.gpu().smem_block
        one = (spec, grid, threads, smem_bytes, params)
        if self.capturing():
            self.graph.append(one)
        else:
            self._run(*one)

    def _run(self, spec, grid, threads, smem_bytes, params):
        self.log.append(spec.kernel)
        KERNELS[spec.kernel](dict(spec.config), grid, _kernels.KERNELS[spec.kernel].params.unpack(params))

    def replay(self, graph):
        """Run what was captured."""
        for one in graph:
            self._run(*one)

    def to_host(self, array):
        if self.capturing():
            raise ProblemError("a graph is being captured")
        self.log.append("wait")
        return array._values.copy()


class Backend:
    """What caches need of `cuflash._cuda.Backend`."""

    def __init__(self, runtime):
        self.runtime = runtime
        self.zeros = self.runtime.zeros
        self.calls = Calls(runtime, Backend)

    def decode(self, call):
        return decode(self.runtime, call)

    def append(self, new, store):
        append(self.runtime, new, store)

    def copy_pages(self, *given):
        copy_pages(self.runtime, *given)

    def scatter(self, writes):
        scatter(self.runtime, writes)

    def keep(self, sequences):
        return Kept(self.runtime, sequences)


def memory(address, shape, dtype, strides=None):
    """The numbers at an address, which all lie in one allocation; strides in elements."""
    dtype = np.dtype(dtype)
    if not address or 0 in shape:
        return np.zeros(shape, dtype) if 0 in shape else None
    steps = np.cumprod([1, *shape[:0:-1]])[::-1] if strides is None else strides
    extent = 1 + sum((size - 1) * int(step) for size, step in zip(shape, steps, strict=True))
    home = next(x for start, x in _allocations.items() if start <= int(address) < start + x.nbytes)
    assert int(address) + extent * dtype.itemsize <= home.ctypes.data + home.nbytes
    buffer = (ctypes.c_char * (extent * dtype.itemsize)).from_address(int(address))
    return np.ndarray(shape, dtype, buffer, strides=[int(step) * dtype.itemsize for step in steps])


STORED = {"int8": np.int8, "float8_e4m3fn": np.uint8}


def element(config):
    return np.dtype(config["dtype"].removeprefix("Dtype::"))


class Tokens:
    """The arrays of a `Cache`, read and written token by token."""

    def __init__(self, params, config):
        self.codes = config.get("codes", "Codes::none").removeprefix("Codes::")
        stored = STORED.get(self.codes, element(config))
        cache, self.table = params["cache"], None
        self.rows, self.tokens, self.entries = (int(cache[name]) for name in ("rows", "tokens", "entries"))
        hk, most = int(params["hk"]), self.tokens * self.entries
        self.room = most
        sizes = {"k": int(params["d"]), "v": int(params["dv"])}
        self.arrays = {
            name: memory(cache[name], (self.rows, self.tokens, hk, size), stored, cache[f"{name}_strides"].tolist())
            for name, size in sizes.items()
        }
        self.scales = {
            name: memory(cache[f"{name}_scale"], (self.rows, self.tokens, hk), np.float32,
                         cache[f"{name}_scale_strides"].tolist()[:3])
            for name in sizes
        }  # fmt: skip
        self.page_table, self.table_stride = cache["page_table"], int(cache["table_stride"])

    def place(self, sequence, position):
        """Row and token; None where there is no page."""
        assert 0 <= position < self.room
        if not self.page_table:
            assert sequence < self.rows
            return sequence, position
        entry = position // self.tokens
        page = memory(self.page_table + 4 * (sequence * self.table_stride + entry), (1,), np.int32)[0]
        assert -1 <= page < self.rows
        return None if page < 0 else (page, position % self.tokens)

    def read(self, name, sequence, stop):
        """Numbers (stop, hk, dim) of a sequence from its first token."""
        array, scales = self.arrays[name], self.scales[name]
        found = np.zeros((stop, *array.shape[2:]), np.float64)
        for position in range(stop):
            place = self.place(sequence, position)
            if place is not None:
                found[position] = array[place] * (1 if scales is None else scales[place][:, None])
        return found

    def write(self, name, place, vectors):
        """Vectors (hk, dim) of one token."""
        if self.scales[name] is None:
            self.arrays[name][place] = vectors
            return
        assert self.codes == "int8"
        scale = np.maximum(np.abs(vectors).max(axis=-1, initial=0).astype(np.float32) / np.float32(127), 1e-38)
        self.scales[name][place] = scale
        self.arrays[name][place] = np.rint(vectors.astype(np.float32) / scale[:, None])


def integers(packed, entry):
    if not packed["data"]:
        return int(packed["value"])
    kind = np.int32 if packed["bytes"] == 4 else np.int64
    return int(memory(packed["data"] + entry * int(packed["batch"][3]) * int(packed["bytes"]), (1,), kind)[0])


def run_append(config, grid, params):
    b, hk, l = (int(params[name]) for name in ("b", "hk", "l"))
    assert grid == b * int(params["blocks"]) == b * -(-2 * hk * l // 32)
    tokens = Tokens(params, config)
    assert not memory(params["tickets"], (b,), np.uint32).any()
    given = {
        name: memory(params[name], (b, hk, l, int(params[size])), element(config), steps_of(params[f"{name}_strides"]))
        for name, size in (("k", "d"), ("v", "dv"))
    }
    seqs = memory(params["seqs"], (b,), np.int32)
    assert len(set(seqs.tolist())) == b
    for entry, sequence in enumerate(seqs.tolist()):
        lengths, dropped = (memory(params[name] + 4 * sequence, (1,), np.int32) for name in ("lengths", "dropped"))
        start, count = int(lengths[0]), max(0, min(l, integers(params["counts"], entry)))
        room, first = tokens.room, 0
        if params["reserved"]:
            room = min(room, int(memory(params["reserved"] + 4 * sequence, (1,), np.int32)[0]))
            first = int(memory(params["shared"] + 4 * sequence, (1,), np.int32)[0])
        kept = 0 if start < first else min(count, max(0, room - start))
        for i in range(kept):
            place = tokens.place(sequence, start + i)
            assert place is not None, "room was granted where there is no page"
            for name, new in given.items():
                tokens.write(name, place, new[entry, :, i])
        lengths[0] = start + kept
        dropped[0] += count - kept


def steps_of(strides):
    """Strides of an array (b, heads, rows, cols)."""
    return [int(strides["batch"][3]), int(strides["head"]), int(strides["row"]), int(strides["col"])]


def reals(packed, shape, heads_only=False):
    if not packed["data"]:
        return None
    dtype = list(_params.DTYPES)[int(packed["dtype"])]
    steps = steps_of(packed["strides"])
    return memory(packed["data"], shape, dtype, steps[1:2] if heads_only else steps).astype(np.float64)


def run_decode(config, grid, params):
    """As rawkernels/decode_simt.cu: keys of parts beyond `parts` are not seen by anybody."""
    p = {
        name: int(params[name]) for name in ("b", "hq", "hk", "lq", "d", "dv", "part_keys", "splits", "parts", "limit")
    }
    b, hq, hk, lq, group = p["b"], p["hq"], p["hk"], p["lq"], p["hq"] // p["hk"]
    tiles = -(-group * lq // config["q_tile"])
    everything = b * hk * tiles * p["parts"]
    assert WAVES_MOST * grid < everything if params["listed"] else grid == everything
    tokens = Tokens(params, config)
    assert p["limit"] <= tokens.room
    assert not memory(params["tickets"], (b * hk * tiles,), np.uint32).any()
    if p["parts"] > 1:
        wide = np.float64 if element(config) == np.float64 else np.float32
        outs = memory(params["part_outs"], (b * hq * lq * p["parts"] * p["dv"],), wide)
        sums = memory(params["part_sums"], (b * hq * lq * p["parts"], 2), wide)
        outs[...], sums[...] = 7, 8
        assert (outs == 7).all()
    q = memory(params["q"], (b, hq, lq, p["d"]), element(config), steps_of(params["q_strides"]))
    out = memory(params["out"], (b, hq, lq, p["dv"]), element(config), steps_of(params["out_strides"]))
    wide = np.float64 if element(config) == np.float64 else np.float32
    lse = memory(params["lse"], (b, hq, lq), wide, steps_of(params["lse_strides"])[:3]) if params["lse"] else None
    bias = reals(params["bias"], (b, hq, lq, max(p["limit"], 1)))
    slopes, sinks = (reals(params[name], (hq,), True) for name in ("slopes", "sinks"))
    seqs = memory(params["seqs"], (b,), np.int32) if params["seqs"] else np.arange(b)
    for entry, head in itertools.product(range(b), range(hq)):
        sequence = int(seqs[entry])
        tokens_there = max(0, int(memory(params["lengths"] + 4 * sequence, (1,), np.int32)[0]))
        length = min(tokens_there, p["limit"])
        k, v = (tokens.read(name, sequence, length)[:, head // group] for name in ("k", "v"))
        keys, queries = np.arange(length), np.arange(lq) + tokens_there - lq
        first = max(0, int(queries[0]) - int(params["left"]))
        cut = p["part_keys"] if not p["splits"] else max(1, -(-(length - first) // p["splits"]))
        seen = (keys >= queries[:, None] - int(params["left"])) & (keys <= queries[:, None] + int(params["right"]))
        seen &= (queries >= 0)[:, None] & (keys < first + cut * p["parts"])
        scores = (q[entry, head].astype(np.float64) @ k.T) * float(params["scale"])
        if params["softcap"]:
            scores = float(params["softcap"]) * np.tanh(scores / float(params["softcap"]))
        if bias is not None:
            scores = scores + bias[entry, head][:, :length]
        if slopes is not None:
            scores = scores - slopes[head] * np.abs(keys - queries[:, None])
        scores = np.where(seen, scores, -np.inf)
        sink = np.full((lq, 1), -np.inf if sinks is None else sinks[head])
        with np.errstate(divide="ignore", invalid="ignore"):
            total = np.logaddexp.reduce(np.concatenate([sink, scores], axis=1), axis=1)
            weights = np.where(seen, np.exp(scores - total[:, None]), 0)
        if out is not None:
            out[entry, head] = weights @ v
        if lse is not None:
            lse[entry, head] = total


def run_copy_pages(config, grid, params):
    count, chunks = int(params["count"]), int(params["chunks"])
    assert grid == count * 4 * chunks and chunks == -(-int(params["bytes"].max()) // config["chunk_bytes"])
    sources, targets = (memory(params[name], (count,), np.int32) for name in ("sources", "targets"))
    assert not set(sources.tolist()) & set(targets.tolist())
    for array, nbytes in zip(params["arrays"].tolist(), params["bytes"].tolist(), strict=True):
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True) if array else ():
            ctypes.memmove(array + target * nbytes, array + source * nbytes, nbytes)


def run_scatter(config, grid, params):
    count = int(params["count"])
    at = params["at"][:count].tolist()
    assert 0 < count <= config["places"] and len(set(at)) == count
    for place, value in zip(at, params["values"].tolist()):
        memory(place, (1,), np.int32)[0] = value


KERNELS = {
    "kv_append": run_append, "decode_mma": run_decode, "decode_fma": run_decode, "decode_simt": run_decode,
    "copy_pages": run_copy_pages, "scatter": run_scatter,
}  # fmt: skip
