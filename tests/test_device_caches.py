"""Caches on a device that the host does not look at: bounds of lengths, and what waits for the device.

The device is tests/stand_in.py: what waits for it is in its log, and reading an array of it fails.
"""

import copy
import pickle

import numpy as np
import pytest
from device_caches import DIM, HEADS, KERNELS, KINDS, Device

import cuflash
from cuflash import CacheFullError, ProblemError
from cuflash._cuda import caches as device_functions
from cuflash._params import DECODE, FARTHEST


@pytest.fixture(params=KERNELS)
def device(request, monkeypatch):
    return Device(request.param, request.config, monkeypatch)


@pytest.fixture(params=KINDS)
def either(request, device):
    """A cache of two sequences of either kind."""
    return getattr(device, request.param)()


def test_arrays_are_those_of_the_device(device, either):
    for array in (either.k, either.v, either.lengths):
        assert type(array) is device.runtime.array
    assert either.lengths.dtype == np.int32
    assert either.page_table is None or either.page_table.dtype == np.int32
    assert either.k_scale is None


def test_float8_is_kept_as_bytes(device):
    pytest.importorskip("ml_dtypes")
    cache = device.cache(cuflash.KVCache, 1, 4, dtype="float8_e4m3fn")
    assert (cache.dtype.name, cache.k.dtype, cache.k_scale.dtype) == ("float8_e4m3fn", np.uint8, np.float32)
    q = device.put(np.ones((1, HEADS, DIM), np.float32))
    assert cuflash.decode(q, cache).shape == (1, HEADS, DIM)


OPTIONS = {
    "nothing": {},
    "window": {"window": (3, 0)},
    "not causal": {"causal": False},
    "softcap and scale": {"softcap": 2.0, "scale": 0.7},
    "splits": {"splits": 3},
    "Alibi": {"bias": cuflash.Alibi(np.array([0.5, 0.25, 1.0, 0.1]))},
    "bias": {"bias": np.zeros((4, 2, 8))},
    "bias of all keys alike": {"bias": np.zeros((4, 2, 1))},
    "sinks": {"sinks": np.zeros(4)},
    "seqs": {"seqs": [1, 0]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", [cuflash.KVCache, cuflash.PagedKVCache])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8"])
