"""Quantised storage, which both caches share: codes and scales, what is kept of each number, and what is read of it."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from backends import host

import cuflash

# The largest code, and how far a scaled number may be from its code: half of the distance between two codes there.
QUANTISED = {
    "int8": (127, lambda x: np.full_like(x, 0.5)),
    "float8_e4m3fn": (448, lambda x: np.maximum(np.abs(x) / 16, 2.0**-10)),
}
ROUNDED = 1 + 1e-4  # of a number half way between two codes, when it is divided by its scale
GIVEN = ("float16", "bfloat16", "float32")
CACHES = {
    "KVCache": lambda **options: cuflash.KVCache(3, 2, 2, 4, grow=True, **options),
    "PagedKVCache": lambda **options: cuflash.PagedKVCache(20, 3, 2, 4, **options),
}


@pytest.fixture(params=list(QUANTISED))
def quantised(request):
    """The dtype of each quantised cache, its largest code, and how far a scaled number may be from its code."""
    pytest.importorskip("ml_dtypes")
    return request.param, *QUANTISED[request.param]


def state(cache):
    """Every byte of a cache."""
    return [host(x).tobytes() for x in (cache.k, cache.v, cache.k_scale, cache.v_scale, cache.lengths)]


def numbers_of(codes, dtype):
    """Codes as NumPy knows them; a device keeps those of float8 as bytes."""
    return host(codes).view(np.dtype(dtype))


@pytest.fixture(scope="session")
def one_sequence(backend):
    """`one_sequence(dtype, vectors)`: codes and scales of vectors (n, d), kept as keys of one head.

    The values are the vectors in reverse.
    """

    def make(dtype, vectors):
        cache = cuflash.KVCache(1, len(vectors), 1, vectors.shape[1], dtype=dtype, xp=backend.xp)
        cache.append(backend.asarray(vectors[None, None]), backend.asarray(vectors[None, None, ::-1]))
        k, v, k_scale, v_scale = map(host, (cache.k, cache.v, cache.k_scale, cache.v_scale))
        for one, other in ((k, v[:, ::-1]), (k_scale, v_scale[:, ::-1])):
            assert one.tobytes() == other.tobytes()
        return numbers_of(k, dtype)[0, :, 0], k_scale[0, :, 0]

    return make


@pytest.mark.parametrize("name", GIVEN)
def test_codes_are_the_nearest(name, quantised, one_sequence, normal):
    dtype, largest, allowed = quantised
    size = 10.0 ** np.linspace(-4, 4, 200)[:, None]
    vectors = (normal(200, 16) * size).astype(np.dtype(name))
    codes, scales = one_sequence(dtype, vectors)
    assert codes.dtype.name == dtype and scales.dtype == np.float32
    x = vectors.astype(np.float64)
    np.testing.assert_allclose(scales, np.abs(x).max(axis=1) / largest, rtol=1e-7)
    scaled = x / scales[:, None].astype(np.float64)
    assert (np.abs(codes.astype(np.float64) - scaled) <= allowed(scaled) * ROUNDED).all()
    assert (np.abs(codes.astype(np.float64)).max(axis=1) == largest).all()


def test_float8_codes_round_as_ml_dtypes_does(one_sequence):
    """All codes, the numbers half way between any two, and both neighbours of those; 448 keeps the scale at 1.

    Of subnormal codes a neighbour is a thousandth away: next to the half, these numbers may be rounded twice.
    """
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    half = (codes[1:] + codes[:-1]) / 2
    near = np.where(half < 2.0**-6, np.float32(2.0**-10), np.finfo(np.float32).eps)
    numbers = np.concatenate([codes, half, half * (1 - near), half * (1 + near)])
    numbers = np.concatenate([numbers, -numbers])
    vectors = np.stack([numbers, np.full_like(numbers, 448)], axis=1)
    found, scales = one_sequence("float8_e4m3fn", vectors)
    assert (scales == 1).all()
    expected = vectors.astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))


def test_every_float8_code_is_read_exactly(backend, make_cache):
    """Values of one key each: the weight is 1, so the result is the value."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = np.delete(np.arange(256, dtype=np.uint8), [0x7F, 0xFF]).view(ml_dtypes.float8_e4m3fn)
    cache = make_cache(np.ones((1, 1, 1, 1), np.float32), np.ones((1, 1, 1, 254), np.float32), [1], dtype=codes.dtype)
    cache.v[0, 0, 0] = backend.asarray(codes.view(host(cache.v).dtype))
    cache.v_scale[0, 0, 0] = 0.5
    out = backend.to_numpy(cuflash.decode(backend.asarray(np.ones((1, 1, 1), np.float32)), cache))
    np.testing.assert_array_equal(out[0, 0], codes.astype(np.float32) / 2)


def test_zero_and_nearly_zero_vectors_are_zero(quantised, one_sequence):
    vectors = np.array([[0, 0, 0], [1e-40, -1e-39, 0], [1e-45, 0, 0], [-0.0, 0, 0], [0, 1e-30, 0]], np.float32)
    codes, scales = one_sequence(quantised[0], vectors)
    assert scales[:4].tolist() == [0] * 4
    assert not codes[:4].astype(float).any()
    np.testing.assert_allclose(codes[4].astype(float) * scales[4], vectors[4], rtol=1e-6)


