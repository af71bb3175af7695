"""decode over pages and over quantised keys: against the reference, and bit for bit what a contiguous cache gives."""

import numpy as np
import pytest
from backends import host

import cuflash
from cuflash import reference

LENGTHS = [37, 0, 1, 2, 16, 17]
QUANTISED = ("int8", "float8_e4m3fn")
OPTIONS = {
    "plain": {},
    "not causal": {"causal": False},
    "window": {"window": (3, 0)},
    "window on both sides": {"window": 2, "causal": False},
    "bias by key": {"bias": np.sin(np.arange(60.0))},
    "bias of all": {"bias": np.sin(np.arange(6 * 4 * 3 * 37.0)).reshape(6, 4, 3, 37)},
    "all": {
        "window": 9, "softcap": 2.0, "sinks": np.ones(4), "bias": cuflash.Alibi(np.linspace(0, 1, 4)), "scale": 0.2,
    },
}  # fmt: skip


def options_for(case, lq, dtype):
    """Options of a case, their arrays in the dtype of q and for its queries."""
    own = {name: x.astype(dtype) if isinstance(x, np.ndarray) else x for name, x in OPTIONS[case].items()}
    if case == "bias of all":
        own["bias"] = own["bias"][:, :, :lq]
    return own


@pytest.fixture(params=QUANTISED)
def stored(request):
    """Each dtype of a quantised cache."""
    pytest.importorskip("ml_dtypes")
    return request.param


@pytest.mark.parametrize("page_size", [1, 5, 64])
@pytest.mark.parametrize("lq", [1, 3])
@pytest.mark.parametrize("case", OPTIONS)
def test_each_option(case, lq, page_size, dtype, check, backend, make_cache, make_paged, qkv, same_bytes):
    q, k, v = qkv(6, 4, 2, lq, 37, 8, 6, dtype=dtype)
    options = options_for(case, lq, dtype)
    with backend.tiles("small"):
        found = check.decode(q, make_paged(k, v, LENGTHS, page_size), **options)
        expected = check.decode(q, make_cache(k, v, LENGTHS), **options)
    for one, other in zip(found, expected, strict=True):
        same_bytes(one, other)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("case", OPTIONS)
def test_quantised(case, name, stored, check, backend, make_cache, make_paged, qkv, same_bytes):
    """Against the reference over the numbers that the codes stand for; in pages as well."""
    q, k, v = qkv(6, 4, 2, 3, 37, 8, 6, dtype=np.dtype(name))
    options = options_for(case, 3, q.dtype)
    with backend.tiles("small"):
        found = check.decode(q, make_cache(k, v, LENGTHS, dtype=stored), **options)
        paged = check.decode(q, make_paged(k, v, LENGTHS, dtype=stored), **options)
    for one, other in zip(found, paged, strict=True):
        same_bytes(one, other)


@pytest.mark.parametrize("splits", [1, 3, 50])
@pytest.mark.parametrize("name", ["float32", "float16", *QUANTISED])
def test_splits(name, splits, check, make_paged, qkv):
    q, k, v = qkv(5, 4, 2, 2, 301, 8)
    if name == "float16":
        q, k, v = (x.astype(name) for x in (q, k, v))
    check.decode(q, make_paged(k, v, [301, 0, 1, 2, 150], 7, dtype=name), splits=splits)


@pytest.mark.parametrize("lengths", [[1023, 1024, 1025], [2047, 2048, 2049]])
@pytest.mark.parametrize("page_size", [16, 127, 128, 3000])
@pytest.mark.parametrize("name", ["float32", "int8"])
def test_lengths_around_the_edges_of_parts(name, page_size, lengths, check, backend, make_paged, qkv):
    lengths = [backend.length(length) for length in lengths]
    q, k, v = qkv(3, 2, 1, 2, max(lengths), 8)
    cache = make_paged(k, v, lengths, page_size, dtype=name)
    with backend.tiles("tuned" if backend.name == "numpy" else "small"):
        check.decode(q, cache)
        check.decode(q, cache, window=(backend.length(1024), 0), sinks=np.ones(2, np.float32))


