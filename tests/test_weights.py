"""attention_weights against the reference, to look at the softmax itself."""

import numpy as np
import pytest
from backends import on_devices

import cuflash
from cuflash import reference


@pytest.mark.parametrize("tiles", ["tuned", "small"])
def test_weights_with_each_option(option, dtype, tiles, check, backend, qkv, options_of):
    options = options_of([option, "sinks"], 2, 4, 45, 61, dtype)
    with backend.tiles(tiles):
        check.weights(*qkv(2, 4, 2, 45, 61, 16, dtype=dtype)[:2], **options)


@on_devices
@pytest.mark.parametrize("d", [24, 48, 64, 100])
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_large_scores_are_rounded_alike_for_the_sum_and_the_weights(name, d, check, qkv):
    q, k, _ = qkv(1, 1, 1, 20, 70, d, dtype=name)
    check.weights(10 * q, 10 * k)


def test_weights_of_two_axes_and_of_the_other_layout(check, qkv):
    q, k, _ = qkv(2, 4, 2, 5, 7, 8)
    weights = check.weights(q, k, causal=True)
    assert check.weights(q[0, 0], k[0, 0]).shape == (5, 7)
    np.testing.assert_array_equal(
        check.weights(*(x.swapaxes(1, 2) for x in (q, k)), causal=True, layout="blhd"), weights
    )
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)


def test_out_of_weights_is_filled_and_given_back(backend, qkv, same_bytes):
    q, k, _ = map(backend.asarray, qkv(2, 4, 2, 11, 13, 8))
    expected = cuflash.attention_weights(q, k, causal=True)
    out = backend.asarray(np.full(expected.shape, np.nan, np.float32))
    assert cuflash.attention_weights(q, k, causal=True, out=out) is out
    same_bytes(backend.to_numpy(out), backend.to_numpy(expected))


def test_weights_are_as_accurate_under_a_constant_bias(backend, normal):
    """exp(score - lse) with a rounded lse would be off by 4e-4 here; a row's own maximum and sum are not."""
    rng = np.random.default_rng(0)
    q, k = (rng.integers(-2, 3, size=(3, n, 4)).astype(np.float32) for n in (9, 40))
    bias = np.full((1, 1), 1e4, np.float32)
    given = cuflash.attention_weights(backend.asarray(q), backend.asarray(k), scale=1.0, bias=backend.asarray(bias))
    weights = backend.to_numpy(given)
    np.testing.assert_allclose(weights, reference.attention_weights(q, k, scale=1.0), rtol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
