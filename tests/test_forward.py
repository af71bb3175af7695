"""attention against the reference: every option, shape, order of memory and dtype, and what is
promised beyond numbers: exactness, nothing read that is hidden by length, memory, the arrays handed in."""

import tracemalloc

import numpy as np
import pytest
from backends import anything, on_devices, on_numpy
from hypothesis import strategies as st
from problems import ZERO_SIZES

import cuflash
from cuflash import reference

NO = -np.inf


@pytest.mark.pairs
@pytest.mark.parametrize("tiles", ["tuned", "small"])
def test_each_option(option, dtype, tiles, check, backend, qkv, options_of):
    options = options_of([option], 2, 4, 45, 61, dtype)
    with backend.tiles(tiles):
        check.attention(*qkv(2, 4, 2, 45, 61, 16, 24, dtype=dtype), **options)


def test_each_pair_of_options(option_pair, check, backend, qkv, options_of):
    options = options_of(option_pair, 2, 4, 21, 37, "float32")
    with backend.tiles("small"):
        check.attention(*qkv(2, 4, 2, 21, 37, 16, 8), **options)


def test_each_option_over_several_tuned_tiles(option, check, backend, qkv, options_of):
    lq, lk = backend.length(301), backend.length(1025)
    check.attention(*qkv(2, 2, 1, lq, lk, 16), **options_of([option], 2, 2, lq, lk, "float32"))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("lq", "lk"),
    [
        *[(1, 1), (1, 113), (2, 1), (113, 1), (113, 203), (203, 113), (1, 5000), (3, 4099)],
        *[(255, 511), (256, 512), (257, 513), (1023, 1024), (1024, 1025), (1025, 1023)],
    ],
)
def test_odd_lengths(lq, lk, causal, check, backend, qkv):
    check.attention(*qkv(None, 1, 1, backend.length(lq), backend.length(lk), 8), causal=causal)


@pytest.mark.parametrize(("d", "dv"), [(1, 1), (3, 5), (64, 1), (1, 128), (80, 33), (512, 512)])
def test_head_dims(d, dv, dtype, check, qkv):
    check.attention(*qkv(2, 2, 2, 7, 19, d, dv, dtype=dtype))


@pytest.mark.parametrize(
    ("q_shape", "k_shape", "v_shape"),
    [
        ((5, 4), (7, 4), (7, 3)),
        ((2, 5, 4), (2, 7, 4), (2, 7, 3)),
        ((6, 5, 4), (2, 7, 4), (2, 7, 3)),
        ((6, 5, 4), (1, 7, 4), (1, 7, 3)),
        ((3, 2, 5, 4), (3, 2, 7, 4), (3, 2, 7, 3)),
        ((3, 2, 5, 4), (2, 7, 4), (2, 7, 3)),
        ((2, 5, 4), (3, 2, 7, 4), (2, 7, 3)),
        ((2, 5, 4), (2, 7, 4), (3, 1, 2, 7, 3)),
        ((3, 1, 4, 5, 4), (1, 2, 2, 7, 4), (2, 2, 7, 3)),
        ((2, 1, 3, 4, 5, 4), (2, 3, 2, 7, 4), (1, 1, 1, 2, 7, 3)),
    ],
)
def test_axes_broadcast(q_shape, k_shape, v_shape, check, normal):
    q, k, v = (normal(*shape, seed=seed) for seed, shape in enumerate((q_shape, k_shape, v_shape)))
    out, lse = check.attention(q, k, v, causal=True)
    batch = np.broadcast_shapes(q_shape[:-3], k_shape[:-3], v_shape[:-3])
    assert out.shape == (*batch, *q_shape[-3:-1], v_shape[-1])
    assert lse.shape == out.shape[:-1]
    if len(q_shape) > 2:  # the other layout, as transposed views
        turned = [x.swapaxes(-3, -2) for x in (q, k, v)]
        other, other_lse = check.attention(*turned, causal=True, layout="blhd")
        np.testing.assert_array_equal(other.swapaxes(-3, -2), out)
        np.testing.assert_array_equal(other_lse, lse)