@pytest.mark.long
@pytest.mark.parametrize(("hq", "hk", "lq"), [(5, 5, 1), (64, 64, 3), (300, 1, 1), (12, 4, 40)])
@pytest.mark.parametrize("name", ["float32", "float16", *QUANTISED])
def test_blocks_of_some_heads(hq, hk, lq, name, check, backend, make_cache, make_paged, qkv, same_bytes):
    dtype = np.float16 if name == "float16" else np.float32
    lengths = [backend.length(203), 60]
    q, k, v = qkv(2, hq, hk, lq, max(lengths), 16, 9, dtype=dtype)
    found = check.decode(q, make_paged(k, v, lengths, dtype=name))
    for one, other in zip(found, check.decode(q, make_cache(k, v, lengths, dtype=name)), strict=True):
        same_bytes(one, other)


@pytest.mark.parametrize("name", ["float64", "float32", "float16", *QUANTISED])
def test_bits_depend_on_the_sequence_alone(name, backend, make_cache, make_paged, normal, monkeypatch, same_bytes):
    """Alone or in company, in whatever pages, of whatever size, in an order of memory or in none, by any threads."""
    dtype = name if name.startswith("float") and name not in QUANTISED else "float32"
    lengths = [backend.length(length) for length in (1500, 3, 700, 1100)]
    k, v = (normal(4, 2, max(lengths), 32, dtype=dtype, seed=seed) for seed in range(2))
    q = normal(4, 8, 32, dtype=dtype, seed=2)
    monkeypatch.setenv("CUFLASH_NUM_THREADS", "1")
    expected = backend.to_numpy(cuflash.decode(backend.asarray(q), make_cache(k, v, lengths, dtype=name)))
    monkeypatch.setenv("CUFLASH_NUM_THREADS", "3")
    for page_size in (1, 16, 2000):
        cache = make_paged(k, v, lengths, page_size, dtype=name)
        same_bytes(backend.to_numpy(cuflash.decode(backend.asarray(q), cache)), expected)
        order = [3, 0, 2, 1, 3]
        found = cuflash.decode(backend.asarray(q[order]), cache, seqs=[cache.seqs[i] for i in order])
        same_bytes(backend.to_numpy(found), expected[order])
    alone = cuflash.PagedKVCache(200, 16, 2, 32, dtype=name, xp=backend.xp)
    alone.append(*(backend.asarray(x[:1, :, : lengths[0]]) for x in (k, v)), seqs=[alone.add()])
    same_bytes(backend.to_numpy(cuflash.decode(backend.asarray(q[:1]), alone)), expected[:1])


def test_pages_of_which_only_the_ends_lie_in_order(check, qkv):
    q, k, v = qkv(1, 2, 1, 1, 16, 4, dtype="float64")
    cache = cuflash.PagedKVCache(4, 4, 1, 4, dtype=np.float64, xp=check.backend.xp)
    for seq in [cache.add() for _ in range(4)]:
        cache.reserve(seq, 1)
    for seq in (3, 1, 2, 0):
        cache.free(seq)
    seq = cache.add()
    cache.append(*check.move((k, v), "plain"))
    assert host(cache.page_table)[seq, :4].tolist() == [0, 2, 1, 3]
    bias = np.sin(np.arange(16.0))  # without which the order of the keys would not matter
    out, _ = check.decode(q, cache, bias=bias)
    np.testing.assert_allclose(out, reference.attention(q, k, v, bias=bias), rtol=1e-12)


@pytest.mark.parametrize(
    ("b", "hq", "hk", "lq", "length", "d", "dv"),
    [(0, 2, 1, 1, 4, 3, 5), (2, 2, 1, 0, 4, 3, 5), (2, 2, 1, 1, 0, 3, 5), (2, 2, 1, 1, 4, 0, 5), (2, 2, 1, 1, 4, 3, 0)],
)
@pytest.mark.parametrize("name", ["float32", *QUANTISED])
def test_zero_sizes(b, hq, hk, lq, length, d, dv, name, check, make_paged, qkv):
    q, k, v = qkv(b, hq, hk, lq, length, d, dv)
    out, lse = check.decode(q, make_paged(k, v, [length] * b, 3, dtype=name), sinks=np.ones(hq, np.float32))
    assert out.shape == (b, hq, lq, dv)
    assert lse.shape == (b, hq, lq)


