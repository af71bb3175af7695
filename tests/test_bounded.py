"""Scores known to lie close together skip the search for the maximum: when that is so, and that it does not show."""

import importlib

import numpy as np
import pytest
from backends import on_numpy

import cuflash
from cuflash import _plan, _tuning

LENGTH = 300  # more than 64 rows of a head


@pytest.fixture(autouse=True)
def small_problems_count(monkeypatch):
    """As large ones do."""
    plans = (_plan.make_plan, _plan.make_backward_plan)
    with monkeypatch.context() as patch:
        patch.setattr(_tuning, "BOUNDED_SCORES_LEAST", 0)
        for plan in plans:
            plan.cache_clear()
        yield
    for plan in plans:
        plan.cache_clear()


@pytest.fixture
def counted(monkeypatch):
    """How many tiles took which way: {"powers": without a maximum, "scores": with one}."""
    block = importlib.import_module("cuflash._numpy.scores").QueryBlock
    counts = {"powers": 0, "scores": 0}

    def count(name, method):
        def counting(*args):
            counts[name] += 1
            return method(*args)

        return counting

    for name in counts:
        monkeypatch.setattr(block, name, count(name, getattr(block, name)))
    return counts


def both_ways(check, counted, q, k, v, **options):
    """Forward and backward within the two-sided rule; the ways that the forward pass took."""
    check.attention(q, k, v, **options)
    taken = {name for name, count in counted.items() if count}
    check.backward(np.random.default_rng(5).standard_normal(q.shape).astype(q.dtype), q, k, v, **options)
    return taken


@pytest.fixture(params=["float16", "float32"])
def qkv(request):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, 2, LENGTH, 32)).astype(request.param) for _ in range(3)]


@on_numpy
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (100, 7)}, {"kv_lengths": np.array([200, 3])}])
def test_normal_numbers_need_no_maximum(options, qkv, check, counted):
    assert both_ways(check, counted, *qkv, **options) == {"powers"}


@on_numpy
@pytest.mark.parametrize("option", ["bias", "alibi", "softcap"])
def test_what_else_enters_the_scores_needs_one(option, options_of, check, counted, qkv):
    options = options_of([option], 2, 2, LENGTH, LENGTH, qkv[0].dtype)
    assert both_ways(check, counted, *qkv, **options) == {"scores"}


@on_numpy
def test_large_scores_need_one(check, counted, qkv):
    q, k, v = qkv
    assert both_ways(check, counted, q * q.dtype.type(8), k, v) == {"scores"}


@on_numpy
def test_what_all_keys_share_does_not_count(check, counted):
    """A constant of 40 standard deviations in every key, as trained models have in some features."""
    q, k, v = np.random.default_rng(1).standard_normal((3, 1, 2, LENGTH, 32), dtype=np.float32)
    k[..., 3] += 40
    assert both_ways(check, counted, q, k, v, causal=True) == {"powers"}


@on_numpy
def test_heads_decide_for_themselves(check, counted):
    q, k, v = np.random.default_rng(2).standard_normal((3, 1, 2, LENGTH, 32), dtype=np.float32)
    k[:, 1] *= 30
    assert both_ways(check, counted, q, k, v) == {"powers", "scores"}


@on_numpy
def test_one_long_hidden_key_does_no_harm(check, counted):
    """Finite keys that causal hides may be as large as they like."""
    q, k, v = np.random.default_rng(3).standard_normal((3, 1, 1, LENGTH, 32), dtype=np.float32)
    k[..., -1, :] = 1e30
    assert both_ways(check, counted, q[..., :-1, :], k, v, causal=True, q_offset=0) == {"scores"}


@on_numpy
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_key_that_is_no_number_spoils_the_rows_that_see_it_alone(bad, counted, backend):
    q, k, v = np.random.default_rng(4).standard_normal((3, 2, LENGTH, 32), dtype=np.float32)
    k[0, 200, 0] = bad
    clean = backend.to_numpy(cuflash.attention(*map(backend.asarray, (q, np.nan_to_num(k, posinf=0), v)), causal=True))
    with np.errstate(invalid="ignore"):
        out = backend.to_numpy(cuflash.attention(*map(backend.asarray, (q, k, v)), causal=True))
    spoiled = np.isnan(out).any(axis=-1)
    assert spoiled[0, 200:].all() if np.isnan(bad) else spoiled[0, 200:].any()
    assert not spoiled[0, :200].any()
    assert not spoiled[1].any()
    np.testing.assert_allclose(out[0, :200], clean[0, :200], rtol=1e-5, atol=1e-6)


