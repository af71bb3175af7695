"""Calls that are found again launch what they would have launched without that, and are not found where they must not.

What kernels compute is compared elsewhere: on the emulator, where from level 2 on all calls are prepared.
"""

import copy
import gc
import threading
import time
import weakref
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
from device_caches import Device
from recorder import KINDS, install, on_device

import cuflash
from cuflash import Alibi, CacheFullError, ProblemError, masks
from cuflash._cuda import operands, prepared
from cuflash._cuda.prepared import Found, Prepared
from cuflash._dispatch import find_prepared


@pytest.fixture(params=list(KINDS))
def recorder(request, monkeypatch):
    """Arrays of either kind are computed by it."""
    return install(monkeypatch, kind=request.param)


def calls_of(recorder):
    """The calls of the recorder's backend by their keys."""
    return cuflash._dispatch._backends[recorder.home].calls._known


def known(recorder, *caches):
    """How many calls are prepared."""
    kept = [calls_of(recorder), *(cache._calls for cache in caches)]
    return sum(isinstance(call, Prepared) for calls in kept for call in calls.values())


def record(recorder, function, args, options):
    """What a call launches and returns, where it is given the same new arrays as any other call of these arguments."""
    recorder.launches.clear()
    empty, pool, made = recorder.empty, recorder.__dict__.setdefault("pool", []), []

    def hand_out(shape, dtype):
        if len(made) == len(pool) or (pool[len(made)].shape, pool[len(made)].dtype) != (shape, dtype):
            del pool[len(made) :]
            pool.append(empty(shape, dtype))
        made.append(pool[len(made)])
        return made[-1]

    recorder.empty = hand_out
    try:
        results = function(*args, **options)
    finally:
        del recorder.empty
    results = results if isinstance(results, tuple) else (results,)
    return (
        [(*launch[:-1], launch.params.tobytes()) for launch in recorder.launches],
        type(results), [array is not None and (array.data.ptr, array.shape, array.strides) for array in results],
    )  # fmt: skip


def give(value):
    """An array, or those of a list or a dictionary, on the device."""
    if isinstance(value, dict):
        return {name: give(one) for name, one in value.items()}
    return on_device(value) if isinstance(value, np.ndarray) else value


def check(recorder, function, make, *caches):
    """A call on other arrays than those that were prepared launches what it launches by itself."""
    (args, options), (others, other_options) = (
        (list(map(give, args)), give(options)) for args, options in map(make, (0, 1))
    )
    wanted = record(recorder, function.__wrapped__, others, other_options)
    assert wanted[0]
    before = known(recorder, *caches)
    for _ in range(2):
        record(recorder, function, args, options)
    assert known(recorder, *caches) == before + 1
    assert find_prepared(function.__wrapped__, others, other_options) is not None
    assert record(recorder, function, others, other_options) == wanted


