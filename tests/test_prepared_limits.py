"""Calls that must not be found: those that only look like one that was, over a cache that is not what it was, or for a
graph. And what is kept of those that are.
"""

import copy
import gc
import threading
import weakref
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
from device_caches import Device
from prepared_calls import cache_of, calls_of, known, refuse, repeat
from recorder import on_device

import cuflash
from cuflash import Alibi, CacheFullError, ProblemError
from cuflash._cuda import operands, prepared
from cuflash._cuda.prepared import Found, Prepared
from cuflash._dispatch import find_prepared


def test_numbers_count_by_their_types(recorder, normal):
    q = on_device(normal(4, 9, 8))
    right = {"causal": True, "window": (1, 2), "scale": 1.0}
    repeat(lambda: cuflash.attention(q, q, q, **right))
    for name, wrong in (("causal", 1), ("window", (True, 2)), ("window", (1.0, 2)), ("scale", True)):
        refuse(
            recorder, TypeError, f"`{name}` must be",
            lambda name=name, wrong=wrong: cuflash.attention(q, q, q, **right | {name: wrong}),
        )  # fmt: skip


@pytest.mark.parametrize("over_a_cache", [True, False])
def test_lists_count_by_what_is_in_them(over_a_cache, recorder, normal):
    if over_a_cache:
        cache, q = cache_of("flat"), on_device(normal(2, 4, 8, dtype=np.float16))
        call = partial(cuflash.decode, q, cache)
    else:
        q = on_device(normal(4, 9, 8))
        call = partial(cuflash.attention, q, q, q)
    repeat(lambda: call(window=[1, 4]))
    for wrong in ([True, 4], [1.0, 4], np.array([1, 4]), [[1], [1, 2]], np.array([1, 4], object)):
        refuse(recorder, (TypeError, ProblemError), "`window` ", lambda wrong=wrong: call(window=wrong))
    for left in range(300, 700):  # numbers that Python makes anew, at addresses that come again
        call(window=[left, None])
        launched = recorder.launches[-1].params
        assert (launched if over_a_cache else launched["problem"])["left"] == left


def test_what_is_no_cache(recorder, normal):
    q = on_device(normal(2, 4, 8))
    for wrong in (cuflash.KVCache, Mock(), q, None):
        refuse(recorder, TypeError, "`cache` must be", lambda wrong=wrong: cuflash.decode(q, wrong))


def test_numbers_that_the_caller_writes_again(request, monkeypatch):
    """What the host counts is not what was in an array before."""
    device = Device("in NumPy", request.config, monkeypatch)
    cache, (new, _), counts = device.flat(), device.tokens(2, 2), np.array([1, 1], np.int32)
    repeat(lambda: cache.append(new, new, lengths=counts))
    counts[:] = 0
    cache.append(new, new, lengths=np.array([1, 1], np.int32))
    assert cache._lengths._most.tolist() == [4, 4] == device.lengths(cache)


def test_results_that_overlap(recorder, normal):
    """They may come with the shapes of some that do not."""
    both = on_device(normal(2, 4, 9, 8))
    q, out = both[0], both[1]
    repeat(lambda: cuflash.attention(q, q, q, out=out))
    refuse(recorder, ProblemError, "`out` overlaps `q`", lambda: cuflash.attention(q, q, q, out=q))
    k, turned = both[0], both[1, :, :, ::-1]  # whose first element lies at the end
    q = on_device(normal(4, 9, 8))
    repeat(lambda: cuflash.attention(q, k, k, out=turned))
    turned = both[0, :, :, ::-1]
    refuse(recorder, ProblemError, "`out` overlaps `k`", lambda: cuflash.attention(q, k, k, out=turned))
    like = on_device(np.zeros(1, np.float32))
    cache = cuflash.KVCache(2, 64, 2, 8, like=like)
    queries = on_device(normal(2, 4, 8))
    repeat(lambda: cuflash.decode(queries, cache, out=on_device(normal(2, 4, 8))))
    of_cache = cache.v[:, :2].reshape(2, 4, 8)
    refuse(recorder, ProblemError, "`out` overlaps `cache.v`", lambda: cuflash.decode(queries, cache, out=of_cache))


def test_a_workspace_that_is_not_aligned(recorder, normal):
    q, k = (on_device(normal(1, 4, l, 64, dtype=np.float16)) for l in (16, 4096))
    space = on_device(np.empty(1 << 20, np.uint8))
    repeat(lambda: cuflash.attention(q, k, k, workspace=space[:-1]))
    refuse(recorder, ProblemError, "start at a multiple of 4", lambda: cuflash.attention(q, k, k, workspace=space[1:]))