@pytest.mark.parametrize(
    "shape", [(61,), (45, 1), (45, 61), (4, 1, 61), (4, 45, 61), (2, 1, 1, 61), (2, 4, 1, 1), (1,), ()]
)
@pytest.mark.parametrize("kind", ["mask", "bias", "float32 bias"])
def test_mask_and_bias_broadcast(shape, kind, check, backend, qkv, normal):
    dtype = "float16" if kind == "float32 bias" else "float32"
    operands = qkv(2, 4, 2, 45, 61, 8, dtype=dtype)
    given_array = normal(*shape) if "bias" in kind else np.asarray(normal(*shape) > -1)
    with backend.tiles("small"):
        check.attention(*operands, **{kind.split()[-1]: np.asarray(given_array)})


@on_devices
@pytest.mark.parametrize(("least", "most"), [(-(2**63), 2**63 - 1), (-1, 10)])
def test_lengths_on_a_device_count_as_the_nearest_possible(least, most, backend, normal, same_bytes):
    q, k, v = (backend.asarray(normal(2, 1, n, 4, seed=n)) for n in (5, 9, 9))
    out = backend.to_numpy(cuflash.attention(q, k, v, kv_lengths=backend.asarray(np.array([least, most]))))
    same_bytes(out, backend.to_numpy(cuflash.attention(q, k, v, kv_lengths=[0, 9])))
    assert not out[0].any()


@pytest.mark.parametrize("kind", ["int", "list", "uint8", "int8", "uint64", "one axis of two"])
def test_kinds_of_lengths_and_offsets(kind, check, normal):
    q, k, v = normal(2, 3, 2, 9, 4), normal(2, 3, 2, 200, 4, seed=1), normal(2, 3, 2, 200, 4, seed=2)
    lengths = {"int": 150, "list": [[150, 1, 9], [0, 200, 130]], "one axis of two": np.array([[200], [120]])}
    if kind not in lengths:
        lengths[kind] = np.array([[150, 1, 9], [0, 200, 130]]).clip(0, 127 if kind == "int8" else 200).astype(kind)
    check.attention(q, k, v, causal=True, kv_lengths=lengths[kind])
    check.attention(q, k, v, causal=True, q_offset=lengths[kind], bias=cuflash.Alibi([0.1, 0.3]), window=140)


def test_views(view, dtype, check, qkv):
    q, k, v = qkv(2, 4, 2, 19, 37, 8, dtype=dtype)
    for views in (view, (view, "plain", "plain"), ("plain", view, "plain"), ("plain", "length before heads", view)):
        check.attention(q, k, v, views=views, causal=True)


def test_zero_stride_and_read_only_views(check, backend, normal):
    xp = backend.xp
    q, k, v = normal(1, 2, 5, 4), normal(1, 1, 7, 1, seed=1), normal(1, 1, 1, 4, seed=2)
    wide = [xp.broadcast_to(backend.asarray(x), (3, 2, length, 4)) for x, length in ((q, 5), (k, 7), (v, 7))]
    out = backend.to_numpy(cuflash.attention(*wide))
    same = [np.broadcast_to(x, (3, 2, length, 4)) for x, length in ((q, 5), (k, 7), (v, 7))]
    np.testing.assert_allclose(out, reference.attention(*same), rtol=1e-5, atol=1e-6)
    assert out.flags.writeable
    assert np.unique(out[0] - out[1]).tolist() == [0]


@pytest.mark.parametrize(("b", "hq", "hk", "lq", "lk", "d", "dv"), ZERO_SIZES)
@pytest.mark.parametrize("sinks", [False, True])
def test_zero_sizes(b, hq, hk, lq, lk, d, dv, sinks, check, qkv):
    options = {"sinks": np.ones(hq, np.float32)} if sinks else {}
    out, lse = check.attention(
        *qkv(b, hq, hk, lq, lk, d, dv), causal=True, bias=np.zeros((1, lk), np.float32), **options
    )
    assert out.shape == (b, hq, lq, dv)
    if lk == 0:
        assert (out == 0).all()
        assert (lse == (1 if sinks else NO)).all()
    check.weights(*qkv(b, hq, hk, lq, lk, d, dv)[:2], causal=True, **options)


