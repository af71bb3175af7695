"""decode against the reference and against attention over the same keys; bits that do not depend on the company."""

import tracemalloc

import numpy as np
import pytest
from backends import anything, host, on_emulator, on_numpy
from hypothesis import strategies as st

import cuflash
from cuflash import _gpu_decode_plan, reference

CASES = {
    "plain": lambda b, hq, lq, n: {},
    "not causal": lambda b, hq, lq, n: {"causal": False},
    "window": lambda b, hq, lq, n: {"window": (3, 0)},
    "window on both sides": lambda b, hq, lq, n: {"window": 2, "causal": False},
    "scale": lambda b, hq, lq, n: {"scale": 0.25},
    "softcap": lambda b, hq, lq, n: {"softcap": 0.5},
    "sinks": lambda b, hq, lq, n: {"sinks": np.linspace(-1, 3, hq)},
    "alibi": lambda b, hq, lq, n: {"bias": cuflash.Alibi(np.linspace(0, 1, hq))},
    "alibi, not causal": lambda b, hq, lq, n: {"bias": cuflash.Alibi(np.linspace(0, 1, hq)), "causal": False},
    "bias by key": lambda b, hq, lq, n: {"bias": np.sin(np.arange(n))},
    "bias by sequence": lambda b, hq, lq, n: {"bias": np.sin(np.arange(b * n)).reshape(b, 1, 1, n)},
    "bias of all": lambda b, hq, lq, n: {"bias": np.sin(np.arange(b * hq * lq * n)).reshape(b, hq, lq, n)},
    "bias longer than the cache": lambda b, hq, lq, n: {"bias": np.sin(np.arange(lq * (n + 50))).reshape(lq, n + 50)},
    "bias by head": lambda b, hq, lq, n: {"bias": np.linspace(-1, 1, hq)[:, None, None]},
    "all": lambda b, hq, lq, n: {
        "window": 9, "softcap": 2.0, "sinks": np.ones(hq), "bias": np.sin(np.arange(n)), "scale": 0.2,
    },
}  # fmt: skip

KERNELS = {"float16": "decode_mma", "bfloat16": "decode_mma", "float32": "decode_fma", "float64": "decode_simt"}


def options_for(case, b, hq, lq, n, dtype):
    """The options of a case, their arrays in the dtype of q."""
    options = CASES[case](b, hq, lq, n)
    return {name: x.astype(dtype) if isinstance(x, np.ndarray) else x for name, x in options.items()}


