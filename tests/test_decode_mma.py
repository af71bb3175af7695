"""decode_mma beyond what the contract's tests ask of every kernel: how it reads codes, and what their scales may be."""

import numpy as np
import pytest
from backends import host, on_emulator
from emulator.library import counters

import cuflash

pytestmark = on_emulator
STORED = ("int8", "float8_e4m3fn")


@pytest.fixture(autouse=True)
def kernel(backend):
    """Each test is about this one."""
    pytest.importorskip("ml_dtypes")
    yield
    assert backend.runtime.launches[-1] == "decode_mma"


@pytest.mark.parametrize(
    ("stored", "d", "dv"), [("float16", 64, 48), ("int8", 64, 48), ("int8", 128, 112), ("int8", 256, 240)]
)
def test_rows_are_copied_in_vectors_and_read_without_conflicts(stored, d, dv, check, backend, make_cache, qkv):
    q, k, v = qkv(1, 2, 1, 1, 40, d, dv, dtype="float16")
    with backend.tiles("small"):
        check.decode(q, make_cache(k, v, [40], dtype=stored), splits=1)
    assert counters().copies >= 40 * (d + dv) * np.dtype(stored).itemsize // 16
    assert counters().matrix_loads > 0
    assert counters().bank_conflicts == 0


SIZES = {
    "tiny": lambda rng, shape: 1e-6,
    "large": lambda rng, shape: 3e4,
    "of many sizes": lambda rng, shape: 10.0 ** rng.uniform(-4, 4, shape),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("stored", STORED)
def test_values_of_any_size(stored, name, size, check, backend, make_cache, qkv):
    """Each weight is multiplied by a scale: neither may the products leave their range, nor lose digits."""
    q, k, v = qkv(2, 4, 2, 1, 90, 16, 32)
    v = np.sin(v) * SIZES[size](np.random.default_rng(0), (*v.shape[:3], 1))
    with backend.tiles("small"):
        check.decode(q.astype(name), make_cache(k, v.astype(np.float32), [90, 35], dtype=stored))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("scales", ["k_scale", "v_scale"])
def test_a_scale_that_is_nan_is_seen_by_its_head_alone(scales, name, backend, make_cache, qkv):
    q, k, v = qkv(1, 4, 2, 1, 40, 16, 32)
    cache = make_cache(k, v, [40], dtype="int8")
    host(getattr(cache, scales))[0, 35, 1] = np.nan
    with backend.tiles("small"):
        out = backend.to_numpy(cuflash.decode(backend.asarray(q.astype(name)), cache)).astype(np.float32)
    assert np.isfinite(out[:, :2]).all()
    assert np.isnan(out[:, 2:]).all()