def test_a_caller_who_wants_errors_for_underflow_gets_none(quantised, one_sequence, normal):
    vectors = normal(20, 4) * np.float32(10.0) ** np.arange(-45, 35, 4, dtype=np.float32)[:, None]
    codes, scales = one_sequence(quantised[0], vectors)
    with np.errstate(all="raise"):
        same = one_sequence(quantised[0], vectors)
    assert (codes.tobytes(), scales.tobytes()) == tuple(x.tobytes() for x in same)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_vector_with_no_finite_number_is_nan_and_no_other_is(number, quantised, backend, make_cache, normal):
    x = normal(1, 2, 5, 4)
    broken = x.copy()
    broken[0, 1, 3, 2] = number
    cache, sound = (make_cache(array, array, [5], dtype=quantised[0]) for array in (broken, x))
    assert np.isnan(host(cache.k_scale)).sum() == np.isnan(host(cache.v_scale)).sum() == 1
    assert np.isnan(host(cache.k_scale)[0, 3, 1])
    cache.k_scale[0, 3, 1], cache.v_scale[0, 3, 1] = sound.k_scale[0, 3, 1], sound.v_scale[0, 3, 1]
    cache.k[0, 3, 1], cache.v[0, 3, 1] = sound.k[0, 3, 1], sound.v[0, 3, 1]
    assert state(cache) == state(sound)
    q = backend.asarray(np.ones((1, 2, 4), np.float32))
    assert np.isfinite(backend.to_numpy(cuflash.decode(q, cache))).all()
    out = backend.to_numpy(cuflash.decode(q, make_cache(broken, broken, [5], dtype=quantised[0])))
    assert np.isnan(out[0, 1]).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_the_largest_numbers_of_each_dtype(name, quantised, one_sequence):
    pytest.importorskip("ml_dtypes")
    most = float(np.finfo(np.float32).max) if name != "float16" else 65504.0
    vectors = np.array([[most, -most, most / 2]], np.float32).astype(np.dtype(name))
    if name == "bfloat16":
        vectors = np.array([[3e38, -3e38, 1e38]], np.float32).astype(vectors.dtype)
    codes, scales = one_sequence(quantised[0], vectors)
    found = codes.astype(np.float64) * scales[:, None]
    np.testing.assert_allclose(found, vectors.astype(np.float64), rtol=0.07)


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", GIVEN)
def test_each_token_and_head_has_a_scale_of_its_own(name, kind, quantised, backend, normal):
    """Of loud and quiet tokens and heads, in parts, to some rows, each is as near as its own size allows."""
    dtype, _, allowed = quantised
    cache = CACHES[kind](dtype=dtype, xp=backend.xp)
    rows = [cache.add() for _ in range(3)] if kind == "PagedKVCache" else [0, 1, 2]
    size = 10.0 ** np.arange(-3, 4)[:, None] * np.array([1, 5])
    k, v = ((normal(3, 2, 7, 4, seed=seed) * size.T[:, :, None]).astype(np.dtype(name)) for seed in range(2))
    for part in (slice(0, 4), slice(4, 7)):
        new = [backend.asarray(x[:, :, part]) for x in (k, v)]
        cache.append(*new, seqs=rows[::-1], lengths=[part.stop - part.start, 1, 2])
    assert host(cache.lengths)[rows].tolist() == [4, 2, 7]
    i = np.arange(7)
    where = (2, i) if kind == "KVCache" else (host(cache.page_table)[2, i // 3], i % 3)
    for x, *kept in ((k, cache.k, cache.k_scale), (v, cache.v, cache.v_scale)):
        codes, scales = numbers_of(kept[0], dtype), host(kept[1])
        given = x[0].astype(np.float64).swapaxes(0, 1)
        scale = scales[where].astype(np.float64)[..., None]
        error = np.abs(codes[where].astype(np.float64) * scale - given)
        assert (error <= allowed(given / scale) * scale * ROUNDED).all()


@pytest.mark.parametrize("dtype", ["float64", "int32"])
def test_a_quantised_cache_takes_floats_of_32_bits_at_most(dtype, quantised, backend):
    cache = cuflash.KVCache(1, 4, 1, 4, dtype=quantised[0], xp=backend.xp)
    before, new = state(cache), backend.asarray(np.ones((1, 1, 2, 4), dtype))
    with pytest.raises(TypeError, match=f"KVCache.append: `k` has dtype {dtype}, but"):
        cache.append(new, new)
    with pytest.raises(TypeError, match="`v` has dtype float16, but `k` has float32; nothing is promoted"):
        cache.append(new.astype(np.float32), new.astype(np.float16))
    assert state(cache) == before


def test_the_table_of_the_guide_is_what_is_measured(monkeypatch):
    """docs/cache_errors.csv, measured again over a quarter of the tokens, which changes little."""
    pytest.importorskip("ml_dtypes")
    folder = Path(__file__).parent.parent / "docs"
    script = importlib.util.spec_from_file_location("cache_errors", folder / "cache_errors.py")
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)
    monkeypatch.setattr(module, "LENGTH", 1024)
    with (folder / "cache_errors.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == module.HEADER
    for row, (dtype, size, *errors) in zip(rows, module.measure(), strict=True):
        assert row[:2] == [dtype, f"{size:g}"]
        ratios = np.array(errors) / [float(one) for one in row[2:]]
        assert (ratios > 0.5).all() and (ratios < 1.5).all(), (dtype, errors)
