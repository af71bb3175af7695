"""attention_varlen and its gradient against the reference: lengths of every kind, each option, and what is promised
beyond numbers: nothing of another member read, the same bits on any number of threads, memory, the arrays handed in."""

import tracemalloc

import numpy as np
import pytest
from backends import anything, on_numpy
from hypothesis import strategies as st

import cuflash
from cuflash import reference

NO = -np.inf
LENGTHS = [17, 0, 1, 45, 30, 9], [23, 12, 0, 61, 30, 40]  # queries and keys of six members


def starts_of(*lengths):
    return [np.cumsum([0, *some]) for some in lengths]


@pytest.fixture(scope="session")
def make_pack(normal):
    """`make_pack(lq, lk, hq, hk, d, dv=d, dtype=)`: q, k, v, q_starts, kv_starts of members of these lengths."""

    def make(lq, lk, hq=4, hk=2, d=8, dv=None, dtype="float32"):
        dims = ((sum(lq), hq, d), (sum(lk), hk, d), (sum(lk), hk, d if dv is None else dv))
        arrays = [normal(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(dims)]
        return *arrays, *starts_of(lq, lk)

    return make


@pytest.fixture(scope="session")
def pack_options(options_of):
    """`pack_options(names, lq, lk, hq, dtype)`: the named options together, for members of these lengths."""

    def make(names, lq, lk, hq, dtype):
        options = options_of(names, len(lq), hq, max(lq), max(lk), dtype)
        if "kv_lengths" in options:
            options["kv_lengths"] = np.minimum(options["kv_lengths"], lk)
        return options

    return make


@pytest.fixture(scope="session")
def run(backend, check, normal):
    """`run(q, k, v, q_starts, kv_starts, check=, views=, **options)`: out, lse and gradients, held by `check`."""

    def held(q, k, v, q_starts, kv_starts, check=check, views="plain", **options):
        total_q, hq, _ = q.shape
        dout = normal(total_q, hq, v.shape[-1], dtype=q.dtype, seed=98)
        dlse = normal(hq, total_q, dtype="float64" if q.dtype == np.float64 else "float32", seed=99)
        views = [views] * 3 if isinstance(views, str) else views
        dout_, q_, k_, v_ = check.move((dout, q, k, v), (views[0], *views))
        starts = backend.give(q_starts), backend.give(kv_starts)
        moved = backend.give(options)
        out_, lse_ = cuflash.attention_varlen(q_, k_, v_, *starts, return_lse=True, **moved)
        out, lse = backend.to_numpy(out_), backend.to_numpy(lse_)
        assert (out.shape, out.dtype) == (dout.shape, q.dtype)
        assert (lse.shape, lse.dtype) == (dlse.shape, dlse.dtype)
        arrays = q, k, v, q_starts, kv_starts
        check.hold((out, lse), reference.attention_varlen, q.dtype, *arrays, return_lse=True, **options)

        moved["dlse"] = backend.asarray(dlse)
        grads = cuflash.attention_varlen_backward(dout_, q_, k_, v_, out_, lse_, *starts, **moved)
        assert isinstance(grads, cuflash.Gradients)
        grads = cuflash.Gradients(*(grad if grad is None else backend.to_numpy(grad) for grad in grads))
        for grad, operand in zip(grads, (q, k, v, options.get("bias"), options.get("sinks")), strict=True):
            if isinstance(operand, np.ndarray):
                assert (grad.shape, grad.dtype) == (operand.shape, operand.dtype)
        check.hold(grads, reference.attention_varlen_backward, q.dtype, dout, *arrays, dlse=dlse, **options)
        return out, lse, grads

    return held


@pytest.mark.pairs
@pytest.mark.parametrize("tiles", ["tuned", "small"])
def test_each_option(option, dtype, tiles, run, backend, make_pack, pack_options):
    with backend.tiles(tiles):
        run(*make_pack(*LENGTHS, dv=12, dtype=dtype), **pack_options([option], *LENGTHS, 4, dtype))


def test_each_pair_of_options(option_pair, run, backend, make_pack, pack_options):
    lengths = [7, 0, 21, 3], [19, 5, 37, 0]
    with backend.tiles("small"):
        run(*make_pack(*lengths), **pack_options(option_pair, *lengths, 4, "float32"))


def test_each_option_over_several_tuned_tiles(option, run, backend, make_pack, pack_options):
    lengths = [backend.length(301), 20, 0], [backend.length(1025), backend.length(300), 40]
    run(*make_pack(*lengths, hq=2, hk=1), **pack_options([option], *lengths, 2, "float32"))


@pytest.mark.parametrize(
    "shape",
    [
        *[(61,), (45, 1), (45, 61), (4, 1, 61), (4, 45, 61), (1, 45, 61), (4, 1, 1), (1,), ()],
        *[(6, 1, 1, 61), (6, 4, 1, 1), (6, 1, 45, 61), (6, 1, 45, 1), (6, 4, 45, 61), (1, 4, 45, 61)],
    ],
)
@pytest.mark.parametrize("kind", ["mask", "bias", "float32 bias"])
def test_mask_and_bias_broadcast(shape, kind, run, backend, make_pack, normal):
    """And the gradient of a bias of each shape."""
    array = normal(*shape) > -1 if kind == "mask" else normal(*shape)
    dtype = "float16" if kind == "float32 bias" else "float32"
    with backend.tiles("small"):
        run(*make_pack(*LENGTHS, dtype=dtype), **{kind.split()[-1]: np.asarray(array)}, causal=True, softcap=2.0)


@pytest.mark.parametrize(("lq", "lk"), [([1, 1], [1, 5]), ([3, 1], [1, 1]), ([2, 4], [0, 0]), ([0, 0], [2, 4])])
@pytest.mark.parametrize("shape", [(1,), (4, 1, 1), (2, 1, 1, 1), (2, 4, -2, -1), (1, -1), (-2, 1)])
def test_bias_gradient_where_the_longest_length_is_none_or_one(lq, lk, shape, run, check_same, make_pack, normal):
    shape = [{-2: max(lq), -1: max(lk)}.get(size, size) for size in shape]
    run(*make_pack(lq, lk, dtype="float64"), check=check_same, bias=normal(*shape, dtype="float64"))


@pytest.mark.parametrize("kind", ["list", "tuple", "int32", "uint8", "uint64", "strided"])
def test_kinds_of_starts_and_numbers(kind, run, make_pack, same_bytes):
    q, k, v, *starts = make_pack([5, 0, 9], [7, 2, 6])
    expected, _, _ = run(q, k, v, *starts, causal=True)
    make = {"list": list, "tuple": tuple, "strided": lambda x: np.repeat(x, 2)[::2]}
    starts = [make.get(kind, lambda x: x.astype(kind))(x) for x in starts]
    same_bytes(run(q, k, v, *starts, causal=True)[0], expected)
    lengths = [7, 1, 4] if kind in ("list", "tuple", "strided") else np.array([7, 1, 4], kind)
    run(q, k, v, *starts, kv_lengths=lengths, q_offset=lengths, causal=True, bias=cuflash.Alibi([0.5] * 4))
    run(q, k, v, *starts, kv_lengths=np.array([2]), q_offset=-1, window=2)


def test_positions_are_counted_in_each_member_alone(run, make_pack):
    """Causal, by default, shows a member's last query all of its keys, and its first one lk - lq + 1 of them."""
    q, k, v, *starts = make_pack([2, 3, 4], [4, 3, 1], hq=1, hk=1, d=1)
    _, lse, _ = run(0 * q, k, v, *starts, causal=True)
    np.testing.assert_allclose(np.exp(lse), [[3, 4, 1, 2, 3, 0, 0, 0, 1]], rtol=1e-6)
    _, lse, _ = run(0 * q, k, v, *starts, causal=True, q_offset=[0, 1, 5])
    np.testing.assert_allclose(np.exp(lse), [[1, 2, 2, 3, 3, 1, 1, 1, 1]], rtol=1e-6)
    _, lse, _ = run(0 * q, k, v, *starts, causal=True, kv_lengths=[3, 0, 1])
    np.testing.assert_allclose(np.exp(lse), [[3, 3, 0, 0, 0, 0, 0, 0, 1]], rtol=1e-6)


# Lengths and sizes.


@pytest.mark.parametrize(
    ("lq", "lk"),
    [
        *[([], []), ([0], [0]), ([0, 0, 0], [0, 0, 0]), ([5], [0]), ([0], [5]), ([1], [1])],
        *[([0, 5, 0], [0, 7, 0]), ([5, 0, 3], [0, 7, 0]), ([5, 3], [7, 0]), ([3, 5], [0, 7]), ([0, 5], [7, 3])],
        *[([1] * 9, [3] * 9), ([1, 700, 1], [1, 5, 300]), ([3], [5000]), ([1, 1, 257], [4099, 1, 513])],
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_lengths(lq, lk, causal, run, backend, make_pack):
    lq, lk = ([backend.length(length) for length in each] for each in (lq, lk))
    out, lse, grads = run(*make_pack(lq, lk), causal=causal)
    blind = np.repeat(np.array(lk, int) == 0, lq)
    assert not out[blind].any()
    assert (lse[:, blind] == NO).all()
    assert not grads.dq[blind].any()


def test_many_members(run, backend, make_pack):
    lengths = np.random.default_rng(0).integers(0, backend.length(40), size=(2, backend.examples(60))).tolist()
    run(*make_pack(*lengths), causal=True)
    with backend.tiles("small"):
        run(*make_pack(*lengths), causal=True, sinks=np.ones(4, np.float32))


@pytest.mark.parametrize(
    ("hq", "hk", "d", "dv"), [(0, 0, 3, 3), (2, 1, 0, 3), (2, 2, 3, 0), (6, 2, 1, 64), (3, 1, 96, 5)]
)
def test_heads_and_dims(hq, hk, d, dv, dtype, run, make_pack):
    run(*make_pack([4, 0, 3], [5, 2, 9], hq, hk, d, dv, dtype=dtype), sinks=np.ones(hq, np.float32))


def test_views(view, run, make_pack):
    pack = make_pack([5, 0, 9], [7, 2, 9], dv=5)
    for views in (view, (view, "plain", "plain"), ("plain", view, "length before heads")):
        run(*pack, views=views, causal=True)


@anything(data=st.data())
def test_any_pack(run, backend, check_same, data):
    draw = data.draw
    n, hk, group = draw(st.integers(0, 5)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    lq, lk = (draw(st.lists(st.integers(0, 12), min_size=n, max_size=n)) for _ in range(2))
    d, dv, hq = draw(st.integers(0, 4)), draw(st.integers(0, 4)), hk * group
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays = [rng.standard_normal(shape) for shape in ((sum(lq), hq, d), (sum(lk), hk, d), (sum(lk), hk, dv))]
    scores = (n, hq, max(lq, default=0), max(lk, default=0))

    def broadcast():
        own = tuple(size if draw(st.booleans()) else 1 for size in scores)
        return own[draw(st.integers(0, 4)) :]

    makers = {
        "causal": lambda: True,
        "window": lambda: draw(st.tuples(*[st.none() | st.integers(0, 14)] * 2)),
        "mask": lambda: np.asarray(rng.random(broadcast()) < 0.7),
        "bias": lambda: np.asarray(rng.standard_normal(broadcast())),
        "softcap": lambda: draw(st.sampled_from([0.25, 4.0])),
        "sinks": lambda: rng.standard_normal(hq),
        "q_offset": lambda: rng.integers(-14, 15, size=draw(st.sampled_from([(), (1,), (n,)]))),
        "kv_lengths": lambda: (rng.random(n) * (np.array(lk, int) + 1)).astype(int),
    }
    options = {name: makers[name]() for name in draw(st.sets(st.sampled_from(sorted(makers))))}
    views = draw(
        st.tuples(*[st.sampled_from(["plain", "length before heads", "inner slice", "reversed features"])] * 3)
    )
    with backend.tiles(draw(st.sampled_from(["tuned", "small"]))):
        run(*arrays, *starts_of(lq, lk), check=check_same, views=views, **options)


# What is not read.


def poison(array, keep):
    """A copy with NaN (False in a mask) outside of `keep`."""
    copy = np.full_like(array, False if array.dtype == bool else np.nan)
    copy[keep] = array[keep]
    return copy


@pytest.mark.parametrize("m", range(6))
@pytest.mark.parametrize("tiles", ["tuned", "small"])
def test_nothing_of_other_members_is_read(m, tiles, backend, make_pack, normal, same_bytes):
    """NaN in them, behind the member's own part of mask and bias, behind its kv_lengths: not a bit of it changes."""
    q, k, v, *starts = make_pack(*LENGTHS)
    kv_lengths = np.array(LENGTHS[1]) * 2 // 3
    rows, keys = (slice(start[m], start[m] + some[m]) for start, some in zip(starts, (LENGTHS[0], kv_lengths)))
    own = (slice(m, m + 1), slice(None), slice(LENGTHS[0][m]), slice(kv_lengths[m]))
    clean = [normal(*q.shape, seed=7), q, k, v, normal(6, 4, 45, 61), np.asarray(normal(6, 1, 45, 61) > -1)]
    poisoned = [poison(x, keep) for x, keep in zip(clean, (rows, rows, keys, keys, own, own), strict=True)]
    starts, found = [backend.asarray(x) for x in starts], []
    for arrays in (clean, poisoned):
        dout, *operands, bias, mask = map(backend.asarray, arrays)
        options = {"causal": True, "bias": bias, "mask": mask, "kv_lengths": backend.asarray(kv_lengths)}
        with np.errstate(invalid="ignore"), backend.tiles(tiles):
            out, lse = cuflash.attention_varlen(*operands, *starts, **options, return_lse=True)
            grads = cuflash.attention_varlen_backward(dout, *operands, out, lse, *starts, **options)
        found.append([backend.to_numpy(x) for x in (out, lse, *grads[:4])])
    places = rows, (slice(None), rows), rows, keys, keys, own
    for one, other, place in zip(*found, places, strict=True):
        assert not np.isnan(one[place]).any()
        same_bytes(one[place], other[place])


def test_the_gradient_is_zero_where_nobody_looks(run, make_pack, normal):
    bias, kv_lengths = normal(6, 4, 45, 61), np.array(LENGTHS[1]) * 2 // 3
    _, _, grads = run(*make_pack(*LENGTHS), bias=bias, kv_lengths=kv_lengths)
    _, q_starts = starts_of(*LENGTHS)
    for m, (rows, keys) in enumerate(zip(LENGTHS[0], kv_lengths, strict=True)):
        assert not grads.dbias[m, :, rows:].any()
        assert not grads.dbias[m, :, :, keys:].any()
        unread = slice(q_starts[m] + keys, q_starts[m + 1])
        assert not grads.dk[unread].any()
        assert not grads.dv[unread].any()


@pytest.mark.parametrize("sinks", [False, True])
def test_queries_that_see_nothing(sinks, run, make_pack):
    options = {"sinks": np.array([0.5, -1.0, NO, 2.0], np.float32)} if sinks else {}
    q, k, v, *starts = make_pack(*LENGTHS)
    mask = np.arange(6)[:, None, None, None] != 4
    out, lse, grads = run(q, k, v, *starts, mask=mask, causal=True, q_offset=-3, **options)
    first = (np.arange(len(q)) - np.repeat(starts[0][:-1], LENGTHS[0])) < 3
    blind = first | np.repeat((np.arange(6) == 4) | (np.array(LENGTHS[1]) == 0), LENGTHS[0])
    assert not out[blind].any()
    assert not grads.dq[blind].any()
    only_sinks = options.get("sinks", np.full(4, NO))[:, None]
    np.testing.assert_array_equal(lse[:, blind], np.broadcast_to(only_sinks, (4, blind.sum())))


def test_whole_numbers_come_out_exactly(dtype, backend):
    """Members of 1, 2, 4 and 8 equal scores average multiples of 8."""
    sizes = np.array([1, 2, 4, 8])
    v = 8 * np.random.default_rng(0).integers(-3, 4, size=(15, 2, 5))
    q_starts, kv_starts = starts_of([4] * 4, sizes)
    q, k = np.ones((16, 2, 3)), np.ones((15, 2, 3))
    expected = np.repeat(np.add.reduceat(v, kv_starts[:-1]) / sizes[:, None, None], 4, axis=0)
    q, k, v = (backend.asarray(x.astype(dtype)) for x in (q, k, v))
    q_starts, kv_starts = backend.asarray(q_starts), backend.asarray(kv_starts)
    out, lse = cuflash.attention_varlen(q, k, v, q_starts, kv_starts, scale=0, return_lse=True)
    np.testing.assert_array_equal(backend.to_numpy(out), expected)
    np.testing.assert_allclose(backend.to_numpy(lse), np.broadcast_to(np.repeat(np.log(sizes), 4), (2, 16)), rtol=1e-6)
    grads = cuflash.attention_varlen_backward(out, q, k, v, out, lse, q_starts, kv_starts, scale=0)
    assert not backend.to_numpy(grads.dq).any()


def test_sums_over_members_are_rounded_once(backend, make_pack, normal):
    """The float16 gradients of bias and sinks are the float32 ones, rounded: not a sum of 300 rounded numbers."""
    members = backend.examples(300)
    q, k, v, *starts = make_pack([2] * members, [3] * members, dtype="float16")
    dout = backend.asarray(normal(2 * members, 4, 8, dtype="float16", seed=5) + np.float16(2))
    q, k, v, *starts = map(backend.asarray, (q, k, v + np.float16(1), *starts))
    found = []
    for dtype in (np.float16, np.float32):
        options = {"bias": backend.asarray(np.zeros((4, 1, 3), dtype)), "sinks": backend.asarray(np.zeros(4, dtype))}
        out, lse = cuflash.attention_varlen(q, k, v, *starts, **options, return_lse=True)
        found.append(cuflash.attention_varlen_backward(dout, q, k, v, out, lse, *starts, **options)[3:])
    for half, single in zip(*found, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(half), backend.to_numpy(single).astype(np.float16))


# The arrays handed in and given back.


def test_out_and_lse_out_are_filled_and_given_back(dtype, backend, make_pack, same_bytes):
    *moved, q_starts, kv_starts = [backend.asarray(x) for x in make_pack(*LENGTHS, dv=3, dtype=dtype)]
    starts = q_starts, kv_starts
    expected, expected_lse = cuflash.attention_varlen(*moved, *starts, return_lse=True)
    out = backend.asarray(np.full(expected.shape[::-1], np.nan, dtype)).T  # strided
    lse = backend.asarray(np.full(expected_lse.shape[::-1], np.nan, expected_lse.dtype)).T
    workspace = backend.asarray(np.zeros(0, np.uint8))
    results = cuflash.attention_varlen(*moved, *starts, out=out, lse_out=lse, workspace=workspace, return_lse=True)
    assert results[0] is out
    assert results[1] is lse
    same_bytes(backend.to_numpy(out), backend.to_numpy(expected))
    same_bytes(backend.to_numpy(lse), backend.to_numpy(expected_lse))
    assert cuflash.attention_varlen(*moved, *starts, out=out) is out


def test_results_take_the_memory_order_of_their_operands(backend, make_pack):
    *arrays, q_starts, kv_starts = make_pack(*LENGTHS, dv=5)
    q_starts, kv_starts = backend.asarray(q_starts), backend.asarray(kv_starts)
    plain = cuflash.attention_varlen(*map(backend.asarray, arrays), q_starts, kv_starts)
    assert plain.flags.c_contiguous
    turned = [backend.asarray(x.swapaxes(0, 1).copy()).swapaxes(0, 1) for x in arrays]
    out, lse = cuflash.attention_varlen(*turned, q_starts, kv_starts, return_lse=True)
    assert out.swapaxes(0, 1).flags.c_contiguous
    np.testing.assert_array_equal(backend.to_numpy(out), backend.to_numpy(plain))
    for grad in cuflash.attention_varlen_backward(out, *turned, out, lse, q_starts, kv_starts)[:3]:
        assert grad.swapaxes(0, 1).flags.c_contiguous


@pytest.mark.parametrize(
    "wrong", [{"kv_lengths": 10}, {"mask": np.ones((3, 3))}, {"window": -1}, {"softcap": 0.0}], ids=str
)
def test_an_error_writes_nothing(wrong, backend, make_pack):
    *operands, q_starts, kv_starts = make_pack(*LENGTHS)
    pack = *map(backend.asarray, operands), q_starts.tolist(), kv_starts.tolist()
    arrays = {"out": np.full((102, 4, 8), 7, np.float32), "lse_out": np.full((4, 102), 7, np.float32)}
    arrays = {name: backend.asarray(array) for name, array in arrays.items()}
    with pytest.raises((ValueError, TypeError)):
        cuflash.attention_varlen(*pack, **arrays | backend.give(wrong))
    assert all((backend.to_numpy(array) == 7).all() for array in arrays.values())


def test_operands_are_left_as_they_were(backend, make_pack, pack_options, normal, same_bytes):
    options = pack_options(["bias", "sinks", "kv_lengths", "mask", "q_offset"], *LENGTHS, 4, "float32")
    arrays = [*make_pack(*LENGTHS), *options.values()]
    before = [x.copy() for x in arrays]
    q, k, v, *rest = moved = [backend.asarray(x) for x in arrays]
    starts, options = rest[:2], dict(zip(options, rest[2:], strict=True))
    out, lse = cuflash.attention_varlen(q, k, v, *starts, **options, return_lse=True)
    kept = backend.to_numpy(out).copy(), backend.to_numpy(lse).copy()
    cuflash.attention_varlen_backward(out, q, k, v, out, lse, *starts, dlse=lse, deterministic=False, **options)
    for array, copy in zip([*moved, out, lse], [*before, *kept], strict=True):
        same_bytes(backend.to_numpy(array), copy)


@pytest.mark.long
@pytest.mark.parametrize("tiles", ["tuned", "small"])
def test_bits_do_not_depend_on_threads(tiles, backend, make_pack, normal, monkeypatch, same_bytes):
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 70, size=(2, 16)).tolist()
    q, k, v, *starts = map(backend.asarray, make_pack(*lengths))
    options = backend.give({"sinks": normal(4), "bias": normal(1, *map(max, lengths))})
    found = []
    for threads in ("1", "2", "5", "2"):
        monkeypatch.setenv("CUFLASH_NUM_THREADS", threads)
        with backend.tiles(tiles):
            out, lse = cuflash.attention_varlen(q, k, v, *starts, **options, return_lse=True)
            grads = cuflash.attention_varlen_backward(out, q, k, v, out, lse, *starts, **options)
        found.append([backend.to_numpy(x) for x in (out, lse, *grads)])
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            same_bytes(one, other)


@on_numpy
@pytest.mark.parametrize(
    ("lengths", "bias"),
    [
        pytest.param([2000, *[1] * 1000], (), id="padded, q alone would be 64 MB"),
        pytest.param([512] * 64, (512, 512), id="a gradient of the bias for each member would be 67 MB"),
        pytest.param([3000, 2], (2, 1, 1, 3000), id="the scores would be 36 MB"),
    ],
)
def test_memory_above_inputs(lengths, bias, backend, make_pack, normal):
    q, k, v, *starts = map(backend.asarray, make_pack(lengths, lengths, hq=1, hk=1))
    options = {"bias": backend.asarray(np.asarray(normal(*bias))), "causal": True}
    tracemalloc.start()
    out, lse = cuflash.attention_varlen(q, k, v, *starts, **options, return_lse=True)
    cuflash.attention_varlen_backward(out, q, k, v, out, lse, *starts, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6