@pytest.mark.parametrize("score", [0, 1, -3])
@pytest.mark.parametrize("lq", [1, 40, 700])
def test_equal_scores_give_whole_numbers_exactly(lq, score, dtype, backend):
    """Windows of 64 keys with equal scores weigh each by 1/64; multiples of 64 then average to whole numbers."""
    lq = backend.length(lq)
    rng = np.random.default_rng(0)
    q, k = np.ones((2, lq, 1)), np.full((1, lq + 64, 1), score)
    v = rng.integers(-3, 4, size=(1, lq + 64, 5)) * 64
    seen = np.arange(lq)[:, None] + 1 + np.arange(64)
    expected = v[0][seen].sum(axis=1) // 64
    operands = (backend.asarray(x.astype(dtype)) for x in (q, k, v))
    out, lse = cuflash.attention(*operands, window=(63, 0), return_lse=True)
    assert (backend.to_numpy(out) == expected).all()
    np.testing.assert_allclose(backend.to_numpy(lse), score + np.log(64), rtol=1e-6)


def test_a_key_that_outweighs_all_others_gives_its_value_exactly(dtype, backend):
    q = np.eye(8)[None].astype(dtype)
    v = np.random.default_rng(0).standard_normal((1, 8, 3)).astype(dtype)
    moved = [backend.asarray(x) for x in (q, q, v)]
    out, lse = cuflash.attention(*moved, scale=1e4, return_lse=True)
    np.testing.assert_array_equal(backend.to_numpy(out), v)
    assert (backend.to_numpy(lse) == 1e4).all()


@pytest.mark.long
@pytest.mark.parametrize("lengths", [[5, 37, 0], [36, 1, 20]])
def test_nothing_behind_kv_lengths_is_read(lengths, dtype, backend, qkv, normal, same_bytes):
    """Keys, values and biases behind the lengths may be NaN or infinite: not a bit changes."""
    q, k, v = qkv(3, 4, 2, 9, 37, 8, dtype=dtype)
    bias = normal(3, 1, 9, 37, dtype=dtype)
    results = []
    for poison in (0, np.nan, np.inf):
        for i, length in enumerate(lengths):
            k[i, :, length:] = v[i, :, length:] = bias[i, ..., length:] = poison
        moved = [backend.asarray(x.copy()) for x in (q, k, v)]
        options = {"bias": backend.asarray(bias.copy()), "kv_lengths": backend.asarray(np.array(lengths))}
        out, lse = cuflash.attention(*moved, **options, return_lse=True)
        weights = cuflash.attention_weights(*moved[:2], **options)
        results.append([backend.to_numpy(x) for x in (out, lse, weights)])
    assert not any(np.isnan(x.astype(float)).any() for x in results[0])
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            same_bytes(one, other)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"mask": np.zeros((1, 1), bool)}, id="empty mask"),
        pytest.param({"causal": True, "q_offset": -100}, id="before all keys"),
        pytest.param({"window": (0, 3), "q_offset": 500}, id="window behind the keys"),
        pytest.param({"window": (3, 0), "q_offset": -500}, id="window before the keys"),
        pytest.param({"kv_lengths": 0}, id="no key is real"),
        pytest.param({"kv_lengths": [5, 0]}, id="no key of the second is real"),
        pytest.param({"bias": np.full((1, 1), NO, np.float32)}, id="bias -inf"),
        pytest.param({"mask": np.arange(60) >= 30}, id="first tiles masked"),
        pytest.param({"mask": (np.arange(20) != 7)[:, None]}, id="one row masked"),
        pytest.param({"bias": np.where(np.arange(60) < 30, np.float32(NO), np.float32(0))}, id="first tiles -inf"),
        pytest.param({"bias": np.where(np.arange(20) == 7, np.float32(NO), np.float32(0))[:, None]}, id="one row -inf"),
    ],
)
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("tiles", ["tuned", "small"])
def test_queries_that_see_nothing(options, sinks, tiles, check, backend, qkv):
    """Output 0, lse -inf or the sink, and no warning on the way."""
    if sinks:
        options = options | {"sinks": np.array([0.5, -1.0], np.float32)}
    q, k, v = qkv(2, 2, 1, 20, 60, 8)
    with backend.tiles(tiles):
        out, lse = check.attention(q, k, v, **options)
        weights = check.weights(q, k, **options)
    blind = np.isneginf(reference.attention(q, k, v, **options | {"sinks": None}, return_lse=True)[1])
    assert (out[blind] == 0).all()
    assert (weights[blind] == 0).all()
    expected = np.broadcast_to(options.get("sinks", np.full(2, NO))[:, None], blind.shape)
    np.testing.assert_allclose(lse[blind], expected[blind], rtol=1e-6)


