"""Number formats of the machine against NumPy and ml_dtypes: every code, and numbers around every boundary."""

import numpy as np
import pytest

from emulator.small_kernels import fixtures, kernels

run, array = fixtures()
CONVERT = """
    for (u32 i = tid(); i < %d; i += 32) {
        %s from;
        load_global<sizeof from>(&from, arrays[0] + i * sizeof from, AT(1));
        auto to = %s(from);
        store_global<sizeof to>(arrays[1] + i * sizeof to, &to, AT(2));
    }
"""
COUNT = 1 << 16
STORAGE = {"f16": "uint16", "bf16": "uint16", "e4m3": "uint8"}
FINITE = {"f16": 0x7C00, "bf16": 0x7F80, "e4m3": 0x7F}  # codes of finite numbers, without sign, from 0 to below this
WIDEN = {
    f"from_{name}": CONVERT % (1 << 8 * np.dtype(kind).itemsize, f"{kind}_t", f"f32_from_{name}")
    for name, kind in STORAGE.items()
}
PAIRS = (("f16", "f32"), ("f16", "f64"), ("bf16", "f32"), ("bf16", "f64"), ("e4m3", "f32"))
CPP = {"f32": "float", "f64": "double"}
NARROW = {f"{target}_{source}": CONVERT % (COUNT, CPP[source], f"{target}_from_{source}") for target, source in PAIRS}


def format_of(name):
    if name == "f16":
        return np.dtype(np.float16)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return np.dtype({"bf16": ml_dtypes.bfloat16, "e4m3": ml_dtypes.float8_e4m3fn}[name])


@pytest.mark.parametrize("name", STORAGE)
@kernels(**WIDEN)
def test_every_code_widens_exactly(run, array, name):
    codes = np.arange(1 << 8 * np.dtype(STORAGE[name]).itemsize).astype(STORAGE[name])
    out = array("out", 4 * codes.size)
    assert run(f"from_{name}", array("codes", codes.nbytes, codes), out).report == ""
    expected = codes.view(format_of(name)).astype(np.float32)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(out.view()[~nan], expected.view(np.uint32)[~nan])
    assert (out.view()[nan] == 0x7FFFFFFF).all()


def numbers_of(name):
    """All finite numbers of a format that have no sign."""
    return np.arange(FINITE[name]).astype(STORAGE[name]).view(format_of(name)).astype(np.float64)


def around_boundaries(name, dtype):
    """Numbers of a format, the points half-way between them and their neighbours on both sides, and wild ones."""
    rng = np.random.default_rng(3)
    numbers = numbers_of(name).astype(dtype)
    halves = numbers[:-1] / 2 + numbers[1:] / 2
    beyond = numbers[-1] * np.array([1 + 2.0**-10, 1.0312, 1.04, 1.5, 2], dtype)
    centres = np.concatenate([numbers, halves])
    near = np.concatenate([np.nextafter(centres, dtype(np.inf)), np.nextafter(centres, dtype(-np.inf)), centres])
    tiny = np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal
    wild = np.array([0, np.inf, np.nan, *tiny, np.finfo(dtype).max, *numbers[-3:], *beyond], dtype)
    chosen = rng.choice(near, COUNT - 2 * wild.size) * rng.choice(np.array([-1, 1], dtype), COUNT - 2 * wild.size)
    return np.concatenate([wild, -wild, chosen])


@pytest.mark.parametrize("name", NARROW)
@kernels(**NARROW)
def test_numbers_are_rounded_to_nearest_even(run, array, name):
    target, source = name.split("_")
    dtype = {"f32": np.float32, "f64": np.float64}[source]
    with np.errstate(over="ignore"):
        values = around_boundaries(target, dtype)
    expected = rounded(values, target)
    out = array("out", COUNT * expected.itemsize)
    assert run(name, array("values", values.nbytes, values), out).report == ""
    np.testing.assert_array_equal(out.view(expected.dtype), expected)


def rounded(values, name):
    """Codes, by search among all numbers of the format: the nearest, of two equally near the even code."""
    finite, bits = numbers_of(name), 8 * np.dtype(STORAGE[name]).itemsize
    ladder = np.append(finite, 2 * finite[-1] - finite[-2])  # the next, were there one: infinity begins half-way to it
    magnitude = np.nan_to_num(np.abs(values.astype(np.float64)), posinf=np.inf)
    below = np.clip(np.searchsorted(ladder, magnitude, side="right") - 1, 0, finite.size - 1)
    low, high = magnitude - ladder[below], ladder[below + 1] - magnitude
    code = below + ((high < low) | ((high == low) & (below % 2 == 1)))
    if name == "e4m3":
        code = np.minimum(code, finite.size - 1)
    code = np.where(np.isnan(values), (1 << bits - 1) - 1, code | np.signbit(values).astype(np.int64) << bits - 1)
    return code.astype(STORAGE[name])