@on_numpy
@pytest.mark.parametrize("size", [1e20, 1e37])
def test_values_near_the_end_of_their_range(size, counted, backend):
    """Sums of exp(30) times such values overflow; the maximum is then subtracted after all, without a warning."""
    q = np.full((1, LENGTH, 1), np.sqrt(30), np.float32)
    k = q * np.linspace(-1, 1, LENGTH, dtype=np.float32)[:, None]
    v = np.full((1, LENGTH, 3), size, np.float32) * np.float32([0.5, -1, 1])
    out = backend.to_numpy(cuflash.attention(*map(backend.asarray, (q, k, v)), scale=1.0))
    assert counted["powers"] > 0
    np.testing.assert_allclose(out, v, rtol=1e-5)
    assert (counted["scores"] > 0) == (size == 1e37)


@pytest.mark.long
@pytest.mark.parametrize("size", [1e-35, 1e-30, 1e-10, 1e30])
def test_gradients_of_any_size(size, check, backend):
    """The lse goes into dout, unless that would bring it near the ends of its range."""
    rng = np.random.default_rng(6)
    q, k, v = rng.standard_normal((3, 1, 1, backend.length(LENGTH), 16), dtype=np.float32)
    q *= 2
    dout = (rng.standard_normal(v.shape) * size).astype(np.float32)
    grads = check.backward(dout, q, k, v)
    assert np.isfinite(grads.dq).all()
    assert grads.dv.any()


# Exact products: there the formula step by step errs least, and so must we.


def line(length, dtype):
    """Scores that run evenly from -31 to 31, each an exact product."""
    return np.ones((1, length, 1), dtype), np.linspace(-31, 31, length).astype(dtype)[None, :, None]


@on_numpy
@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 3}], ids=str)
def test_scores_on_a_line(options, name, check, counted):
    q, k = line(LENGTH, name)
    v, dout = np.random.default_rng(8).standard_normal((2, 1, LENGTH, 4)).astype(name)
    check.attention(q, k, v, scale=1.0, **options)
    assert counted["powers"] > 0
    check.backward(dout, q, k, v, scale=1.0, **options)


@on_numpy
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_one_hot_keys(name, check, counted):
    """Whose mean is no exact number."""
    rng = np.random.default_rng(9)
    q = rng.integers(-12, 13, size=(1, LENGTH, 4)).astype(name)
    k = np.eye(4, dtype=name)[rng.integers(0, 4, LENGTH)][None]
    v, dout = rng.standard_normal((2, 1, LENGTH, 8)).astype(name)
    check.attention(q, k, v, scale=1.0)
    assert counted == {"powers": counted["powers"], "scores": 0}
    check.backward(dout, q, k, v, scale=1.0)


@on_numpy
def test_whole_numbers(check, counted):
    q, k, v = np.random.default_rng(10).integers(-1, 2, size=(3, 1, 2, LENGTH, 32)).astype(np.float32)
    assert both_ways(check, counted, q, k, v, scale=0.5, causal=True) == {"powers"}


@on_numpy
@pytest.mark.parametrize("size", [1e-28, 1e-34])
def test_small_values_behind_low_scores(size, backend, counted):
    """exp(-31) times such values would underflow; 6.6e-34 J s is Planck's constant."""
    q, k = line(1024, np.float32)
    v = np.full((1, 1024, 1), size, np.float32)
    out, lse = cuflash.attention(*map(backend.asarray, (q, k, v)), scale=1.0, causal=True, return_lse=True)
    np.testing.assert_allclose(backend.to_numpy(out), v, rtol=1e-5)
    assert counted["powers"] > 0
    assert counted["scores"] > 0
    dout = np.random.default_rng(11).standard_normal(v.shape).astype(np.float32)
    v = (np.random.default_rng(12).standard_normal(v.shape) * size * 1e4).astype(np.float32)
    operands = [backend.asarray(x) for x in (q, k, v)]
    out, lse = cuflash.attention(*operands, scale=1.0, causal=True, return_lse=True)
    grads = cuflash.attention_backward(backend.asarray(dout), *operands, out, lse, scale=1.0, causal=True)
    large = cuflash.reference.attention_backward(dout, q, k, v.astype(np.float64), scale=1.0, causal=True)
    for grad, expected in zip(grads[:3], large[:3], strict=True):
        error = np.abs(backend.to_numpy(grad) - expected).max() / np.abs(expected).max()
        assert error < 1e-4


@on_numpy
def test_equal_keys_weigh_exactly_the_same(counted, backend, dtype):
    """Whatever their score, as they do after the maximum is subtracted."""
    q, k = np.full((1, LENGTH, 4), 3, dtype), np.full((1, 64, 4), -2, dtype)
    v = np.random.default_rng(7).integers(-3, 4, size=(1, 64, 5)).astype(dtype) * dtype.type(64)
    out = backend.to_numpy(cuflash.attention(*map(backend.asarray, (q, k, v))))
    assert counted == {"powers": counted["powers"], "scores": 0}
    assert (out == v.astype(np.float64).mean(axis=1, keepdims=True)).all()
