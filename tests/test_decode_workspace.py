"""How much memory decoding on the device of tests/stand_in.py takes for partial results, and that it suffices."""

import numpy as np
import pytest
from device_caches import KERNELS, Device

import cuflash


@pytest.fixture(params=KERNELS)
def device(request, monkeypatch):
    return Device(request.param, request.config, monkeypatch)


@pytest.mark.parametrize("splits", [41, 4000, 2**31, 2**40])
def test_there_are_no_more_parts_than_keys(splits, device):
    cache = device.cache(cuflash.KVCache, 2, 40)
    device.fill(cache, 33)
    q, _ = device.tokens(2, 1, seed=1)
    expected = cuflash.decode(q, cache, splits=40)
    room = cache._lengths.kept.numbers
    found = cuflash.decode(q, cache, splits=splits)
    np.testing.assert_array_equal(device.get(found), device.get(expected))
    assert cache._lengths.kept.numbers is room