OPTIONS = {
    "plain": {},
    "causal": {"causal": True, "return_lse": True},
    "numbers": {"window": (3, None), "softcap": 5.0, "scale": np.float64(0.25), "q_offset": 2, "kv_lengths": 6},
    "mask": {"mask": masks.Window(4, 1)},
    "slopes": {"bias": Alibi([0.5, 0.25, 0.125, 1.0])},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_the_host(options, recorder, normal):
    def make(seed):
        return [normal(2, heads, 9, 8, seed=3 * seed + i) for i, heads in enumerate((4, 2, 2))], OPTIONS[options]

    check(recorder, cuflash.attention, make)
    check(recorder, cuflash.attention_weights, lambda seed: (make(seed)[0][:2], weights_options(OPTIONS[options])))


def weights_options(options):
    return {name: value for name, value in options.items() if name != "return_lse"}


def arrays(normal, seed):
    """Every operand, with batch axes that are broadcast."""
    rng = np.random.default_rng(seed)
    q, k, v = normal(3, 2, 4, 9, 8, seed=seed), normal(1, 2, 2, 7, 8, seed=seed + 1), normal(2, 2, 7, 6, seed=seed + 2)
    options = {
        "mask": rng.random((2, 1, 9, 7)) < 0.7, "bias": normal(3, 1, 1, 1, 7, seed=seed + 3), "sinks": normal(4),
        "q_offset": rng.integers(0, 5, (3, 2)), "kv_lengths": rng.integers(0, 7, (2,)).astype(np.int32),
    }  # fmt: skip
    return [q, k, v], options


def test_arrays(recorder, normal):
    check(recorder, cuflash.attention, lambda seed: arrays(normal, seed))

    def with_results(seed):
        operands, options = arrays(normal, seed)
        results = {"out": normal(3, 2, 4, 9, 6), "lse_out": normal(3, 2, 4, 9)}
        return operands, options | results

    check(recorder, cuflash.attention, with_results)

    def gradient(seed):
        operands, options = arrays(normal, seed)
        out, lse = normal(3, 2, 4, 9, 6, seed=seed + 4), normal(3, 2, 4, 9, seed=seed + 5)
        return [out, *operands, normal(3, 2, 4, 9, 6), lse], options | {"dlse": normal(3, 2, 4, 9)}

    check(recorder, cuflash.attention_backward, gradient)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("lq", [1, 16])
def test_keys_that_are_cut(lq, dtype, recorder, normal):
    """Partial results lie in memory that is made for the call, or in the caller's."""

    def make(seed):
        return [normal(1, 4, l, 64, dtype=dtype, seed=seed) for l in (lq, 4096, 4096)], {"return_lse": True}

    check(recorder, cuflash.attention, make)

    def with_workspace(seed):
        return make(seed)[0], {"workspace": np.empty(1 << 20, np.uint8)}

    check(recorder, cuflash.attention, with_workspace)


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_results_in_the_order_of_q(layout, recorder, normal):
    def make(seed):
        laid_out = [normal(9, 2, 5, 4, 8, seed=seed + i).transpose(1, 0, 3, 2, 4)[..., ::-1] for i in range(3)]
        return laid_out, {"layout": layout, "return_lse": True}

    check(recorder, cuflash.attention, make)


def test_axes_in_any_order(recorder, normal):
    """Ten of them, some of which are alike."""
    for order in ((0, 1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1, 0), (3, 0, 6, 1, 5, 2, 4)):

        def make(seed, order=order):
            x = normal(*(1, 2, 2, 1, 3, 2, 8)[:7], seed=seed)
            laid_out = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
            return [laid_out, np.arange(2.0)], {}

        check(recorder, cuflash.rotary, make)
    x = on_device(normal(8, *(1,) * 9, 2, 4).T)
    start = time.perf_counter()
    repeat(lambda: cuflash.rotary(x, 3))
    assert time.perf_counter() - start < 1


def test_one_head(recorder, normal):
    check(recorder, cuflash.attention, lambda seed: ([normal(9, 8, seed=seed + i) for i in range(3)], {}))


def test_packed_sequences(recorder, normal):
    def make(seed):
        starts = [np.cumsum([0, 3 + seed, 9 - seed]), np.cumsum([0, 4, 8])]
        return [normal(12, 4, 8, seed=seed), *(normal(12, 2, 8, seed=seed + i) for i in (1, 2)), *starts], {}

    check(recorder, cuflash.attention_varlen, make)

    def gradient(seed):
        q, k, v, *starts = make(seed)[0]
        return [q, q, k, v, q, normal(4, 12, seed=seed), *starts], {"causal": True}

    check(recorder, cuflash.attention_varlen_backward, gradient)


def test_what_is_no_attention(recorder, normal):
    check(recorder, cuflash.merge, lambda seed: ([normal(3, 2, 4, 5, 8, seed=seed), normal(3, 2, 4, 5)], {"axis": 0}))
    check(
        recorder, cuflash.rotary,
        lambda seed: ([normal(2, 4, 9, 8, seed=seed), np.arange(9) + seed], {"interleaved": True, "dim": 6}),
    )  # fmt: skip


def cache_of(kind, dtype=np.float16):
    """Two sequences of five tokens, and how to append one more to each."""
    like = on_device(np.zeros(1, np.float16))
    if kind == "flat":
        cache = cuflash.KVCache(2, 64, 2, 8, dtype=dtype, like=like)
    else:
        cache = cuflash.PagedKVCache(24, 4, 2, 8, dtype=dtype, like=like)
        cache.add(), cache.add()
    cache.append(*(on_device(np.zeros((2, 2, 5, 8), np.float16)) for _ in "kv"))
    return cache


@pytest.mark.parametrize("kind", ["flat", "paged"])
@pytest.mark.parametrize("dtype", [np.float16, "int8"])
def test_decoding(kind, dtype, recorder, normal):
    cache = cache_of(kind, dtype)
    for options in ({}, {"return_lse": True, "window": 4, "bias": Alibi(np.ones(4))}, {"seqs": [1, 0]}):

        def make(seed, options=options):
            return [normal(2, 4, 8, dtype=np.float16, seed=seed), cache], options

        check(recorder, cuflash.decode, make, cache)

    def with_out(seed):
        q = normal(2, 4, 3, 8, dtype=np.float16, seed=seed)
        return [q, cache], {"out": q + 1, "seqs": (1, 0)}

    check(recorder, cuflash.decode, with_out, cache)


@pytest.mark.parametrize("kind", ["flat", "paged"])
@pytest.mark.parametrize("options", [{}, {"seqs": [1, 0]}, {"lengths": [1, 1], "layout": "blhd"}])
def test_appending(kind, options, recorder, normal):
    """Each launches the same but for the new tokens, and the host counts them."""
    cache, launches = cache_of(kind), []
    shape = (2, 1, 2, 8) if "layout" in options else (2, 2, 1, 8)
    for seed in range(3):
        new = on_device(normal(*shape, dtype=np.float16, seed=seed))
        recorder.launches.clear()
        cache.append(new, new, **options)
        (launch,) = recorder.launches
        assert (launch.params["k"], launch.params["v"]) == (new.data.ptr, new.data.ptr)
        content = bytearray(launch.params.tobytes())
        params = np.frombuffer(content, launch.params.dtype)
        params["k"] = params["v"] = 0
        launches.append((*launch[:-1], content))
        assert cache._lengths._most[:2].tolist() == cache._lengths._least[:2].tolist() == [6 + seed, 6 + seed]
    assert launches[0] == launches[1] == launches[2]
    assert known(recorder, cache) == 1


# What a call that was found before must not be taken for.


def refuse(recorder, error, match, call):
    """However often."""
    for _ in range(4):
        recorder.launches.clear()
        with pytest.raises(error, match=match):
            call()
        assert not recorder.launches


def repeat(call):
    for _ in range(3):
        call()


def test_numbers_count_by_their_types(recorder, normal):
    q = on_device(normal(4, 9, 8))
    repeat(lambda: cuflash.attention(q, q, q, causal=True, window=(1, 2), scale=1.0))
    refuse(recorder, TypeError, "`causal` must be True or False", lambda: cuflash.attention(q, q, q, causal=1))
    for wrong in ((True, 2), (1.0, 2)):
        refuse(recorder, TypeError, "`window`", lambda wrong=wrong: cuflash.attention(q, q, q, window=wrong))
    refuse(recorder, TypeError, "`scale` must be a real number", lambda: cuflash.attention(q, q, q, scale=True))


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
        right = 0 if over_a_cache else recorder.launches[-1].params["problem"]["right"]
        launch = recorder.launches[-1].params if over_a_cache else recorder.launches[-1].params["problem"]
        assert launch["left"] == left and (over_a_cache or right > 1 << 50)


def test_what_is_no_cache(recorder, normal):
    q = on_device(normal(2, 4, 8))
    for wrong in (cuflash.KVCache, Mock(), q, None):
        refuse(recorder, TypeError, "`cache` must be", lambda wrong=wrong: cuflash.decode(q, wrong))


def test_numbers_that_the_caller_writes_again(request, monkeypatch):
    """What the host counts is not what was in an array before."""
    device = Device("in NumPy", request.config, monkeypatch)
    cache, (new, _), counts = device.flat(), device.tokens(2, 2), np.array([1, 1], np.int32)
    for step in range(3):
        cache.append(new, new, lengths=counts)
        counts[:] = 0
        cache.append(new, new, lengths=counts)
        counts[:] = 1
        assert cache._lengths._most.tolist() == [step + 1] * 2 == device.lengths(cache)


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


@pytest.mark.parametrize("kernels", ["rows", "slopes"])
def test_a_call_that_is_found_can_be_captured_next(kernels, recorder, normal, monkeypatch):
    """However many others were made since its first time."""
    monkeypatch.setattr(operands, "_constants", operands.Remembered(3))
    cache, q = cache_of("flat"), on_device(normal(1, 4, 8, dtype=np.float16))
    cache._lengths.kept._rows = operands.Remembered(3)
    out = on_device(normal(1, 4, 8, dtype=np.float16))

    def call(i):
        bias = Alibi(np.arange(4) + i) if kernels == "slopes" else None
        cuflash.decode(q, cache, out=out, bias=bias, seqs=[i % 2 if kernels == "rows" else 0])

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
