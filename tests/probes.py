"""The probes of rawkernels/probes: what each is given, and what must come out, stated in NumPy without a look at how.

`make` gives them by name; `run` takes any runtime of the protocol, so the emulator and a GPU run the very same.
"""

import hashlib
from functools import partial
from typing import NamedTuple
from unittest import mock

import numpy as np
from probe_numbers import NARROW, WIDEN, any_bits, common, from_float8, fused, matmul, to_float8

from cuflash import _kernels, _params

THREADS = 128
ULPS = 2  # of exp, log and tanh: the most that the CUDA C++ Programming Guide states for any of them
STORED = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.float32, "float64": np.float64}
FLOATS = ("float32", "float64")


class Out(NamedTuple):
    """An array that a probe fills."""

    shape: tuple
    dtype: type


class Probe(NamedTuple):
    """One launch, or several on the same arrays."""

    kernel: str  # rawkernels/probes/<kernel>.cu
    fields: dict  # of its Params, in order: an array, an Out, or an integer
    expected: dict  # by field
    blocks: int = 1
    smem_bytes: int = 0
    config: tuple = ()  # as in KernelSpec
    ulps: int = 0  # by which a number may be off; 0: not one bit, but for NaN's
    launches: int = 1
    between_blocks: tuple = ()  # fields that several blocks write or read

    @property
    def spec(self):
        """The variant."""
        return _kernels.KernelSpec(f"probe_{self.kernel}", self.config)

    @property
    def line(self):
        """What the register of kernels would say of it."""
        name = "".join(word.capitalize() for word in self.kernel.split("_"))
        kinds = {name: "i8" if isinstance(value, int) else _params.POINTER for name, value in self.fields.items()}
        params = _params.Struct(f"Probe{name}::Params", **kinds)
        return _kernels.Kernel(f"probes/{self.kernel}.cu", f"Probe{name}", "ProbeConfig", params, lambda wanted: ())

    @property
    def key(self):
        """A digest of all that it is given: results belong to it."""
        digest = hashlib.sha256(repr((self.kernel, self.config, self.blocks, self.launches)).encode())
        for name, value in self.fields.items():
            digest.update(f"{name} {value if isinstance(value, (int, Out)) else (value.dtype, value.shape)}".encode())
            if isinstance(value, np.ndarray):
                digest.update(value.tobytes())
        return f"{self.kernel}-{digest.hexdigest()[:12]}"


def run(runtime, probe, describe=lambda name, array: None):
    """Launch on a runtime; every array by its field, on the host again. `describe` sees each before it is used.

    What a probe fills is poisoned before.
    """
    arrays, numbers = {}, {}
    for name, value in probe.fields.items():
        if isinstance(value, Out):
            value = np.full(int(np.prod(value.shape)) * np.dtype(value.dtype).itemsize, 0xA5, np.uint8)
            value = value.view(probe.fields[name].dtype).reshape(probe.fields[name].shape)
        if isinstance(value, int):
            numbers[name] = value
        else:
            arrays[name] = runtime.asarray(value)
            describe(name, arrays[name])
    line = probe.line
    params = line.params.pack(**numbers, **{name: runtime.pointer(array) for name, array in arrays.items()})
    with mock.patch.dict(_kernels.KERNELS, {probe.spec.kernel: line}):
        for _ in range(probe.launches):
            runtime.launch(probe.spec, probe.blocks, THREADS, probe.smem_bytes, params)
    return {name: runtime.to_host(array) for name, array in arrays.items() if name in probe.expected}


def differences(found, expected, ulps=0):
    """Text for each field whose numbers are not those expected; NaN is NaN, and zeros have their sign."""
    texts = []
    for name, right in expected.items():
        got = found[name]
        assert got.shape == right.shape, (name, got.shape, right.shape)
        with np.errstate(all="ignore"):
            wrong = _wrong(got, right, ulps)
        if wrong.any():
            at = tuple(int(i[0]) for i in np.nonzero(wrong))
            texts.append(f"{name}: {wrong.sum()} of {right.size} differ, first {at}: {got[at]}, expected {right[at]}")
    return texts


