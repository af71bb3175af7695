"""How much memory decoding on the device of tests/stand_in.py takes for partial results, and that it suffices."""

import copy
import itertools

import numpy as np
import pytest
from backends import on_devices
from device_caches import DIM, HEADS, KERNELS, Device

import cuflash
from cuflash import CacheFullError, _kernels


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


@pytest.fixture
def step(device):
    """`step(cache, seqs)`: a query for each head of 32 sequences, into an array that stays."""
    q, out = (device.put(np.zeros((32, HEADS, DIM), np.float32)) for _ in range(2))

    def run(cache, seqs):
        cuflash.decode(q, cache, out=out, seqs=seqs)

    run.out = out
    return run


def room_of(cache):
    return cache._lengths.kept.numbers.size


def launched(graph):
    """The struct of the last launch of a graph."""
    spec, *_, params = graph[-1]
    return _kernels.KERNELS[spec.kernel].params.unpack(params)


def test_a_workspace_is_for_the_tokens_that_there_are(device, step):
    """Not for what the page table could list: that would be 32 sequences of 128 parts."""
    cache = device.cache(cuflash.PagedKVCache, 2048, 16)
    seqs = [cache.add() for _ in range(32)]
    cache.append(*[device.tokens(32, 5)[0]] * 2, seqs=seqs)
    before = device.runtime.allocated
    step(cache, seqs)
    assert cache.page_table.shape[1] == 2048
    assert room_of(cache) <= device.get(cache.v).size // DIM * (DIM + 2) // 32
    assert device.runtime.allocated == before
    cache.reserve(0, 10000)
    step(cache, seqs)
    assert room_of(cache) >= 32 * HEADS * 40 * (DIM + 2)
    assert device.runtime.allocated == before + 1


def test_a_workspace_at_least_doubles(device):
    """Those before it stay, as work on other streams may still write there."""
    cache = device.cache(cuflash.PagedKVCache, 1024, 16)
    for _ in range(64):
        cache.add()
    q, sizes, kept = device.put(np.zeros((64, HEADS, DIM), np.float32)), [room_of(cache)], cache._lengths.kept
    for tokens in range(256, 15000, 512):
        cache.reserve(0, tokens)
        cuflash.decode(q, cache)
        if room_of(cache) != sizes[-1]:
            sizes.append(room_of(cache))
        assert room_of(cache) >= 64 * HEADS * -(-tokens // 256) * (DIM + 2) or tokens <= 256
    assert len(sizes) > 2
    assert all(size >= 2 * before for before, size in itertools.pairwise(sizes))
    assert [array.size for array in kept._held if array.dtype == np.float32] == sizes[:-1]


def test_a_graph_looks_as_far_as_there_is_room(device, step):
    cache = device.cache(cuflash.PagedKVCache, 2048, 16)
    seqs = [cache.add() for _ in range(32)]
    cache.append(*[device.tokens(32, 5)[0]] * 2, seqs=seqs)
    step(cache, seqs)
    free = copy.deepcopy(cache)
    graph = device.capture(lambda: step(cache, seqs))
    params = launched(graph)
    parts, limit = int(params["parts"]), int(params["limit"])
    assert limit == 256 * parts < 2048 * 16
    assert 32 * HEADS * parts * (DIM + 2) <= room_of(cache) < 32 * HEADS * (parts + 1) * (DIM + 2)
    cache.reserve(3, limit - 5)
    device.get(cache.lengths)[3] = limit
    device.get(cache.k)[...], device.get(cache.v)[...] = 0, 0
    device.get(cache.v)[device.get(cache.page_table)[3, limit // 16 - 1]] = 1
    device.replay(graph)
    np.testing.assert_allclose(device.get(step.out)[3], 16 / limit, rtol=1e-5)
    pages = cache.free_pages
    for seq in (3, 4):
        with pytest.raises(CacheFullError, match="PagedKVCache: needs larger arrays than a captured graph knows of"):
            cache.reserve(seq, limit - 4)
    assert cache.free_pages == pages
    copy.copy(cache).reserve(3, limit - 4)
    free.reserve(3, 2 * limit)
    step(free, seqs)
    assert launched(device.capture(lambda: step(free, seqs)))["limit"] >= 2 * limit


@pytest.mark.parametrize(("options", "most"), [({"window": (100, 0)}, 32768), ({"splits": 2}, 32768), ({}, 512)])
def test_a_graph_looks_at_all_where_there_is_room(options, most, device, step):
    """As there is for few parts, or for as many as a bias is long."""
    cache = device.cache(cuflash.PagedKVCache, 2048, 16)
    seqs = [cache.add() for _ in range(32)]
    cache.append(*[device.tokens(32, 5)[0]] * 2, seqs=seqs)
    q, bias = device.tokens(32, 1)[0], None if options else device.put(np.zeros((1, 512), np.float32))
    cuflash.decode(q, cache, bias=bias, **options)
    out = device.put(np.zeros((32, HEADS, 1, DIM), np.float32))
    graph = device.capture(lambda: cuflash.decode(q, cache, out=out, bias=bias, **options))
    assert launched(graph)["limit"] == most
    cache.reserve(3, 20000)


@on_devices
def test_explain_says_how_much(backend, normal):
    """Now: that of a longer sequence is larger."""
    cache = cuflash.PagedKVCache(512, 16, HEADS, DIM, dtype=np.float32, like=backend.asarray(normal(1)))
    seqs = [cache.add(), cache.add()]
    q = backend.asarray(normal(2, HEADS, DIM))
    cache.reserve(seqs[0], 1000)
    said = cuflash.explain(cuflash.decode, q, cache)
    assert f"up to 4 part(s) of a sequence now, for which a workspace of {2 * HEADS * 4 * (DIM + 2) * 4} bytes" in said
    assert "1 part(s) of a sequence now, for which a workspace of 0 bytes" in cuflash.explain(
        cuflash.decode, q, cache, window=(100, 0)
    )
