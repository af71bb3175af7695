"""One key that carries nearly all the weight, as the first of a text often does: the small rest must not be lost."""

import numpy as np
import pytest

KEYS = 1000


def first_key_leads(name, lead=17.0):
    """Keys and values of which the first has the score `lead` and the value 1, all others 0."""
    k, v = np.zeros((1, KEYS, 1), name), np.zeros((1, KEYS, 1), name)
    k[0, 0], v[0, 0] = lead, 1
    return k, v


@pytest.mark.parametrize("lq", [1, 2, 3, 16, 150, 301])
@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_attention(lq, name, check):
    k, v = first_key_leads(name, lead=37.0 if name == "float64" else 17.0)
    _, lse = check.attention(np.ones((1, lq, 1), name), k, v, scale=1.0)
    assert np.ptp(lse) <= 2 * np.spacing(lse.max())  # equal queries, equal answers


@pytest.mark.parametrize("lq", [1, 3, 301])
def test_with_a_mask_and_a_bias(lq, check):
    k, v = first_key_leads("float32")
    mask = np.ones((1, lq, KEYS), bool)
    mask[..., 1::7] = False
    check.attention(np.ones((1, lq, 1), "float32"), k, v, scale=1.0, mask=mask, bias=np.zeros(KEYS, np.float32))


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_decode(heads, check, make_cache):
    k, v = first_key_leads("float32")
    cache = make_cache(k[None], v[None], [KEYS])
    check.decode(np.ones((1, heads, 1), "float32"), cache, scale=1.0)


def test_weights(check):
    k, _ = first_key_leads("float32")
    check.weights(np.ones((1, 2, 1), "float32"), k, scale=1.0)