def test_a_sink_of_minus_infinity_is_none(backend, qkv, same_bytes):
    q, k, v = map(backend.asarray, qkv(2, 2, 1, 5, 9, 4))
    sinks = backend.asarray(np.full(2, NO, np.float32))
    hidden = backend.asarray(np.zeros((1, 1), bool))
    for options in ({}, {"mask": hidden}):
        with_sinks = cuflash.attention(q, k, v, **options, sinks=sinks, return_lse=True)
        for one, other in zip(with_sinks, cuflash.attention(q, k, v, **options, return_lse=True), strict=True):
            same_bytes(backend.to_numpy(one), backend.to_numpy(other))


@on_numpy
@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("causal", [False, True])
def test_accuracy_guarantee_at_length_4096(name, causal, backend, normal):
    """||out - ref|| / ||ref|| of standard-normal operands; the reference looks at 128 of the rows.

    Too long for the emulator; bench/validate_gpu.py asks the same of a GPU.
    """
    q, k, v = (normal(4096, 64, dtype=name, seed=seed) for seed in range(3))
    out = backend.to_numpy(cuflash.attention(*map(backend.asarray, (q, k, v)), causal=causal))
    squares = np.zeros(2)
    for row in range(0, 4096, 32):
        exact = reference.attention(q[[row]], k, v, causal=causal, q_offset=row, dtype=np.longdouble)[0]
        squares += ((out[row] - exact) ** 2).sum(), (exact**2).sum()
    assert np.sqrt(squares[0] / squares[1]) <= {"float32": 1e-6, "float64": 1e-14}[name]


# The arrays handed in and given back.


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_out_and_lse_out_are_filled_and_given_back(layout, dtype, backend, qkv, same_bytes):
    q, k, v = qkv(2, 4, 2, 11, 13, 8, 3, dtype=dtype)
    if layout == "blhd":
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    q, k, v = map(backend.asarray, (q, k, v))
    expected, expected_lse = cuflash.attention(q, k, v, layout=layout, return_lse=True)
    lse_dtype = "float64" if dtype == np.float64 else "float32"
    out = backend.asarray(np.full(expected.shape, np.nan, dtype))
    lse_out = backend.asarray(np.full(expected_lse.shape[::-1], np.nan, lse_dtype)).T  # strided
    results = cuflash.attention(q, k, v, layout=layout, out=out, lse_out=lse_out, return_lse=True)
    assert results[0] is out
    assert results[1] is lse_out
    same_bytes(backend.to_numpy(out), backend.to_numpy(expected))
    same_bytes(backend.to_numpy(lse_out), backend.to_numpy(expected_lse))
    assert cuflash.attention(q, k, v, layout=layout, out=out) is out
    only_lse = backend.asarray(np.zeros(expected_lse.shape, lse_dtype))
    cuflash.attention(q, k, v, layout=layout, lse_out=only_lse)
    same_bytes(backend.to_numpy(only_lse), backend.to_numpy(expected_lse))
    workspace = backend.asarray(np.zeros(0, np.uint8))
    same_bytes(backend.to_numpy(cuflash.attention(q, k, v, layout=layout, workspace=workspace)), backend.to_numpy(out))


@pytest.mark.parametrize("dv", [8, 5])
def test_output_takes_the_memory_order_of_q(dv, backend, qkv):
    q, k, v = qkv(2, 4, 2, 11, 13, 8, dv)
    plain = cuflash.attention(*map(backend.asarray, (q, k, v)))
    assert plain.flags.c_contiguous
    turned = backend.asarray(q.swapaxes(1, 2).copy())
    out = cuflash.attention(turned.swapaxes(1, 2), backend.asarray(k), backend.asarray(v))
    assert out.swapaxes(1, 2).flags.c_contiguous
    k, v = (backend.asarray(x.swapaxes(1, 2)) for x in (k, v))
    assert cuflash.attention(turned, k, v, layout="blhd").flags.c_contiguous
    assert (backend.to_numpy(out) == backend.to_numpy(plain)).all()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"mask": np.ones((3, 3), bool)}, ValueError),
        ({"bias": np.ones((3, 3), np.float32)}, ValueError),
        ({"kv_lengths": 10}, ValueError),
        ({"window": -1}, ValueError),
        ({"softcap": 0.0}, ValueError),
        ({"sinks": np.ones(3, np.float32)}, ValueError),
        ({"lse_out": np.ones((2, 5))}, (TypeError, ValueError)),
        ({"precision": "tf32"}, NotImplementedError),
        ({"return_lse": "yes"}, TypeError),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_error_writes_nothing(wrong, error, backend, qkv):
    q, k, v = map(backend.asarray, qkv(None, 2, 2, 5, 7, 4))
    arrays = {"out": backend.asarray(np.full((2, 5, 4), 7, np.float32))}
    arrays["lse_out"] = backend.asarray(np.full((2, 5), 7, np.float32))
    with pytest.raises(error):
        cuflash.attention(q, k, v, **arrays | backend.give(wrong))
    assert all((backend.to_numpy(array) == 7).all() for array in arrays.values())


