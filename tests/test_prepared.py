"""Calls that are found again launch what they would have launched without that.

What kernels compute is compared elsewhere: on the emulator, where from level 2 on all calls are prepared.
"""

import time

import numpy as np
import pytest
from prepared_calls import cache_of, known, repeat
from recorder import on_device

import cuflash
from cuflash import Alibi, masks
from cuflash._dispatch import find_prepared


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