def test_no_page_at_all(check):
    cache = cuflash.PagedKVCache(0, 16, 1, 4, dtype=np.float32, xp=check.backend.xp)
    cache.add()
    out, lse = check.decode(np.ones((1, 2, 1, 4), np.float32), cache)
    assert not out.any() and (lse == -np.inf).all()


@pytest.mark.parametrize("layout", ["bhld", "blhd", "token"])
def test_layouts_and_out(layout, backend, make_paged, qkv, same_bytes):
    q, k, v = qkv(2, 4, 2, 1, 9, 8, 3)
    cache = make_paged(k, v, [9, 4])
    given = {"bhld": q, "blhd": q.swapaxes(1, 2), "token": q[:, :, 0]}[layout]
    options = {"layout": "blhd" if layout == "blhd" else "bhld"}
    expected = cuflash.decode(backend.asarray(given), cache, **options)
    out = backend.asarray(np.full((*given.shape[:-1], 3), np.nan, np.float32))
    assert cuflash.decode(backend.asarray(given), cache, out=out, **options) is out
    same_bytes(backend.to_numpy(out), backend.to_numpy(expected))


def test_lengths_may_be_written_by_hand_within_the_reserve(backend, check, make_paged, qkv):
    """Beyond it they are an error, which on a device only `validate` looks for."""
    q, k, v = qkv(2, 4, 2, 1, 9, 8)
    cache = make_paged(k, v, [9, 9], page_size=4)
    cache.lengths[cache.seqs[1]] = 4
    check.decode(q, cache)
    options = asked_to_look(backend)
    cache.lengths[cache.seqs[1]] = 13
    with pytest.raises(cuflash.ProblemError, match=r"holds 13 for sequence \d, but must lie in 0\.\.12"):
        cuflash.decode(backend.asarray(q), cache, **options)
    cache.lengths[cache.seqs[1]] = -1
    with pytest.raises(cuflash.ProblemError, match="holds -1"):
        cuflash.decode(backend.asarray(q), cache, **options)


# Trimmed sequences.


def asked_to_look(backend):
    """Options with which decoding looks at lengths: on a device it does not of its own accord, which would wait."""
    return {} if backend.name == "numpy" else {"validate": True}


@pytest.fixture
def trimmed(backend, make_paged, qkv):
    """Queries, keys and values of one sequence of 100 tokens, and a cache with the first 9 and last 41 of them."""
    q, k, v = qkv(1, 4, 2, 3, 100, 8, dtype="float64")
    cache = make_paged(k, v, [100], page_size=4)
    (seq,) = cache.seqs
    free = cache.free_pages
    cache.trim(seq, 9, 41)
    assert cache.free_pages - free == 11  # the pages of tokens 12 to 55
    unused = sorted(set(range(cache.pages)) - set(host(cache.page_table)[seq].tolist()))
    for array in (cache.k, cache.v):
        array[unused] = np.nan
    return q, k, v, cache


@pytest.mark.parametrize(("lq", "left"), [(1, 43), (1, 0), (3, 41)])
def test_a_window_that_does_not_reach_what_was_trimmed(lq, left, trimmed, check):
    """Against the reference over all keys."""
    q, k, v, cache = trimmed
    out, _ = check.decode(q[:, :, -lq:], cache, window=(left, 0))
    expected = reference.attention(q[:, :, -lq:], k, v, causal=True, window=(left, 0))
    np.testing.assert_allclose(out, expected, rtol=1e-12)


@pytest.mark.parametrize(("lq", "options"), [(1, {}), (1, {"window": (44, 0)}), (3, {"window": (42, 0)}),
                                             (1, {"window": (None, 0)}), (1, {"causal": False})])  # fmt: skip