def test_decode_is_that_of_numpy(kind, dtype, options, device):
    """Rows, strides, options and the parts that are launched: all in the struct."""
    rng = np.random.default_rng(0)
    given = "float64" if dtype == "float64" else "float32"
    sizes = (2, 8) if kind is cuflash.KVCache else (8, 3)
    host, cache = kind(*sizes, HEADS, DIM, dtype=dtype), device.cache(kind, *sizes, dtype=dtype)
    if kind is cuflash.PagedKVCache:
        for one in (host, cache, host, cache):
            one.add()
    k, v = rng.standard_normal((2, 2, HEADS, 7, DIM)).astype(given)
    lengths = [1, 7] if "seqs" in options else [7, 1]
    host.append(k, v, lengths=lengths)
    cache.append(device.put(k), device.put(v), lengths=lengths)
    arrays = {name: x for name, x in options.items() if isinstance(x, np.ndarray)}
    arrays = {name: rng.standard_normal(x.shape).astype(given) for name, x in arrays.items()}
    q = rng.standard_normal((2, 2, 4, DIM)).astype(given).swapaxes(1, 2)
    expected = cuflash.decode(q, host, return_lse=True, **options | arrays)
    moved = {name: device.put(array) for name, array in arrays.items()}
    found = cuflash.decode(
        device.put(q.swapaxes(1, 2).copy()).swapaxes(1, 2), cache, return_lse=True, **options | moved
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(device.get(one), other, rtol=1e-5, atol=1e-6)
    assert "wait" not in device.log


def test_one_token_and_out_and_layout(device):
    flat = device.flat()
    host = cuflash.KVCache(2, 8, HEADS, DIM, dtype=np.float32)
    on_device, numbers = device.tokens(2, 5)
    flat.append(on_device, on_device)
    host.append(numbers, numbers)
    q = np.random.default_rng(1).standard_normal((2, 4, DIM), dtype=np.float32)
    out = device.put(np.zeros((2, 1, 4, DIM), np.float32))
    assert cuflash.decode(device.put(q[:, None]), flat, layout="blhd", out=out) is out
    expected = cuflash.decode(q, host)
    np.testing.assert_allclose(device.get(out)[:, 0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(device.get(cuflash.decode(device.put(q), flat)), expected, rtol=1e-5, atol=1e-6)


def test_a_width_that_is_given_never_counts_as_unlimited(device):
    flat, q, out = device.flat(), *(device.put(np.zeros((2, HEADS, DIM), np.float32)) for _ in range(2))
    device.fill(flat, 5)
    for window, left in ((None, FARTHEST), ((7, None), 7), ((2**70, None), FARTHEST // 4)):
        cuflash.decode(q, flat, window=window)
        ((*_, params),) = device.capture(lambda window=window: cuflash.decode(q, flat, out=out, window=window))
        assert DECODE.unpack(params)["left"] == left


def test_nothing_but_sync_check_and_validate_waits(device, either):
    new, _ = device.tokens(2, 3)
    either.append(new, new)
    either.append(new, new, lengths=device.put(np.array([1, 2])))
    cuflash.decode(new, either)
    cuflash.decode(new, either, validate=False)
    if either.page_table is not None:
        either.free(either.fork(0))
        either.reserve(1, 5)
        either.trim(1, 0, 3)
    either.truncate(0, 2)
    assert "wait" not in device.log
    for look in (either.sync, either.check, lambda: cuflash.decode(new[:, :, :1], either, validate=True)):
        device.log.clear()
        look()
        assert "wait" in device.log


@pytest.mark.parametrize("count", [3, [3, 1], "on the device"])
def test_an_append_whose_bound_does_not_fit_launches_nothing(count, device):
    cache = device.cache(cuflash.KVCache, 2, 8)
    new, _ = device.tokens(2, 6)
    cache.append(new, new)
    device.log.clear()
    more, _ = device.tokens(2, 3, seed=1)
    lengths = device.put(np.array([1, 1])) if count == "on the device" else count
    with pytest.raises(CacheFullError, match=r"a sequence could have 9 tokens, but the cache has capacity=8; sync\(\)"):
        cache.append(more, more, lengths=lengths)
    assert device.log == [] and device.lengths(cache) == [6, 6]
    cache.append(more, more, lengths=2)  # the bounds are what they were
    assert device.lengths(cache) == [8, 8]


def test_a_full_pool_launches_nothing(device):
    paged = device.paged()
    new, _ = device.tokens(2, 24)
    paged.append(new, new)
    device.log.clear()
    table = device.get(paged.page_table).copy()
    with pytest.raises(CacheFullError, match=r"more pages than the 0 that are free .*; sync\(\) if the host may "):
        paged.append(new[:, :, :1], new[:, :, :1])
    assert device.log == [] and device.lengths(paged) == [24, 24]
    np.testing.assert_array_equal(device.get(paged.page_table), table)


def test_the_page_table_is_changed_in_place_and_when_it_changes(device):
    paged = device.paged()
    table, address = paged.page_table, device.get(paged.page_table).ctypes.data
    device.fill(paged, 3)
    assert device.log == ["scatter", "kv_append"]
    device.log.clear()
    device.fill(paged, 1)
    assert device.log == ["kv_append"]  # within the page
    device.fill(paged, 1, lengths=[1, 0])
    assert device.log == ["kv_append", "scatter", "kv_append"]
    assert paged.page_table is table and device.get(table).ctypes.data == address
    assert device.get(table)[:2, :3].tolist() == [[0, 2, -1], [1, -1, -1]]
    paged.truncate(0, 1)
    assert device.get(table)[:2, :3].tolist() == [[0, -1, -1], [1, -1, -1]]
    paged.check()
    device.get(table)[1, 0] = 7
    with pytest.raises(
        ProblemError, match="was changed from outside: row 1 lists page 7 at 0, where the cache has put 1"
    ):
        paged.check()


def test_counts_on_the_device_make_bounds_until_sync(device):
    flat = device.flat()
    new, numbers = device.tokens(2, 4)
    for _ in range(2):
        flat.append(new, new, lengths=device.put(np.array([1, 3])))
    assert device.lengths(flat) == [2, 6]
    with pytest.raises(CacheFullError, match="could have 9 tokens"):
        flat.append(new[:, :, :1], new[:, :, :1])
    with pytest.raises(ProblemError, match=r"`length` is 1 for row 0, but it has only 0 tokens for all that the host "):
        flat.truncate(0, 1)
    flat.sync()
    flat.append(new[:, :, :1], new[:, :, :1])
    flat.truncate(0, 1)
    assert device.lengths(flat) == [1, 7]
    np.testing.assert_array_equal(device.stored(flat, 1)[:, 3:6], numbers[1, :, :3])


@pytest.mark.parametrize("counts", [[-3, 9], np.array([0, 4], np.uint8)])
def test_counts_on_the_device_are_taken_for_0_to_l(counts, device):
    flat = device.flat()
    new, _ = device.tokens(2, 4)
    counts = np.array(counts)
    flat.append(new, new, lengths=device.put(counts))
    assert device.lengths(flat) == [0, 4]


def test_a_sequence_of_unknown_length_writes_into_no_page_of_its_fork(device):
    """It has 3 to 11 tokens in pages of 4; the next may go to any of three pages that both hold."""
    paged = device.paged()
    new, numbers = device.tokens(2, 8)
    device.fill(paged, 3)
    paged.append(new, new, lengths=device.put(np.array([2, 0])))
    child = paged.fork(0)
    expected = device.stored(paged, child)
    paged.append(new, new, seqs=[0, child], lengths=[1, 3])
    assert device.lengths(paged, 3) == [6, 3, 8]
    for seq, row, more in ((0, 0, 1), (child, 1, 3)):
        found = device.stored(paged, seq)
        np.testing.assert_array_equal(found[:, :5], expected)
        np.testing.assert_array_equal(found[:, 5:], numbers[row, :, :more])
    paged.check()
    assert not set(paged._pages.table[0, :3]) & set(paged._pages.table[child, :3])


def test_truncate_makes_the_bound_exact(device, either):
    new, numbers = device.tokens(2, 4)
    either.append(new, new)
    either.append(new, new, lengths=device.put(np.array([0, 1])))
    either.truncate(None, [4, 3])
    assert device.lengths(either) == [4, 3]
    with pytest.raises(ProblemError, match="`length` is 4 for row 1, but it has only 3 tokens"):
        either.truncate(1, 4)
    either.append(new[:, :, :2], new[:, :, :2])
    np.testing.assert_array_equal(device.stored(either, 1), np.concatenate([numbers[1, :, :3], numbers[1, :, :2]], 1))
    assert "wait" not in device.log


def test_lengths_are_assigned_in_place(device, either):
    before = either.lengths
    either.lengths = device.put(np.full(before.shape, 3, np.int32))
    assert either.lengths is before
    assert device.lengths(either) == [3, 3]
    with pytest.raises(TypeError, match="`lengths` has dtype int64, but must be int32"):
        either.lengths = device.put(np.full(before.shape, 3))
    with pytest.raises(ProblemError, match="`lengths` has shape"):
        either.lengths = device.put(np.full(5, 3, np.int32))
    with pytest.raises(TypeError, match="is a numpy array"):
        either.lengths = np.full(before.shape, 3, np.int32)


def test_lengths_written_by_hand_count_as_far_as_there_is_room(device):
    """The host took them for 0; decoding sees 6 tokens, and no more than the pages that are reserved."""
    paged = device.paged()
    paged.reserve(0, 6)
    paged.reserve(1, 4)
    device.get(paged.k)[...] = device.get(paged.v)[...] = 1
    device.get(paged.lengths)[:2] = 6, 3
    q, _ = device.tokens(2, 1)
    lse = device.get(cuflash.decode(q, paged, return_lse=True, scale=0.0)[1])
    np.testing.assert_allclose(np.exp(lse[:, 0, 0]), [6, 3], rtol=1e-6)
    device.get(paged.lengths)[0] = 99
    with pytest.raises(ProblemError, match=r"PagedKVCache.check: `cache.lengths` holds 99, but must lie in 0..8"):
        paged.check()
    with pytest.raises(ProblemError, match=r"PagedKVCache.sync: `cache.lengths` holds 99, but must lie in 0..8"):
        paged.sync()
    with pytest.raises(ProblemError, match=r"decode: `cache.lengths` holds 99 for sequence 0"):
        cuflash.decode(q, paged, validate=True)
    lse = device.get(cuflash.decode(q, paged, return_lse=True, scale=0.0)[1])
    np.testing.assert_allclose(np.exp(lse[:, 0, 0]), [8, 3], rtol=1e-6)


def test_a_bias_is_not_read_beyond_its_keys(device):
    flat = device.flat()
    q, _ = device.tokens(2, 1)
    device.fill(flat, 5)
    bias = device.put(np.zeros((1, 5), np.float32))
    cuflash.decode(q, flat, bias=bias)
    device.get(flat.lengths)[0] = 8  # by hand: the host believes 5
    lse = device.get(cuflash.decode(q, flat, bias=bias, scale=0.0, return_lse=True)[1])
    np.testing.assert_allclose(np.exp(lse[0, 0, 0]), 5, rtol=1e-6)
    flat.sync()
    with pytest.raises(ProblemError, match=r"`bias` has 5 keys on its last axis, but the longest sequence of .* has 8"):
        cuflash.decode(q, flat, bias=bias)


def test_a_bias_that_is_too_short_moves_no_query(device):
    """Queries stand behind all tokens, also where the bias ends before."""
    flat = device.flat()
    q, _ = device.tokens(2, 1)
    device.fill(flat, 5)
    bias = device.put(np.zeros((1, 5), np.float32))
    device.get(flat.lengths)[0] = 8
    lse = device.get(cuflash.decode(q, flat, bias=bias, window=(4, 0), scale=0.0, return_lse=True)[1])
    np.testing.assert_allclose(np.exp(lse[:, 0, 0]), [2, 5], rtol=1e-6)  # keys 3 and 4 of the 5 up to its own, at 7


def test_check_tells_dropped_tokens_once(device):
    flat = device.flat()
    new, numbers = device.tokens(2, 5)
    flat.append(new, new)
    device.get(flat.lengths)[0] = 7
    flat.append(new[:, :, :3], new[:, :, :3])
    assert device.lengths(flat) == [8, 8]
    np.testing.assert_array_equal(device.get(flat.k)[0, 7], numbers[0, :, 0])
    with pytest.raises(CacheFullError, match=r"KVCache.check: 2 token\(s\) of row 0 were not appended"):
        flat.check()
    flat.check()


def test_grow_makes_new_arrays_unless_a_graph_knows_the_old(device):
    cache = device.cache(cuflash.KVCache, 2, 4, grow=True)
    new, numbers = device.tokens(2, 3)
    cache.append(new, new)
    cache.append(new, new)
    assert cache.capacity == 8
    np.testing.assert_array_equal(device.stored(cache, 1), np.concatenate([numbers[1]] * 2, 1))
    out = device.put(np.zeros((2, HEADS, 1, DIM), np.float32))
    device.capture(lambda: cuflash.decode(new[:, :, :1], cache, out=out))
    cache.append(new[:, :, :2], new[:, :, :2])
    held = cache.k
    with pytest.raises(CacheFullError, match=r"KVCache.append: needs larger arrays than a captured graph knows of"):
        cache.append(new, new)
    assert cache.k is held and device.lengths(cache) == [8, 8]
    free = copy.deepcopy(cache)
    free.append(new, new)
    assert free.capacity == 16


def test_a_copy_is_a_cache_of_its_own(device, either):
    new, numbers = device.tokens(2, 3)
    either.append(new, new)
    other = copy.copy(either)
    other.append(new, new)
    assert device.lengths(either) == [3, 3] and device.lengths(other) == [6, 6]
    np.testing.assert_array_equal(device.stored(other, 1), np.concatenate([numbers[1]] * 2, 1))
    either.append(new[:, :, :1], new[:, :, :1])
    np.testing.assert_array_equal(device.stored(other, 1)[:, 3], numbers[1, :, 0])
    other.check()
    either.check()


def test_rows_are_named_on_the_host(device, either):
    new, _ = device.tokens(2, 1)
    rows = device.put(np.array([1, 0]))
    for call in (lambda: either.append(new, new, seqs=rows), lambda: cuflash.decode(new, either, seqs=rows)):
        with pytest.raises(TypeError, match="`seqs` is a standin array, but the host must know the rows"):
            call()


def test_lists_of_rows_are_kept(device):
    cache = device.cache(cuflash.KVCache, 200, 2)
    q, _ = device.tokens(1, 1)
    cuflash.decode(q, cache, seqs=[7])
    out = device.put(np.zeros((1, HEADS, 1, DIM), np.float32))
    before = device.runtime.allocated
    for _ in range(3):
        cuflash.decode(q, cache, seqs=[7], out=out)
    assert device.runtime.allocated == before
    for row in range(200):
        cuflash.decode(q, cache, seqs=[row], out=out)
    assert len(cache._lengths.kept._rows._last) <= device_functions.ROWS_KEPT


@pytest.mark.parametrize("kind", [cuflash.KVCache, cuflash.PagedKVCache])
def test_pickled_caches_keep_no_address(kind, device):
    """Whatever a copy keeps for its calls it makes itself."""
    cache = device.cache(kind, 2, 4)
    cache._lengths.kept.rows(device.runtime, np.array([1]))
    state = cache._lengths.kept.__getstate__()
    assert (state["captured"], state["_held"]) == (False, [])
    assert not pickle.loads(pickle.dumps(state["_rows"]))._last
