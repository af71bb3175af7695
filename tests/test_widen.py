"""float16 to float32 by integers: every number there is."""

import importlib

import numpy as np
import pytest

EVERY = np.arange(2**16, dtype=np.uint16).view(np.float16)


@pytest.fixture
def widen():
    return importlib.import_module("cuflash._numpy.widen").widen


@pytest.mark.parametrize("numbers", [EVERY, EVERY[np.isfinite(EVERY)]], ids=["all", "finite ones"])
@pytest.mark.parametrize(
    "view", [lambda x: x, lambda x: x[::-1], lambda x: x[1::3], lambda x: x[:600].reshape(20, 30).T]
)
def test_every_number(numbers, view, widen):
    given = view(numbers)
    with np.errstate(invalid="ignore"):  # NumPy's own conversion signals for some NaN
        expected = given.astype(np.float32)
        found = widen(given, np.empty(given.shape, np.float32))
    np.testing.assert_array_equal(found, expected)
    numbers_only = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[numbers_only]), np.signbit(expected[numbers_only]))


def test_other_dtypes_and_nothing(widen, dtype):
    for shape in ((3, 5), (0, 4)):
        given = np.ones(shape, dtype)
        for wide in (np.float32, np.float64):
            out = np.zeros(shape, wide)
            assert widen(given, out) is out
            assert (out == 1).all()