def test_another_device(recorder, normal, monkeypatch):
    q = on_device(normal(4, 9, 8))
    repeat(lambda: cuflash.attention(q, q, q))
    recorder.current = 1  # where q does not lie
    said = []
    monkeypatch.setattr(recorder, "check_current", lambda function, **arrays: said.append(set(arrays)))
    repeat(lambda: cuflash.attention(q, q, q))
    assert said == [{"q", "k", "v"}] * 3


def test_graphs_get_what_stays(recorder, normal, monkeypatch):
    """A prepared call does not say what a graph knows of."""
    cache, q = cache_of("flat"), on_device(normal(2, 4, 8, dtype=np.float16))
    out = on_device(normal(2, 4, 8, dtype=np.float16))
    repeat(lambda: cuflash.decode(q, cache, out=out))
    assert not cache._lengths.kept.captured
    monkeypatch.setattr(recorder, "capturing", lambda: True)
    cuflash.decode(q, cache, out=out)
    assert cache._lengths.kept.captured


def test_a_bias_as_long_as_a_cache_was(recorder, normal):
    cache, q = cache_of("flat"), on_device(normal(2, 4, 8, dtype=np.float16))
    bias = on_device(normal(5, dtype=np.float16))
    repeat(lambda: cuflash.decode(q, cache, bias=bias))
    cache.append(*(on_device(normal(2, 2, 1, 8, dtype=np.float16)) for _ in "kv"))
    refuse(recorder, ProblemError, "`bias` has 5 keys", lambda: cuflash.decode(q, cache, bias=bias))


def test_a_cache_that_is_full(recorder, normal):
    cache = cuflash.KVCache(2, 8, 2, 8, dtype=np.float16, like=on_device(np.zeros(1, np.float16)))
    new = on_device(normal(2, 2, 2, 8, dtype=np.float16))
    for _ in range(4):
        cache.append(new, new)
    refuse(recorder, CacheFullError, "10 tokens", lambda: cache.append(new, new))
    assert known(recorder, cache) == 1


@pytest.mark.parametrize("name", ["k", "v", "k_scale", "v_scale"])
def test_arrays_that_take_the_place_of_others(name, recorder, normal):
    """A cache's are attributes that anyone may write."""
    cache, q = cache_of("flat", "int8"), on_device(normal(2, 4, 8, dtype=np.float16))
    new = on_device(normal(2, 2, 1, 8, dtype=np.float16))
    for call in (lambda: cuflash.decode(q, cache), lambda: cache.append(new, new)):
        repeat(call)
        old = getattr(cache, name)
        setattr(cache, name, on_device(np.zeros(old.shape, old.dtype)))
        recorder.launches.clear()
        call()
        (launch,) = recorder.launches
        assert launch.params["cache"][name] == getattr(cache, name).data.ptr


def test_a_table_that_takes_the_place_of_another(recorder, normal):
    """It has grown, while sequences are what they were."""
    cache = cuflash.PagedKVCache(8, 16384, 2, 8, dtype=np.float16, like=on_device(np.zeros(1, np.float16)))
    cache.add(), cache.add()
    new, q = on_device(normal(2, 2, 1, 8, dtype=np.float16)), on_device(normal(2, 4, 8, dtype=np.float16))
    cache.append(new, new)
    for call in (lambda: cuflash.decode(q, cache), lambda: cache.append(new, new)):
        repeat(call)
        old, tokens = cache.page_table, int(cache._lengths._least[0])
        cache.reserve(0, 16384 * (cache.page_table.shape[1] + 1) - tokens)
        cache.truncate(0, tokens)
        assert cache.page_table is not old
        recorder.launches.clear()
        call()
        (launch,) = recorder.launches
        assert launch.params["cache"]["page_table"] == cache.page_table.data.ptr


@pytest.mark.parametrize("kind", ["flat", "paged"])
def test_a_copy_of_a_cache(kind, request, monkeypatch):
    """What is appended to either is seen in it alone."""
    device = Device("in NumPy", request.config, monkeypatch)
    cache = getattr(device, kind)()
    device.fill(cache, 2)
    q, _ = device.tokens(2, 1)
    repeat(lambda: cuflash.decode(q, cache))
    other = copy.deepcopy(cache)
    before = device.get(cuflash.decode(q, cache)).copy()
    for seed in range(1, 4):
        new, _ = device.tokens(2, 1, seed)
        other.append(new, new)
        assert (device.get(cuflash.decode(q, other)) != before).any()
        assert (device.get(cuflash.decode(q, cache)) == before).all()


def test_sequences_that_come_and_go(recorder, normal):
    cache, q = cache_of("paged"), on_device(normal(2, 4, 8, dtype=np.float16))
    repeat(lambda: cuflash.decode(q, cache))
    cache.add()
    refuse(recorder, ProblemError, "the cache has 3 sequence", lambda: cuflash.decode(q, cache))
    repeat(lambda: cuflash.decode(q, cache, seqs=[0, 1]))
    cache.free(1)
    refuse(recorder, ProblemError, "names sequence 1", lambda: cuflash.decode(q, cache, seqs=[0, 1]))