def test_a_look_at_what_was_trimmed_is_an_error(lq, options, trimmed, backend):
    q, _, _, cache = trimmed
    message = rf"only the keys from 56 on .* as trim left them; window=\({100 - lq - 56}, 0\) sees no more than those"
    with pytest.raises(cuflash.ProblemError, match=message):
        cuflash.decode(backend.asarray(q[:, :, -lq:]), cache, **asked_to_look(backend), **options)
    out = backend.to_numpy(cuflash.decode(backend.asarray(q[:, :, -lq:]), cache, validate=False, **options))
    assert out.shape == (1, 4, lq, 8)  # whatever it is


def test_nothing_is_left_to_look_at(backend, make_paged, qkv):
    q, k, v = qkv(1, 2, 1, 1, 8, 4)
    cache = make_paged(k, v, [8], page_size=4)
    cache.trim(cache.seqs[0], 0, 0)
    with pytest.raises(cuflash.ProblemError, match=r"must lie in 0\.\.0, the end of its last page; .* trim none that"):
        cuflash.decode(backend.asarray(q), cache, window=0, **asked_to_look(backend))
    cache.append(backend.asarray(k[:, :, :1]), backend.asarray(v[:, :, :1]))
    out = backend.to_numpy(cuflash.decode(backend.asarray(q), cache, window=0))
    np.testing.assert_array_equal(out[0, :, 0], np.repeat(v[0, :, 0], 2, axis=0))


def test_queries_older_than_all_that_is_left(backend, make_paged, qkv):
    q, k, v = qkv(1, 2, 1, 9, 20, 4)
    cache = make_paged(k, v, [20], page_size=4)
    cache.trim(cache.seqs[0], 0, 4)
    with pytest.raises(cuflash.ProblemError, match=r"only the keys from 16 on of sequence .* too few for lq=9"):
        cuflash.decode(backend.asarray(q), cache, window=0, **asked_to_look(backend))


def test_the_first_keys_and_a_window(trimmed, backend):
    """As StreamingLLM attends: a fork keeps the first tokens, and the two results are merged."""
    q, k, v, cache = trimmed
    (seq,) = cache.seqs
    head = cache.fork(seq)
    cache.truncate(head, 8)
    token = backend.asarray(q[:, :, -1])
    window = cuflash.decode(token, cache, seqs=[seq], window=(40, 0), return_lse=True)
    first = cuflash.decode(token, cache, seqs=[head], causal=False, return_lse=True)
    out, lse = cuflash.merge(*zip(window, first, strict=True))
    near = np.r_[0:8, 59:100]
    expected = reference.attention(q[:, :, -1:], k[:, :, near], v[:, :, near], return_lse=True)
    for found, right in zip((out, lse), expected, strict=True):
        np.testing.assert_allclose(backend.to_numpy(found), right[:, :, 0], rtol=1e-12)


# What quantising costs. The table in docs/guide/caches.rst is measured by docs/figures.py.


@pytest.mark.parametrize(("name", "bound"), [("int8", 0.01), ("float8_e4m3fn", 0.04)])
def test_error_of_the_result(name, bound, backend, make_cache, qkv):
    """Relative to the exact result over the keys and values as they were given, for standard-normal numbers."""
    length = backend.length(4096)
    q, k, v = qkv(1, 8, 2, 1, length, 64)
    exact = reference.attention(q, k, v)
    out = cuflash.decode(backend.asarray(q), make_cache(k, v, [length], dtype=name))
    error = np.linalg.norm(backend.to_numpy(out) - exact) / np.linalg.norm(exact)
    assert error < bound


def test_float64_queries_are_not_demoted(stored, backend, make_cache, qkv):
    q, k, v = qkv(1, 2, 1, 1, 5, 4)
    cache = make_cache(k, v, [5], dtype=stored)
    with pytest.raises(TypeError, match=f"`q` has dtype float64, but `cache` is quantised \\({stored}\\)"):
        cuflash.decode(backend.asarray(q.astype(np.float64)), cache)