def _wrong(got, right, ulps):
    if got.dtype.kind != "f":
        return got != right
    if not ulps:
        return (got.view(f"u{got.itemsize}") != right.view(f"u{right.itemsize}")) & ~(np.isnan(got) & np.isnan(right))
    rounded = right.astype(got.dtype)
    near = np.abs(got - right) <= ulps * np.abs(np.spacing(rounded)).astype(right.dtype)
    return ~(np.where(np.isfinite(rounded), near, got == rounded) | (np.isnan(got) & np.isnan(rounded)))


def dtype_config(dtype):
    return (("dtype", f"Dtype::{dtype}"),)


def make_convert(dtype):
    rng = np.random.default_rng(1)
    if dtype in FLOATS:
        stored = any_bits(rng, dtype, 1000)
        numbers = any_bits(rng, dtype, 1000)
    else:
        stored = np.arange(2**16, dtype=np.uint16)
        # Numbers halfway between two neighbours, a little to either side of that, and any others.
        least = {"float16": 2.0**-25, "bfloat16": 2.0**-134}[dtype]
        between = [np.float32(least), *(WIDEN[dtype](stored[1:0x7000]) / 2 + WIDEN[dtype](stored[2:0x7001]) / 2)]
        near = np.concatenate([np.nextafter(np.float32(between), np.float32(side)) for side in (-np.inf, np.inf)])
        numbers = any_bits(rng, np.float32, 2**16)
        numbers[: 2**15 : 2], numbers[1 : 2**15 : 2] = np.resize(between, 2**14), rng.permutation(near)[: 2**14]
        numbers[2**15 - 1] = between[0]
    widened = WIDEN[dtype](stored) if dtype in WIDEN else stored
    narrowed = NARROW[dtype](numbers) if dtype in NARROW else numbers
    count, accumulate = len(stored), widened.dtype.type
    fields = {"stored": stored, "numbers": numbers}
    fields |= {name: Out((count,), accumulate) for name in ("widened", "widened_any")}
    fields |= {name: Out((count,), STORED[dtype]) for name in ("narrowed", "narrowed_any")}
    expected = {"widened": widened, "widened_any": widened, "narrowed": narrowed, "narrowed_any": narrowed}
    blocks = -(-count // THREADS)
    return Probe("convert", {**fields, "count": count}, expected, blocks, config=dtype_config(dtype))


def make_arithmetic(dtype, count=500):
    rng = np.random.default_rng(2)
    a, b, c = (any_bits(rng, dtype, count)[rng.permutation(count)] for _ in range(3))
    c[::2] = (-a * b + common(rng, count).astype(dtype) * np.abs(a))[::2]  # so that digits cancel
    c[np.isnan(c)] = np.nan  # whose bits depend on the machine
    a[:5], b[:5], c[:5] = 1 + np.finfo(dtype).eps, 1 - np.finfo(dtype).eps, -1
    m, n = rng.integers(-(2**63), 2**63, (2, count)) >> rng.integers(0, 63, (2, count))
    n[n == 0] = 1
    whole = np.where(m % n != 0, m // n + ((m < 0) != (n < 0)), m // n)  # towards zero
    expected = {"quotient": a / b, "fused": fused(a, b, c), "rounded": np.rint(a)}
    expected |= {"whole": whole, "rest": m - whole * n, "product": m * n}
    fields = {"a": a, "b": b, "c": c, "m": m, "n": n}
    fields |= {name: Out((count,), right.dtype.type) for name, right in expected.items()}
    return Probe("arithmetic", {**fields, "count": count}, expected, -(-count // THREADS), config=dtype_config(dtype))


def make_functions(dtype, count=2000):
    rng = np.random.default_rng(3)
    x = any_bits(rng, dtype, count)
    x[count // 2 :] = common(rng, count - count // 2, (-12, 10))
    x[::9] = 1 + common(rng, len(x[::9]), (-25, 0))  # where log is small
    finer = x.astype(np.float64 if dtype == "float32" else np.longdouble)
    expected = {"exp": np.exp(finer), "log": np.log(finer), "tanh": np.tanh(finer)}
    fields = {"x": x, **{name: Out((count,), x.dtype.type) for name in expected}, "count": count}
    return Probe("functions", fields, expected, -(-count // THREADS), config=dtype_config(dtype), ulps=ULPS)


def make_ex2(count=2000):
    edges = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1, -200, 130], np.float32)
    x = np.append(edges, common(np.random.default_rng(14), count - 8, (-20, 7)).astype(np.float32))
    y, fields = np.exp2(x.astype(np.float64)), {"x": x, "y": Out(x.shape, np.float32), "count": count}
    return Probe("ex2", fields, {"y": np.where(y < 2.0**-126, 0, y)}, -(-count // THREADS), ulps=2)


def make_mma_products(dtype, stride):
    """With a stride that is no multiple of 8 numbers nothing is copied in vectors."""
    rng, depth, columns = np.random.default_rng(15), 21, 19
    a, b, v = (rng.integers(-2, 3, (rows, stride)).astype(np.float32) for rows in (64, 32, 32))
    s = a[:, :depth] @ b[:, :depth].T + np.arange(64)[:, None] - np.arange(32)
    expected = {"tops": s.max(axis=1).astype(np.float32), "sums": s.sum(axis=1).astype(np.float32)}
    expected["out"] = NARROW[dtype]((s @ v[:, :columns]).astype(np.float32))
    fields = {name: NARROW[dtype](x) for name, x in (("a", a), ("b", b), ("v", v))}
    fields |= {name: Out(right.shape, right.dtype.type) for name, right in expected.items()}
    fields |= {"depth": depth, "columns": columns, "stride": stride}
    return Probe("mma_products", fields, expected, 1, 64 * (64 + 64 + 32 + 32) + 64 * THREADS, dtype_config(dtype))


def make_fma_products():
    """Four warps, each with tiles of its own."""
    rng, (rows, keys, depth, columns) = np.random.default_rng(16), (8, 8, 64, 128)
    shapes = {"a": (rows, depth), "b": (4, keys, depth), "v": (4, keys, columns)}
    given = {name: rng.integers(-2, 3, shape).astype(np.float32) for name, shape in shapes.items()}
    s = given["a"] @ given["b"].swapaxes(1, 2)
    expected = {"s": s, "tops": s.max(axis=2), "out": s @ given["v"]}
    fields = given | {name: Out(right.shape, np.float32) for name, right in expected.items()}
    smem_bytes = 4 * 4 * (keys * (depth + columns) + rows * keys)
    return Probe("fma_products", fields, expected, 1, smem_bytes, dtype_config("float32"))


def make_codes(name):
    rng = np.random.default_rng(4)
    known = np.arange(256).astype(np.uint8 if name == "float8_e4m3fn" else np.int8)
    vectors = np.ldexp(common(rng, (256, 8)), rng.integers(-130, 126, (256, 1))).astype(np.float32)
    vectors[:9, 0] = 0, np.inf, -np.inf, np.nan, 1e-45, np.finfo(np.float32).max, 1e-36, -1e-37, 448
    vectors[9] = 0
    vectors[10:20] = np.arange(80).reshape(10, 8) - 40  # with a scale of 1, halfway between codes of either kind
    vectors[20:30] = vectors[10:20] + 0.5
    vectors[10:30, 0] = {"int8": 127, "float8_e4m3fn": 448}[name]
    widened = known.astype(np.float32) if name == "int8" else from_float8(known)
    highest = np.abs(vectors).max(axis=-1, keepdims=True)
    scales = highest / np.float32({"int8": 127, "float8_e4m3fn": 448}[name])
    scales[scales < np.finfo(np.float32).tiny] = 0
    scales[~np.isfinite(highest)] = np.nan
    ratios = np.where(np.isnan(scales), 0, vectors) / np.where(scales > 0, scales, np.float32(np.inf))
    codes = np.rint(ratios).astype(np.int8) if name == "int8" else to_float8(ratios)
    expected = {"widened": widened, "scales": scales[:, 0], "codes": codes}
    fields = {"known": known, "vectors": vectors}
    fields |= {field: Out(right.shape, right.dtype.type) for field, right in expected.items()}
    config = (("codes", f"Codes::{name}"),)
    return Probe("codes", {**fields, "count": 256}, expected, 2, config=config)


def make_code_products(dtype, codes):
    """Every code is a key and a value; weights have as many digits as they must keep."""
    rng = np.random.default_rng(16)
    stored = np.uint8 if codes == "float8_e4m3fn" else np.int8
    b, v = (rng.permutation(np.resize(np.arange(256), 16 * 64)).reshape(16, 64).astype(stored) for _ in range(2))
    digits = 16 if dtype == "float16" else 8
    weights = rng.integers(2 ** (digits - 1), 2**digits, 64).astype(np.float32)
    a, p = np.diag(np.linspace(-3, 3, 64)).astype(np.float32), np.zeros((64, 16), np.float32)
    p[np.arange(64), np.arange(64) * 5 % 16] = np.where(np.arange(64) % 3, weights, -weights)
    scales = np.ldexp(np.float32(1), rng.integers(-60, 60, 16))
    kept = {"a": NARROW[dtype](a), "b": b, "v": v, "p": p, "scales": scales.astype(np.float32)}
    b, v = (x.astype(np.float32) if codes == "int8" else from_float8(x) for x in (b, v))
    expected = {"s": WIDEN[dtype](kept["a"]) @ b.T, "out": (p * scales) @ v}
    expected = {name: right.astype(np.float32) + np.float32(0) for name, right in expected.items()}
    fields = {**kept, **{name: Out(right.shape, np.float32) for name, right in expected.items()}}
    config = (*dtype_config(dtype), ("codes", f"Codes::{codes}"))
    return Probe("code_products", fields, expected, 1, 4 * 16 * 128 + 2 * 16 * 64 + 128, config)


def make_shuffle(dtype):
    rng = np.random.default_rng(5)
    x = common(rng, THREADS).astype(dtype)
    lanes = rng.integers(-(2**31), 2**31, THREADS).astype(np.int32)
    first = np.arange(THREADS) // 32 * 32
    flipped = np.array([x[np.arange(THREADS) ^ 1 << bit] for bit in range(5)])
    expected = {"named": x[first + lanes % 32], "flipped": flipped}
    fields = {
        "x": x,
        "lanes": lanes,
        "named": Out((THREADS,), x.dtype.type),
        "flipped": Out((5, THREADS), x.dtype.type),
    }
    return Probe("shuffle", fields, expected, config=dtype_config(dtype))


def make_row_reduce(dtype):
    x = common(np.random.default_rng(6), (3, THREADS)).astype(dtype)
    x[1, ::7], x[2, 16:48] = -np.inf, -np.inf
    rows = x.reshape(3, THREADS // 16, 16)
    total = rows
    for lane in (1, 2, 4, 8):  # neighbours first, so that all 16 threads get the same bits
        total = total + total[..., np.arange(16) ^ lane]
    highest = np.broadcast_to(rows.max(axis=-1, keepdims=True), rows.shape)
    expected = {"max": highest.reshape(x.shape), "sum": total.reshape(x.shape)}
    fields = {"x": x, "max": Out(x.shape, x.dtype.type), "sum": Out(x.shape, x.dtype.type)}
    return Probe("row_reduce", fields, expected, 3, config=dtype_config(dtype))


def make_simt_load(dtype, transposed=False):
    rng = np.random.default_rng(7)
    rows, cols, (tile_rows, tile_cols) = 20, 41, (16, 32)
    stored = common(rng, (rows, cols)).astype(np.float32 if dtype in WIDEN else dtype)
    stored = NARROW[dtype](stored) if dtype in NARROW else stored
    data = np.full((rows + 4, cols + 5), 0x7FFF if dtype in WIDEN else np.nan, stored.dtype)
    data[2:-2, 3:-2] = stored
    wide = (WIDEN[dtype](stored) if dtype in WIDEN else stored)[:, ::-1]
    strides = (data.shape[1], -1)  # from the last column backwards
    if transposed:
        wide, strides = wide.T, strides[::-1]
    tiles = [-(-size // tile) for size, tile in zip(wide.shape, (tile_rows, tile_cols))]
    padded = np.zeros((tiles[0] * tile_rows, tiles[1] * tile_cols), wide.dtype)
    padded[: wide.shape[0], : wide.shape[1]] = wide
    expected = padded.reshape(tiles[0], tile_rows, tiles[1], tile_cols).swapaxes(1, 2)
    numbers = {"offset": 2 * data.shape[1] + 3 + cols - 1, "row_stride": strides[0], "col_stride": strides[1]}
    numbers |= {"rows": wide.shape[0], "cols": wide.shape[1], "col_tiles": tiles[1]}
    fields = {"data": data, "tiles": Out(expected.shape, wide.dtype.type), **numbers}
    smem_bytes = tile_rows * _row_bytes(tile_cols, wide.itemsize)
    return Probe("simt_load", fields, {"tiles": expected}, tiles[0] * tiles[1], smem_bytes, dtype_config(dtype))


def _row_bytes(cols, itemsize):
    """Of a tile in shared memory, with the 16 bytes behind it."""
    return cols * itemsize + 16


def make_simt_registers(dtype):
    x = common(np.random.default_rng(8), (32, 32)).astype(dtype)
    rows = np.broadcast_to(np.arange(32)[:, None] // 4, x.shape).astype(dtype)
    fields = {"x": x, "scaled": Out(x.shape, x.dtype.type), "rows": Out(x.shape, x.dtype.type)}
    smem_bytes = 2 * 32 * _row_bytes(32, x.itemsize)
    expected = {"scaled": x * x.dtype.type(-2), "rows": rows}
    return Probe("simt_registers", fields, expected, smem_bytes=smem_bytes, config=dtype_config(dtype))


def make_simt_mma_abt(dtype):
    rng = np.random.default_rng(9)
    depth = 21  # the last chunk is not full
    s, a, b = (common(rng, shape).astype(dtype) for shape in ((16, 32), (16, depth), (32, depth)))
    fields = {"s": s, "a": a, "b": b, "out": Out(s.shape, s.dtype.type), "depth": depth}
    smem_bytes = 48 * _row_bytes(64 // s.itemsize, s.itemsize) + 16 * _row_bytes(32, s.itemsize)
    expected = {"out": s}
    for chunk in np.split(np.arange(depth), range(64 // s.itemsize, depth, 64 // s.itemsize)):
        expected["out"] = expected["out"] + matmul(np.zeros_like(s), a[:, chunk], b[:, chunk].T)
    return Probe("simt_mma_abt", fields, expected, smem_bytes=smem_bytes, config=dtype_config(dtype))


def make_simt_mma_ab(dtype):
    rng = np.random.default_rng(10)
    cols = 256 // np.dtype(dtype).itemsize
    a, b = (common(rng, shape).astype(dtype) for shape in ((16, 16), (16, cols)))
    once = matmul(np.zeros((16, cols), dtype), a, b)
    expected = {"once": once, "twice": matmul(once, a, b)}
    fields = {"a": a, "b": b, **{name: Out(once.shape, once.dtype.type) for name in expected}}
    smem_bytes = 16 * _row_bytes(16, a.itemsize) + 16 * 256 + 32 * THREADS
    return Probe("simt_mma_ab", fields, expected, smem_bytes=smem_bytes, config=dtype_config(dtype))


def make_simt_mma_atb(dtype):
    rng = np.random.default_rng(11)
    cols = 256 // np.dtype(dtype).itemsize
    a, b = (common(rng, shape).astype(dtype) for shape in ((16, 32), (16, cols)))
    out = matmul(np.zeros((32, cols), dtype), a.T, b)
    fields = {"a": a, "b": b, "out": Out(out.shape, out.dtype.type)}
    smem_bytes = 16 * _row_bytes(32, a.itemsize) + 16 * 256 + 64 * THREADS
    return Probe("simt_mma_atb", fields, {"out": out}, smem_bytes=smem_bytes, config=dtype_config(dtype))


def make_shared_map():
    x = np.random.default_rng(12).integers(-(2**31), 2**31, (112, THREADS)).astype(np.int32)
    fields = {"x": x, "mirrored": Out(x.shape, np.int32)}
    return Probe("shared_map", fields, {"mirrored": x[::-1, ::-1]}, smem_bytes=4 + x.nbytes)


def make_atom_add(blocks=6):
    count = blocks * THREADS
    fields = {"counter": np.zeros(1, np.uint32), "drawn": np.zeros(count, np.int32)}
    expected = {"counter": np.array([3 * count], np.uint32), "drawn": np.ones(count, np.int32)}
    return Probe("atom_add", fields, expected, blocks, between_blocks=("counter", "drawn"))


def make_ticket(groups=3, parts=5):
    x = np.random.default_rng(13).integers(-1000, 1000, (groups, parts, THREADS)).astype(np.int32)
    expected = {"counters": np.zeros(groups, np.uint32), "parts": 2 * x, "sums": 2 * x.sum(axis=1, dtype=np.int32)}
    expected["finishers"] = np.full(groups, 2, np.int32)
    fields = {"x": x, "counters": np.zeros(groups, np.uint32), "parts": Out(x.shape, np.int32)}
    fields |= {"sums": Out((groups, THREADS), np.int32), "finishers": np.zeros(groups, np.int32), "count": parts}
    shared = ("counters", "parts", "sums", "finishers")
    return Probe("ticket", fields, expected, groups * parts, 4, launches=2, between_blocks=shared)


def _by_dtype(make, dtypes=FLOATS, **options):
    name = make.__name__.removeprefix("make_")
    said = [key if value is True else f"{key}{value}" for key, value in options.items()]
    return {"-".join([name, dtype, *said]): partial(make, dtype, **options) for dtype in dtypes}


MAKERS = {
    **_by_dtype(make_convert, STORED),
    **_by_dtype(make_arithmetic),
    **_by_dtype(make_functions),
    "ex2": make_ex2,
    **_by_dtype(make_mma_products, NARROW, stride=24),
    **_by_dtype(make_mma_products, NARROW, stride=21),
    "fma_products": make_fma_products,
    **_by_dtype(make_codes, ("int8", "float8_e4m3fn")),
    **_by_dtype(make_code_products, NARROW, codes="int8"),
    **_by_dtype(make_code_products, NARROW, codes="float8_e4m3fn"),
    **_by_dtype(make_shuffle),
    **_by_dtype(make_row_reduce),
    **_by_dtype(make_simt_load, STORED),
    **_by_dtype(make_simt_load, STORED, transposed=True),
    **_by_dtype(make_simt_registers),
    **_by_dtype(make_simt_mma_abt),
    **_by_dtype(make_simt_mma_ab),
    **_by_dtype(make_simt_mma_atb),
    "shared_map": make_shared_map,
    "atom_add": make_atom_add,
    "ticket": make_ticket,
}


def make(name):
    """A probe by its name."""
    with np.errstate(all="ignore"):
        return MAKERS[name]()
