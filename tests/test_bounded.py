"""Scores known to lie close together skip the search for the maximum: when that is so, and that it does not show."""

import importlib

import numpy as np
import pytest

import cuflash
from cuflash import _device, _plan, _tuning

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
def counted(backend, monkeypatch):
    """How many tiles took which way: {"powers": without a maximum, "scores": with one}."""
    if backend.name != "numpy":
        pytest.skip("about the NumPy backend's own tiles")
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


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (100, 7)}, {"kv_lengths": np.array([200, 3])}])
def test_normal_numbers_need_no_maximum(options, qkv, check, counted):
    assert both_ways(check, counted, *qkv, **options) == {"powers"}


@pytest.mark.parametrize("option", ["bias", "alibi", "softcap"])
def test_what_else_enters_the_scores_needs_one(option, options_of, check, counted, qkv):
    options = options_of([option], 2, 2, LENGTH, LENGTH, qkv[0].dtype)
    assert both_ways(check, counted, *qkv, **options) == {"scores"}


def test_large_scores_need_one(check, counted, qkv):
    q, k, v = qkv
    assert both_ways(check, counted, q * q.dtype.type(8), k, v) == {"scores"}


def test_what_all_keys_share_does_not_count(check, counted):
    """A constant of 40 standard deviations in every key, as trained models have in some features."""
    q, k, v = np.random.default_rng(1).standard_normal((3, 1, 2, LENGTH, 32), dtype=np.float32)
    k[..., 3] += 40
    assert both_ways(check, counted, q, k, v, causal=True) == {"powers"}


def test_heads_decide_for_themselves(check, counted):
    q, k, v = np.random.default_rng(2).standard_normal((3, 1, 2, LENGTH, 32), dtype=np.float32)
    k[:, 1] *= 30
    assert both_ways(check, counted, q, k, v) == {"powers", "scores"}


def test_one_long_hidden_key_does_no_harm(check, counted):
    """Finite keys that causal hides may be as large as they like."""
    q, k, v = np.random.default_rng(3).standard_normal((3, 1, 1, LENGTH, 32), dtype=np.float32)
    k[..., -1, :] = 1e30
    assert both_ways(check, counted, q[..., :-1, :], k, v, causal=True, q_offset=0) == {"scores"}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_key_that_is_no_number_spoils_its_rows_and_no_others(bad, counted, backend):
    q, k, v = np.random.default_rng(4).standard_normal((3, 1, LENGTH, 32), dtype=np.float32)
    k[:, -1, 0] = bad
    with np.errstate(invalid="ignore"):
        out = backend.to_numpy(cuflash.attention(*map(backend.asarray, (q, k, v))))
    assert counted["powers"] == 0
    assert np.isnan(out).all() == np.isnan(bad) or np.isnan(out).any()


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


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e30])
def test_gradients_of_any_size(size, check):
    """The lse goes into dout, unless that would bring it near the ends of its range."""
    rng = np.random.default_rng(6)
    q, k, v = rng.standard_normal((3, 1, 1, LENGTH, 16), dtype=np.float32)
    q *= 2
    dout = (rng.standard_normal(v.shape) * size).astype(np.float32)
    grads = check.backward(dout, q, k, v)
    assert np.isfinite(grads.dq).all()
    assert grads.dv.any()


def test_without_a_fast_exp2(check, counted, qkv, monkeypatch):
    """As on CPUs without AVX-512, or with NumPy 2.0."""
    monkeypatch.setattr(_device, "_fast_exp2", lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr(np, "exp2", None)
        assert both_ways(check, counted, *qkv, causal=True) == {"powers"}


def test_equal_keys_weigh_exactly_the_same(counted, backend, dtype):
    """Whatever their score, as they do after the maximum is subtracted."""
    q, k = np.full((1, LENGTH, 4), 3, dtype), np.full((1, 64, 4), -2, dtype)
    v = np.random.default_rng(7).integers(-3, 4, size=(1, 64, 5)).astype(dtype) * dtype.type(64)
    out = backend.to_numpy(cuflash.attention(*map(backend.asarray, (q, k, v))))
    assert counted == {"powers": counted["powers"], "scores": 0}
    assert (out == v.astype(np.float64).mean(axis=1, keepdims=True)).all()