def test_sequences_that_grow(recorder, normal):
    """No key beyond `limit` is looked at, so it grows with the pages."""
    cache, q = cache_of("paged"), on_device(normal(2, 4, 8, dtype=np.float16))
    new = on_device(normal(2, 2, 1, 8, dtype=np.float16))
    for length in range(6, 40):
        cache.append(new, new)
        recorder.launches.clear()
        cuflash.decode(q, cache)
        (launch,) = recorder.launches
        limit = launch.params["limit"]
        assert length <= limit < 1.25 * (length + 4)


def test_a_cache_that_takes_other_arrays(request, monkeypatch):
    """The append that finds no room in those that it knows goes to the new ones."""
    device = Device("in NumPy", request.config, monkeypatch)
    cache = device.cache(cuflash.KVCache, 2, 8, grow=True)
    q, _ = device.tokens(2, 1)
    numbers = []
    for seed in range(12):
        before = cache.k
        new, added = device.tokens(2, 2, seed)
        cache.append(new, new)
        numbers.append(added)
        np.testing.assert_array_equal(device.stored(cache, 1), np.concatenate(numbers, axis=2)[1])
        assert cache.k is before or not cache._calls
        cuflash.decode(q, cache)
    assert cache.capacity == 32
    assert any(isinstance(call, Prepared) for call in cache._calls.values())


@pytest.mark.parametrize("what", ["rows", "slopes"])
def test_a_call_that_is_found_can_be_captured_next(what, recorder, normal, monkeypatch):
    """However many others were made since its first time."""
    monkeypatch.setattr(operands, "_constants", operands.Remembered(3))
    cache = cuflash.KVCache(6, 8, 2, 8, dtype=np.float16, like=on_device(np.zeros(1, np.float16)))
    cache._lengths.kept._rows = operands.Remembered(3)
    q = on_device(normal(1, 4, 8, dtype=np.float16))
    out = on_device(normal(1, 4, 8, dtype=np.float16))

    def call(i):
        bias = Alibi(np.arange(4) + i) if what == "slopes" else None
        cuflash.decode(q, cache, out=out, bias=bias, seqs=[i if what == "rows" else 0])

    repeat(lambda: call(0))
    for i in range(1, 6):
        call(i)
    call(0)
    monkeypatch.setattr(recorder, "capturing", lambda: True)
    monkeypatch.setattr(recorder, "asarray", lambda host: pytest.fail("an upload while a graph is captured"))
    call(0)


def test_nothing_else_is_done_while_a_call_is_prepared(recorder, normal):
    """A finaliser that calls something would have it written down, too."""
    q, collects = on_device(normal(4, 9, 8)), []

    def function(array):
        collects.append(gc.isenabled())
        return array

    for found in (None, Found, Found):
        assert (found is None) == (find_prepared(function, (q,), {}) is None)
    assert collects == [False]
    assert gc.isenabled()


# What is kept.


def test_numbers_that_change_are_not_prepared(recorder, normal, monkeypatch):
    monkeypatch.setattr(prepared, "CALLS_KEPT", 10)
    q = on_device(normal(4, 9, 8))
    for offset in range(25):
        cuflash.attention(q, q, q, q_offset=offset)
    assert known(recorder) == 0
    assert len(calls_of(recorder)) <= 10


def test_what_is_kept_goes_with_its_cache(recorder, normal):
    """At once, not when garbage is collected: keys and values fill the device."""
    gc.disable()
    try:
        for kind in ("flat", "paged"):
            cache, q = cache_of(kind), on_device(normal(2, 4, 8, dtype=np.float16))
            new = on_device(normal(2, 2, 1, 8, dtype=np.float16))
            repeat(lambda cache=cache, q=q: cuflash.decode(q, cache))
            repeat(lambda cache=cache, new=new: cache.append(new, new))
            recorder._kept.clear()
            arrays = [weakref.ref(x) for x in (cache.k, cache.v)]
            del cache
            assert [x() for x in arrays] == [None, None]
    finally:
        gc.enable()


def test_threads(recorder, normal):
    """Each finds its own calls, and one that is being prepared changes nothing for the others."""
    q = on_device(normal(4, 9, 8))
    wanted, errors = q.shape, []

    def work():
        for window in range(60):
            for _ in range(3):
                if cuflash.attention(q, q, q, window=window % 7).shape != wanted:
                    errors.append(window)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(launch.params["problem"]["q"] == q.data.ptr for launch in recorder.launches)
    assert len(recorder.launches) == 4 * 60 * 3
