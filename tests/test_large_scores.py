"""Scores that have a large number in common, and scales at both ends of the range: neither may cost a result anything.

Results over parts of the keys, each part's and each warp's, are merged by numbers that no such number is rounded into.
"""

import numpy as np
import pytest

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
SCALES = {"0 in float32": (1, 1e-46), "subnormal": (1, 1e-40), "huge": (3e-19, 2.5e38)}


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