def test_operands_are_left_as_they_were(backend, qkv, options_of, same_bytes):
    options = options_of(["bias", "sinks", "kv_lengths", "mask"], 2, 4, 11, 13, "float32")
    arrays = [*qkv(2, 4, 2, 11, 13, 8), *options.values()]
    before = [x.copy() for x in arrays]
    moved = [backend.asarray(x) for x in arrays]
    cuflash.attention(*moved[:3], **dict(zip(options, moved[3:], strict=True)), causal=True)
    for array, copy in zip(moved, before, strict=True):
        same_bytes(backend.to_numpy(array), copy)


# Memory that NumPy takes.


def peak_bytes(function, *args, **options):
    tracemalloc.start()
    try:
        function(*args, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@on_numpy
@pytest.mark.parametrize("causal", [False, True])
def test_memory_above_inputs_and_outputs(causal, backend, test_level):
    """Under 64 MB with 16384 keys and 8 heads, whose scores take 8 GB; 1024 of the queries only below TEST_LEVEL=3."""
    lq = 1024 if test_level < 3 else 16384
    rng = np.random.default_rng(0)
    q, k, v = (backend.asarray(rng.standard_normal((8, n, 64), dtype=np.float32)) for n in (lq, 16384, 16384))
    out, lse_out = (backend.asarray(np.empty(shape, np.float32)) for shape in ((8, lq, 64), (8, lq)))
    assert peak_bytes(cuflash.attention, q, k, v, causal=causal, out=out, lse_out=lse_out) < 64e6


@on_numpy
@pytest.mark.parametrize("name", ["float16", "float64"])
def test_memory_of_options_that_broadcast(name, backend, normal):
    """Neither a bias, a mask nor a conversion is ever written out: (4096, 4096) booleans alone would be 17 MB."""
    q, k, v = (backend.asarray(normal(2, length, 16, dtype=name)) for length in (512, 4096, 4096))
    options = {"bias": normal(2, 1, 4096), "mask": np.ones((512, 1), bool), "kv_lengths": 4000, "softcap": 3.0}
    options["bias"] = options["bias"].astype(name)
    out = backend.asarray(np.empty((2, 512, 16), name))
    small = peak_bytes(cuflash.attention, q[:, :64], k, v, out=out[:, :64], **options | {"mask": options["mask"][:64]})
    large = peak_bytes(cuflash.attention, q, k, v, out=out, **options)
    assert large < 12e6
    assert large < 4 * small + 1e6


# Anything at all.


@anything(data=st.data())
def test_any_problem(check_same, backend, problems, data):
    arrays, views, options, tiles = data.draw(problems)
    with backend.tiles(tiles):
        check_same.attention(*arrays, views=views, **options)
        q_k_batch = np.broadcast_shapes(*(x.shape[:-3] for x in arrays[:2]))
        if q_k_batch == np.broadcast_shapes(*(x.shape[:-3] for x in arrays)):
            check_same.weights(*arrays[:2], **options)


@on_numpy
@pytest.mark.parametrize("threads", ["1", "2"])
def test_underflow_is_expected_whatever_the_caller_asks_of_numpy(threads, backend, normal, monkeypatch):
    monkeypatch.setenv("CUFLASH_NUM_THREADS", threads)
    q = backend.asarray(100 * normal(2, 600, 8))
    k = backend.asarray(100 * normal(2, 600, 8, seed=1))
    before = np.geterr()
    with np.errstate(all="raise"):
        out = cuflash.attention(q, k, k, causal=True, kv_lengths=590, q_offset=-3)
    assert np.isfinite(backend.to_numpy(out)).all()
    assert np.geterr() == before
