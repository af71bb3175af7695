"""What the tests of prepared calls share; `recorder` is that of conftest.py."""

import numpy as np
import pytest
from recorder import on_device

import cuflash
from cuflash import _dispatch
from cuflash._cuda.prepared import Prepared


def calls_of(recorder):
    """The calls of the recorder's backend by their keys."""
    return _dispatch._backends[recorder.home].calls._known


def known(recorder, *caches):
    """How many calls are prepared."""
    kept = [calls_of(recorder), *(cache._calls for cache in caches)]
    return sum(isinstance(call, Prepared) for calls in kept for call in calls.values())


def cache_of(kind, dtype=np.float16):
    """Two sequences of five tokens, and how to append one more to each."""
    like = on_device(np.zeros(1, np.float16))
    if kind == "flat":
        cache = cuflash.KVCache(2, 64, 2, 8, dtype=dtype, like=like)
    else:
        cache = cuflash.PagedKVCache(24, 4, 2, 8, dtype=dtype, like=like)
        cache.add(), cache.add()
    cache.append(*(on_device(np.zeros((2, 2, 5, 8), np.float16)) for _ in "kv"))
    return cache


def refuse(recorder, error, match, call):
    """However often."""
    for _ in range(4):
        recorder.launches.clear()
        with pytest.raises(error, match=match):
            call()
        assert not recorder.launches


def repeat(call):
    """Until it is found."""
    for _ in range(3):
        call()