@pytest.mark.parametrize("tiles", ["tuned", "small"])
@pytest.mark.parametrize("lq", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_each_option(case, lq, dtype, tiles, check, backend, make_cache, qkv):
    """Lengths 0 and shorter than lq among them, NaN in the cache behind each."""
    lengths = [37, 0, 1, 2, 16, 17]
    q, k, v = qkv(6, 4, 2, lq, 37, 8, 6, dtype=dtype)
    cache = make_cache(k, v, lengths, capacity=41)
    options = options_for(case, 6, 4, lq, 37, dtype)
    with backend.tiles(tiles):
        out, lse = check.decode(q, cache, **options)
        turned, _ = check.decode(q.swapaxes(1, 2), cache, layout="blhd", **options)
        np.testing.assert_array_equal(turned.swapaxes(1, 2), out)
        if lq == 1:
            one, one_lse = check.decode(q[:, :, 0], cache, **options)
            np.testing.assert_array_equal(one, out[:, :, 0])
            np.testing.assert_array_equal(one_lse, lse[..., 0])
    assert backend.name != "emulator" or backend.runtime.launches[-1] == KERNELS[dtype.name]
    assert not out[1].any()
    blind = np.arange(lq) < lq - 1
    assert not out[2][:, blind].any()  # of length 1: all but the last query stand before the first key


@pytest.mark.parametrize("splits", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("case", ["plain", "window", "all"])
def test_splits(case, splits, check, make_cache, qkv):
    q, k, v = qkv(5, 4, 2, 2, 301, 8)
    cache = make_cache(k, v, [301, 0, 1, 2, 150], capacity=310)
    check.decode(q, cache, splits=splits, **options_for(case, 5, 4, 2, 310, "float32"))


@pytest.mark.parametrize("lengths", [[1023, 1024, 1025], [2047, 2048, 2049], [4095, 4097, 5000]])
@pytest.mark.parametrize("lq", [1, 2])
def test_lengths_around_the_edges_of_parts(lengths, lq, check, backend, make_cache, qkv):
    lengths = [backend.length(length) for length in lengths]
    q, k, v = qkv(3, 2, 1, lq, max(lengths), 8)
    cache = make_cache(k, v, lengths)
    with backend.tiles("tuned" if backend.name == "numpy" else "small"):
        check.decode(q, cache)
        check.decode(q, cache, window=(backend.length(1024), 0), sinks=np.ones(2, np.float32))


@pytest.mark.parametrize(("hq", "hk"), [(1, 1), (5, 5), (8, 1), (12, 4), (64, 2), (300, 1)])
@pytest.mark.parametrize(("d", "dv"), [(1, 3), (64, 64), (128, 32), (512, 512)])
def test_heads_and_dims(hq, hk, d, dv, check, make_cache, qkv):
    q, k, v = qkv(2, hq, hk, 1, 23, d, dv)
    check.decode(q, make_cache(k, v, [23, 11], capacity=30))


@pytest.mark.parametrize("seqs", [[2, 0], [1], [3, 2, 1, 0], [1, 1, 1], []])
@pytest.mark.parametrize("as_array", [False, True])
def test_seqs(seqs, as_array, check, make_cache, qkv, normal):
    _, k, v = qkv(4, 4, 2, 1, 19, 8)
    q = normal(len(seqs), 4, 2, 8)
    cache = make_cache(k, v, [19, 7, 0, 12])
    given = np.array(seqs, np.int64) if as_array else seqs
    out, _ = check.decode(q, cache, seqs=given, bias=normal(len(seqs), 1, 1, 19))
    assert out.shape == q.shape


@pytest.mark.parametrize(
    ("b", "hq", "hk", "lq", "capacity", "d", "dv"),
    [(0, 2, 1, 1, 4, 3, 5), (2, 2, 1, 0, 4, 3, 5), (2, 2, 1, 1, 0, 3, 5), (2, 2, 1, 1, 4, 0, 5), (2, 2, 1, 1, 4, 3, 0)],
)
def test_zero_sizes(b, hq, hk, lq, capacity, d, dv, check, make_cache, qkv):
    q, k, v = qkv(b, hq, hk, lq, capacity, d, dv)
    out, lse = check.decode(q, make_cache(k, v, [capacity] * b), sinks=np.ones(hq, np.float32))
    assert out.shape == (b, hq, lq, dv)
    assert lse.shape == (b, hq, lq)


@pytest.mark.parametrize("lq", [1, 3])
def test_against_attention_over_the_same_keys(lq, dtype, backend, make_cache, qkv):
    lengths = [37, 5, 20]
    q, k, v = qkv(3, 4, 2, lq, 37, 16, dtype=dtype)
    out = backend.to_numpy(cuflash.decode(backend.asarray(q), make_cache(k, v, lengths)))
    for i, length in enumerate(lengths):
        own = (backend.asarray(x) for x in (q[i], k[i, :, :length], v[i, :, :length]))
        expected = backend.to_numpy(cuflash.attention(*own, causal=True))
        tolerance = 16 * float(2.0**-7 if dtype.name == "bfloat16" else np.finfo(dtype).eps)
        np.testing.assert_allclose(out[i].astype(float), expected.astype(float), rtol=tolerance, atol=tolerance)


def test_several_new_tokens_are_those_one_by_one(backend, qkv, normal, assert_close):
    q, k, v = qkv(2, 4, 2, 5, 13, 16, dtype="float64")
    q, k, v = map(backend.asarray, (q, k, v))
    together = cuflash.KVCache(2, 13, 2, 16, dtype=np.float64, xp=backend.xp)
    together.append(k, v)
    out, lse = cuflash.decode(q, together, return_lse=True)
    growing = cuflash.KVCache(2, 1, 2, 16, dtype=np.float64, grow=True, xp=backend.xp)
    growing.append(k[:, :, :8], v[:, :, :8])
    for i in range(5):
        growing.append(k[:, :, 8 + i : 9 + i], v[:, :, 8 + i : 9 + i])
        one, one_lse = cuflash.decode(q[:, :, i], growing, return_lse=True)
        assert_close(backend.to_numpy(one), backend.to_numpy(out)[:, :, i])
        assert_close(backend.to_numpy(one_lse), backend.to_numpy(lse)[:, :, i])
    whole = cuflash.attention(q, k, v, causal=True)
    assert_close(backend.to_numpy(out), backend.to_numpy(whole))


# Bits do not depend on the company.


@pytest.mark.parametrize("length", [3, 700, 1500, 5000])
@pytest.mark.parametrize(
    ("hq", "hk", "lq", "d"), [(1, 1, 1, 64), (8, 1, 1, 128), (8, 2, 1, 64), (4, 2, 3, 64), (6, 6, 1, 32)]
)
@pytest.mark.parametrize("name", ["float32", "float64", "float16"])
def test_bits_depend_on_the_sequence_alone(length, hq, hk, lq, d, name, backend, normal, monkeypatch, same_bytes):
    """Alone in a tight cache on one thread, or one of 33 in a cache of four times the capacity on three."""
    length, others = backend.length(length), backend.length(150)
    k, v = (normal(1, hk, length, d, dtype=name, seed=seed) for seed in range(2))
    q = normal(33, hq, lq, d, dtype=name, seed=2)
    options = {"sinks": backend.asarray(np.ones(hq, name)), "window": (backend.length(4000), 0)}

    def decoded(b, row, capacity, threads, **extra):
        monkeypatch.setenv("CUFLASH_NUM_THREADS", str(threads))
        cache = cuflash.KVCache(b, capacity, hk, d, dtype=name, xp=backend.xp)
        filler = normal(b, hk, others, d, dtype=name, seed=3)
        cache.append(backend.asarray(filler), backend.asarray(filler), lengths=(np.arange(b) * 4 % others).tolist())
        cache.truncate(row, 0)
        cache.append(backend.asarray(k), backend.asarray(v), seqs=[row])
        own = q[:b].copy()
        own[row] = q[0]
        out, lse = cuflash.decode(backend.asarray(own), cache, **options, **extra, return_lse=True)
        return backend.to_numpy(out)[row].copy(), backend.to_numpy(lse)[row].copy()

    room = max(length, others)
    alone = decoded(1, 0, room, 1)
    for company in [(1, 0, room, 3), (1, 0, 4 * room, 1), (2, 1, room, 2), (33, 20, room, 1), (33, 0, 4 * room, 3)]:
        for one, other in zip(alone, decoded(*company), strict=True):
            same_bytes(one, other)


def test_bits_do_not_depend_on_how_rows_are_named(backend, make_cache, qkv, same_bytes):
    lengths = [backend.length(length) for length in (1100, 3, 0, 1025, 512)]
    q, k, v = qkv(5, 8, 2, 1, max(lengths), 64)
    cache = make_cache(k, v, lengths)
    whole = backend.to_numpy(cuflash.decode(backend.asarray(q), cache))
    for seqs in ([4, 1, 3, 0, 2], [3], [0, 3]):
        some = backend.to_numpy(cuflash.decode(backend.asarray(q[seqs]), cache, seqs=seqs))
        same_bytes(some, whole[seqs])
    same_bytes(backend.to_numpy(cuflash.decode(backend.asarray(q[:, :, 0]), cache)), whole[:, :, 0])


def test_nothing_behind_the_lengths_is_read(dtype, backend, qkv, normal, same_bytes):
    q, k, v = qkv(3, 4, 2, 2, 40, 8, dtype=dtype)
    lengths = np.array([40, 0, 17])
    bias = normal(3, 1, 1, 50, dtype=dtype)
    results = []
    for poison in (0, np.nan, np.inf):
        cache = cuflash.KVCache(3, 50, 2, 8, dtype=dtype, xp=backend.xp)
        cache.k[...] = poison
        cache.v[...] = poison
        cache.append(backend.asarray(k), backend.asarray(v), lengths=lengths.tolist())
        for i, length in enumerate(lengths):
            cache.k[i, length:] = poison
            cache.v[i, length:] = poison
            bias[i, ..., length:] = poison
        before = cache.k.copy(), cache.v.copy(), cache.lengths.copy()
        found = cuflash.decode(backend.asarray(q), cache, bias=backend.asarray(bias.copy()), return_lse=True)
        results.append([backend.to_numpy(x) for x in found])
        for array, copy in zip((cache.k, cache.v, cache.lengths), before, strict=True):
            same_bytes(backend.to_numpy(array), backend.to_numpy(copy))
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            same_bytes(one, other)


# The arrays handed in and given back; lengths written by hand; errors.


@pytest.mark.parametrize("form", ["bhld", "blhd", "token"])
def test_out_is_filled_and_given_back(form, backend, make_cache, qkv, same_bytes):
    q, k, v = qkv(2, 4, 2, 1, 9, 8, 3)
    cache = make_cache(k, v, [9, 4])
    q = {"bhld": q, "blhd": q.swapaxes(1, 2), "token": q[:, :, 0]}[form]
    layout = "blhd" if form == "blhd" else "bhld"
    expected, lse = cuflash.decode(backend.asarray(q), cache, layout=layout, return_lse=True)
    out = backend.asarray(np.full((*q.shape[:-1], 3), np.nan, np.float32))
    assert cuflash.decode(backend.asarray(q), cache, layout=layout, out=out) is out
    same_bytes(backend.to_numpy(out), backend.to_numpy(expected))
    assert lse.shape == ((2, 4) if form == "token" else (2, 4, 1))


def test_lengths_may_be_written_by_hand(backend, check, make_cache, qkv):
    q, k, v = qkv(2, 4, 2, 1, 9, 8)
    cache = make_cache(k, v, [9, 9])
    cache.lengths[1] = 4
    check.decode(q, cache)
    check.decode(q, cache, seqs=[1, 0])
    np.testing.assert_array_equal(
        backend.to_numpy(cuflash.decode(backend.asarray(q), cache, validate=False)),
        backend.to_numpy(cuflash.decode(backend.asarray(q), cache, validate=True)),
    )


@on_numpy
@pytest.mark.parametrize("length", [-1, 10])
def test_lengths_out_of_range_are_an_error(length, backend, make_cache, qkv):
    q, k, v = qkv(2, 4, 2, 1, 9, 8)
    cache = make_cache(k, v, [9, 9])
    cache.lengths[1] = length
    out = backend.asarray(np.full(q.shape, 7, np.float32))
    with pytest.raises(cuflash.ProblemError, match=f"{length}"):
        cuflash.decode(backend.asarray(q), cache, out=out)
    assert (backend.to_numpy(out) == 7).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": -1},
        {"seqs": [0, 5]},
        {"seqs": [0]},
        {"splits": 0},
        {"softcap": -1.0},
        {"sinks": np.ones(3, np.float32)},
        {"bias": np.ones(8, np.float32)},
        {"return_lse": 1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_an_error_writes_nothing(wrong, backend, make_cache, qkv):
    q, k, v = qkv(2, 4, 2, 1, 9, 8)
    cache = make_cache(k, v, [9, 4])
    out = backend.asarray(np.full(q.shape, 7, np.float32))
    with pytest.raises((TypeError, ValueError)):
        cuflash.decode(backend.asarray(q), cache, out=out, **backend.give(wrong))
    assert (backend.to_numpy(out) == 7).all()


@on_numpy
def test_memory_is_a_small_part_of_the_cache(backend, normal):
    """Neither the cache nor its float32 twin is ever copied: 8 MB each here."""
    cache = cuflash.KVCache(2, 16384, 2, 64, dtype=np.float16, xp=backend.xp)
    cache.lengths[:] = 16384
    q = backend.asarray(normal(2, 8, 64, dtype="float16"))
    cuflash.decode(q, cache)
    tracemalloc.start()
    try:
        cuflash.decode(q, cache)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


@st.composite
def decodings(draw):
    """A cache of float64 sequences and queries for some of them, with any options."""
    hk, group, lq = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 4))
    d, dv, capacity = draw(st.integers(0, 5)), draw(st.integers(0, 5)), draw(st.integers(0, 40))
    lengths = draw(st.lists(st.integers(0, capacity), max_size=4))
    seqs = draw(st.none() | st.lists(st.sampled_from(range(len(lengths))), max_size=4)) if lengths else None
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    b = len(lengths) if seqs is None else len(seqs)
    makers = {
        "causal": lambda: False,
        "window": lambda: draw(st.tuples(*[st.none() | st.integers(0, capacity)] * 2)),
        "sinks": lambda: rng.standard_normal(hk * group),
        "softcap": lambda: 1.5,
        "scale": lambda: -0.5,
        "splits": lambda: draw(st.integers(1, 5)),
        "bias": lambda: rng.standard_normal(
            (*draw(st.sampled_from([(), (lq,), (hk * group, 1), (b, 1, lq)])), capacity)
        ),
    }
    options = {name: makers[name]() for name in draw(st.sets(st.sampled_from(sorted(makers))))}
    if "bias" not in options and draw(st.booleans()):
        options["bias"] = cuflash.Alibi(rng.random(hk * group))
    k, v = (rng.standard_normal((len(lengths), hk, capacity, n)) for n in (d, dv))
    q = rng.standard_normal((b, hk * group, lq, d))
    return q, k, v, lengths, seqs, options, draw(st.sampled_from(["tuned", "small"]))


@anything(decoding=decodings())
def test_any_decoding(check_same, backend, make_cache, decoding):
    q, k, v, lengths, seqs, options, tiles = decoding
    cache = make_cache(k, v, np.array(lengths, int))
    with backend.tiles(tiles):
        check_same.decode(q, cache, seqs=seqs, **options)


@on_numpy
def test_the_reference_agrees_with_itself(make_cache, qkv):
    """decode of the reference is its attention, shifted to the end of each sequence."""
    q, k, v = qkv(2, 4, 2, 3, 9, 8, dtype="float64")
    out = reference.decode(q, make_cache(k, v, [9, 6]))
    for i, length in enumerate([9, 6]):
        own = reference.attention(q[i], k[i, :, :length], v[i, :, :length], causal=True)
        np.testing.assert_allclose(out[i], own, rtol=1e-14)


def test_bits_do_not_depend_on_the_number_of_heads(backend, make_cache, normal, same_bytes):
    """Somebody who shards heads over machines gets the bits of the whole."""
    count, length = backend.length(200), backend.length(1500)
    k, v, q = normal(1, count, length, 16), normal(1, count, length, 16, seed=1), normal(1, count, 16)
    whole = backend.to_numpy(cuflash.decode(backend.asarray(q), make_cache(k, v, [length])))
    for heads in (slice(0, 1), slice(7, 70)):
        some = cuflash.decode(backend.asarray(q[:, heads]), make_cache(k[:, heads], v[:, heads], [length]))
        same_bytes(backend.to_numpy(some), whole[:, heads])


@on_emulator
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("lq", "options"),
    [(1, {}), (1, {"window": (20, None)}), (1, {"splits": 3}), (20, {"splits": 8})],
    ids=["1", "1-window", "1-splits", "20-splits"],
)
def test_blocks_that_take_turns_give_the_same_bits(lq, options, dtype, backend, check, make_cache, normal, monkeypatch):
    """Sequences of up to 8 parts, most of which have fewer, on a device that runs 8 blocks; 20 queries make several
    tiles, which see different numbers of keys. Counters must be as they were.
    """
    count = 37 if lq == 1 else 9
    lengths = np.random.default_rng(0).integers(0, 91, count) * (np.arange(count) % 3 > 0)
    k, v = normal(count, 1, 90, 16, dtype=dtype), normal(count, 1, 90, 8, dtype=dtype, seed=1)
    queries = normal(5, 2, lq, 16, dtype=dtype, seed=2)[np.arange(count) % 5]
    q = backend.asarray(queries)
    results = {}
    with backend.tiles("small"):
        cache = make_cache(k, v, lengths)
        for waves in (1000, 2):
            monkeypatch.setattr(_gpu_decode_plan, "WAVES_MOST", waves)
            _gpu_decode_plan.plan_decode.cache_clear()
            cache._calls.clear()
            assert ("which take turns at" in cuflash.explain(cuflash.decode, q, cache, **options)) == (waves == 2)
            for seqs in (None, list(range(count))[::-1]):
                out, lse = cuflash.decode(q, cache, seqs=seqs, return_lse=True, **options)
                results[waves, seqs is None] = backend.to_numpy(out).tobytes(), backend.to_numpy(lse).tobytes()
            assert not host(cache._store().kept.tickets).any()
        check.decode(queries, cache, **options)
    assert results[1000, True] == results[2, True]
    assert results[1000, False] == results[2, False] != results[2, True]
