"""Large scores, such as have a large number in common, and scales at both ends of the range: neither may cost a result
anything.

Results over parts of the keys, each part's and each warp's, are merged by numbers that no such number is rounded into.
"""

import numpy as np
import pytest

import cuflash
from cuflash import reference

KEYS = 301  # several parts, the last of them short
CONSTANTS = [("float16", -6e4), ("bfloat16", -1e9), ("float32", -1e3), ("float32", -1e9), ("float64", -1e12)]


@pytest.fixture
def constant(qkv):
    """`constant(name, number, hq, lq)`: random keys and values, and a bias that makes each score that number."""
    pytest.importorskip("ml_dtypes")

    def make(name, number, hq, lq):
        q, k, v = qkv(1, hq, 1, lq, KEYS, 24, dtype=name)
        return np.zeros_like(q), k, v, np.full((1, KEYS), number, "float64" if name == "float64" else "float32")

    return make


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_large_scores_do_not_overflow(scale, dtype, backend, qkv):
    q, k, v = qkv(1, 2, 1, 33, 70, 8, dtype=dtype)
    with backend.tiles("small"):
        out, lse = cuflash.attention(*map(backend.asarray, (q, k, v)), scale=scale, causal=True, return_lse=True)
    out, lse = backend.to_numpy(out), backend.to_numpy(lse)
    exact, exact_lse = reference.attention(q, k, v, scale=scale, causal=True, return_lse=True, dtype=np.longdouble)
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-5)
    error = np.abs(out.astype(np.float64) - exact).max()  # scores of 1e4 are rounded by 1e-3 in float32
    assert error < (1e-9 if dtype == np.float64 else 2e-2)


def test_scores_far_below_zero_count_as_any_other(check, qkv):
    q, k, v = qkv(1, 1, 1, 9, 21, 4, dtype="float64")
    bias = np.full((9, 21), -1e5)
    out, lse = check.attention(q, k, v, bias=bias, causal=True)
    plain, plain_lse = check.attention(q, k, v, causal=True)
    np.testing.assert_allclose(out, plain, atol=1e-9)
    np.testing.assert_allclose(lse + 1e5, plain_lse, atol=1e-9)


@pytest.mark.parametrize("lq", [2, 9], ids=["few queries", "tiles of queries"])
@pytest.mark.parametrize(("name", "number"), CONSTANTS)
def test_attention(name, number, lq, check, backend, constant):
    q, k, v, bias = constant(name, number, 2, lq)
    with backend.tiles("small"):
        check.attention(q, k, v, bias=bias)


@pytest.mark.parametrize("heads", [1, 40], ids=["parts of 256", "one part"])
@pytest.mark.parametrize(("name", "number"), CONSTANTS)
def test_decode(name, number, heads, check, make_cache, constant):
    q, k, v, bias = constant(name, number, heads, 1)
    check.decode(q, make_cache(k, v, [KEYS]), bias=bias)


@pytest.mark.parametrize("sink", [-1e9, -1e9 - 64, 0])
def test_sinks(sink, check, backend, make_cache, constant):
    q, k, v, bias = constant("float32", -1e9, 2, 9)
    sinks = np.full(2, sink, np.float32)
    with backend.tiles("small"):
        check.attention(q, k, v, bias=bias, sinks=sinks)
        check.decode(q[:, :, :1], make_cache(k, v, [KEYS]), bias=bias, sinks=sinks)


# Scales so small that a float32 has no digits for them, or is 0, and so large that 1.5 times as much is infinite.
SCALES = {"0 in float32": (1, 1e-46), "subnormal": (1, 1e-40), "huge": (2e-19, 2.5e38)}


@pytest.mark.parametrize("size", SCALES)
@pytest.mark.parametrize("lq", [1, 9], ids=["few queries", "tiles of queries"])
@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_scales_at_the_ends_of_the_range(name, lq, size, check, make_cache, qkv):
    pytest.importorskip("ml_dtypes")
    number, scale = SCALES[size]
    q, k, v = qkv(1, 2, 1, lq, 41, 8)
    q, k, v = ((x * factor).astype(name) for x, factor in ((q, number), (k, number), (v, 1)))
    check.attention(q, k, v, causal=True, scale=scale)
    check.decode(q, make_cache(k, v, [41]), scale=scale)


@pytest.mark.parametrize("lq", [1, 9], ids=["few queries", "tiles of queries"])
def test_products_that_are_too_far_apart_to_be_subtracted(lq, check, make_cache):
    """Scores of 2.4 and -2.4 from products of 2.4e38 and -2.4e38."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    q, k, v = np.full((1, 2, lq, 1), 1e19), np.full((1, 1, 200, 1), -2.4e19), np.ones((1, 1, 200, 1))
    k[:, :, 0], v[:, :, 0] = 2.4e19, -1
    q, k, v = (x.astype(bfloat16) for x in (q, k, v))
    check.attention(q, k, v, scale=1e-38)
    check.decode(q, make_cache(k, v, [200]), causal=False, scale=1e-38)


@pytest.mark.parametrize("d", [48, 64])
def test_gradients_round_large_scores_as_the_forward_pass_has(d, check, qkv, normal):
    """The bias's, which a kernel of its own computes, among them."""
    q, k, v = qkv(1, 2, 1, 40, 90, d)
    bias = np.zeros((2, 40, 90), np.float32)
    check.backward(normal(1, 2, 40, d, dtype="float32"), 3 * q, 3 * k, v, bias=bias)


@pytest.mark.parametrize("d", [48, 64])
@pytest.mark.parametrize("lq", [1, 9], ids=["few queries", "tiles of queries"])
def test_a_key_with_all_the_weight_gets_all_the_gradient(lq, d, backend, qkv, normal):
    """Scores of some 1000, whose rounding in another order of summing is 1e-4."""
    q, k, v = qkv(1, 6, 6, lq, 90, d)
    dout = normal(1, 6, lq, d, dtype="float32")
    q, k = 30 * q, 30 * k
    weights = reference.attention_weights(q, k)
    whole = weights.max(axis=-1, keepdims=True) > 1 - 1e-12
    dout = np.where(whole, dout, 0)
    _, vjp = cuflash.attention_vjp(*map(backend.asarray, (q, k, v)))
    dv = backend.to_numpy(vjp(backend.asarray(dout)).dv)
    assert whole.any()
    np.testing.assert_allclose(dv, weights.swapaxes(-1, -2) @ dout, atol=1e-6)
