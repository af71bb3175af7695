"""Captured graphs over caches on the device of tests/stand_in.py: what they hold, and what replays may do."""

import copy

import numpy as np
import pytest
from device_caches import DIM, HEADS, KERNELS, KINDS, Device

import cuflash
from cuflash import CacheFullError, ProblemError
from cuflash._device_cache import MirroredPages


@pytest.fixture(params=KERNELS)
def device(request, monkeypatch):
    return Device(request.param, request.config, monkeypatch)


@pytest.fixture(params=KINDS)
def either(request, device):
    """A cache of two sequences of either kind."""
    return getattr(device, request.param)()


@pytest.fixture
def step(device):
    """`step(cache, seqs=)`: one token of two sequences appended and decoded, in arrays that stay."""
    new, numbers = device.tokens(2, 1, seed=9)
    out = device.put(np.zeros((2, HEADS, 1, DIM), np.float32))

    def run(cache, seqs=None):
        cache.append(new, new, seqs=seqs)
        cuflash.decode(new, cache, out=out, seqs=seqs)

    run.new, run.numbers, run.out = new, numbers, out
    return run


def test_replays_append_and_decode(device, either, step):
    new, numbers = device.tokens(2, 3)
    either.append(new, new, lengths=[3, 1])
    if either.page_table is not None:
        for seq in (0, 1):
            either.reserve(seq, 5)
    step(either)  # kernels are loaded, and lists of rows and the workspace are there
    either.truncate(None, [3, 1])
    if either.page_table is not None:
        for seq in (0, 1):
            either.reserve(seq, 5)
    before = device.runtime.allocated
    graph = device.capture(lambda: step(either))
    assert device.runtime.allocated == before
    assert device.lengths(either) == [3, 1]
    for count in range(1, 6):
        device.replay(graph)
        assert device.lengths(either) == [3 + count, 1 + count]
    host = cuflash.KVCache(2, 8, HEADS, DIM, dtype=np.float32)
    host.append(numbers, numbers, lengths=[3, 1])
    for _ in range(5):
        host.append(step.numbers, step.numbers)
    np.testing.assert_allclose(device.get(step.out), cuflash.decode(step.numbers, host), rtol=1e-5, atol=1e-6)
    either.check()
    either.sync()
    either.truncate(None, [8, 5])  # the bounds are what the replays made of the lengths
    device.replay(graph)
    assert device.lengths(either)[0] == 8
    with pytest.raises(CacheFullError, match=r"1 token\(s\) of row 0 were not appended"):
        either.check()


def test_a_capture_moves_no_bound(device, step):
    flat = device.flat()
    device.fill(flat, 4)
    step(flat)
    for _ in range(9):
        device.capture(lambda: step(flat))
    flat.append(*device.tokens(2, 3, seed=1)[:1] * 2)
    assert device.lengths(flat) == [8, 8]


def test_a_graph_needs_what_a_first_call_makes(device, step):
    flat = device.flat()
    for call in (
        lambda: cuflash.decode(step.new, flat),
        lambda: cuflash.decode(step.new, flat, out=step.out, return_lse=True),
        lambda: cuflash.decode(step.new, flat, out=step.out, seqs=[1, 0]),
        lambda: flat.append(step.new, step.new, lengths=[1, 0]),
    ):
        with pytest.raises(ProblemError, match="allocated while a graph is captured"):
            device.capture(call)


def test_the_workspace_is_made_with_a_cache(device):
    """Long enough for 32 queries of each key/value head, of all rows."""
    cache = device.cache(cuflash.KVCache, 3, 5000)
    q = device.put(np.zeros((3, HEADS * 8, 4, DIM), np.float32))
    out = device.put(np.zeros((3, HEADS * 8, 4, DIM), np.float32))
    device.capture(lambda: cuflash.decode(q, cache, out=out))
    wide, wide_out = (device.put(np.zeros((3, HEADS * 32, 4, DIM), np.float32)) for _ in range(2))
    with pytest.raises(ProblemError, match="allocated while a graph is captured"):
        device.capture(lambda: cuflash.decode(wide, cache, out=wide_out))
    cuflash.decode(wide, cache)
    device.capture(lambda: cuflash.decode(wide, cache, out=wide_out))


def test_a_capture_that_failed_knows_nothing(device, step):
    cache = device.cache(cuflash.KVCache, 2, 4, grow=True)
    with pytest.raises(ProblemError, match="while a graph is captured"):
        device.capture(lambda: step(cache, seqs=[1, 0]))
    cache.append(*[device.tokens(2, 9)[0]] * 2)
    assert cache.capacity >= 9


def test_what_a_graph_knows_stays(device, step):
    """A larger workspace and other lists of rows do not free those of the graph, and no more than these are kept."""
    cache = device.cache(cuflash.KVCache, 80, 5000)
    step(cache, seqs=[3, 4])
    graph = device.capture(lambda: step(cache, seqs=[3, 4]))
    wide = device.put(np.zeros((80, HEADS * 40, 1, DIM), np.float32))
    kept = cache._lengths.kept
    numbers, rows = kept.numbers, kept._rows._last[np.array([3, 4]).tobytes()]
    cuflash.decode(wide, cache)
    held = list(kept._held)
    for row in range(80):
        cuflash.decode(wide[:1], cache, seqs=[row])
    assert kept.numbers is not numbers and np.array([3, 4]).tobytes() not in kept._rows._last
    assert any(array is numbers for array in held) and any(array is rows for array in held)
    assert len(kept._held) == len(held)
    device.replay(graph)
    assert device.lengths(cache, 5) == [0, 0, 0, 2, 2]


OPERATIONS = {
    "PagedKVCache.add": lambda cache: cache.add(),
    "PagedKVCache.fork": lambda cache: cache.fork(0),
    "PagedKVCache.free": lambda cache: cache.free(0),
    "PagedKVCache.truncate": lambda cache: cache.truncate(0, 0),
    "PagedKVCache.trim": lambda cache: cache.trim(0, 0, 0),
    "PagedKVCache.reserve": lambda cache: cache.reserve(0, 0),
    "PagedKVCache.sync": lambda cache: cache.sync(),
    "PagedKVCache.check": lambda cache: cache.check(),
}


@pytest.mark.parametrize(("name", "operation"), OPERATIONS.items(), ids=OPERATIONS)
def test_the_host_changes_nothing_in_a_capture(name, operation, device):
    paged = device.paged()
    device.fill(paged, 9)
    before = (paged.seqs, paged.free_pages, paged._pages.table.tobytes())
    device.log.clear()
    with pytest.raises(ProblemError, match=f"{name}: a graph is being captured, and would repeat this at each replay"):
        device.capture(lambda: operation(paged))
    assert (paged.seqs, paged.free_pages, paged._pages.table.tobytes()) == before
    assert device.log == []


def test_an_append_takes_no_page_in_a_capture(device, step):
    paged = device.paged()
    device.fill(paged, 4)
    free = paged.free_pages
    with pytest.raises(ProblemError, match=r"PagedKVCache.append: a graph is being captured"):
        device.capture(lambda: step(paged))
    assert paged.free_pages == free
    for seq in (0, 1):
        paged.reserve(seq, 1)
    step(paged)
    paged.free(paged.fork(0))
    paged.reserve(1, 1)
    with pytest.raises(ProblemError, match="no room of its own for these tokens"):
        device.capture(lambda: step(paged))  # its page is its own again, but no kernel knows
    paged.reserve(0, 1)
    device.replay(device.capture(lambda: step(paged)))
    assert device.lengths(paged) == [6, 6]
    paged.check()


def test_replays_after_a_fork_touch_no_shared_page(device, step):
    paged = device.paged()
    device.fill(paged, 5)
    for seq in (0, 1):
        paged.reserve(seq, 4)
    step(paged)
    graph = device.capture(lambda: step(paged))
    child = paged.fork(0)
    expected = device.stored(paged, child)
    device.replay(graph)
    assert device.lengths(paged) == [6, 7]
    np.testing.assert_array_equal(device.stored(paged, child), expected)
    with pytest.raises(CacheFullError, match=r"1 token\(s\) of row 0 were not appended, as it had no room of its own"):
        paged.check()
    paged.reserve(0, 2)
    device.replay(graph)
    assert device.lengths(paged) == [7, 8]
    np.testing.assert_array_equal(device.stored(paged, child), expected)
    np.testing.assert_array_equal(device.stored(paged, 0)[:, :6], expected)
    np.testing.assert_array_equal(device.stored(paged, 0)[:, 6], step.numbers[0, :, 0])
    paged.sync()
    paged.check()


def test_an_append_of_nothing_gives_no_room(device, step):
    paged = device.paged()
    device.fill(paged, 5)
    for seq in (0, 1):
        paged.reserve(seq, 1)
    graph = device.capture(lambda: step(paged))
    child = paged.fork(0)
    paged.append(step.new[:1], step.new[:1], seqs=[0], lengths=0)
    device.replay(graph)
    assert device.lengths(paged, 3) == [5, 6, 5]
    paged.append(step.new[:1], step.new[:1], seqs=[child])
    np.testing.assert_array_equal(device.stored(paged, child)[:, 5], step.numbers[0, :, 0])


def test_a_length_lowered_by_hand_leads_into_no_shared_page(device):
    paged = device.paged()
    new, _ = device.tokens(2, 11)
    paged.append(new, new)
    child = paged.fork(0)
    expected = device.stored(paged, child)
    device.get(paged.lengths)[0] = 2
    paged.append(new[:, :, :3], new[:, :, :3], seqs=[0, 1])
    assert device.lengths(paged) == [2, 14]
    np.testing.assert_array_equal(device.stored(paged, child), expected)
    paged.sync()
    paged.append(new[:1, :, :3], new[:1, :, :3], seqs=[0])
    assert device.lengths(paged) == [5, 14]
    np.testing.assert_array_equal(device.stored(paged, child), expected)
    with pytest.raises(CacheFullError, match=r"3 token\(s\) of row 0"):
        paged.check()


def test_a_fork_has_what_the_host_does_not_know_of(device, step):
    """Replays made the sequence longer than its bound, beyond a page."""
    paged = device.paged()
    device.fill(paged, 3)
    for seq in (0, 1):
        paged.reserve(seq, 5)
    step(paged)
    graph = device.capture(lambda: step(paged))
    for _ in range(4):
        device.replay(graph)
    child = paged.fork(0)
    assert device.lengths(paged, 3) == [8, 8, 8]
    expected = device.stored(paged, 0)
    np.testing.assert_array_equal(device.stored(paged, child), expected)
    paged.reserve(0, 8)
    device.replay(graph)
    np.testing.assert_array_equal(device.stored(paged, 0)[:, :8], expected)
    np.testing.assert_array_equal(device.stored(paged, child), expected)


def test_a_graph_sees_pages_that_are_reserved_later(device, step):
    """Its launch is made for all that the table can list: no part of a longer sequence is lost."""
    cache = device.cache(cuflash.PagedKVCache, 40, 64)
    cache.add(), cache.add()
    device.fill(cache, 60)
    graph = device.capture(lambda: cuflash.decode(step.new, cache, out=step.out))
    cache.reserve(0, 1100)
    device.get(cache.lengths)[0] = 1100
    device.get(cache.k)[...] = device.get(cache.v)[...] = 0
    device.get(cache.v)[device.get(cache.page_table)[0, 17]] = 1  # tokens 1088 to 1151
    device.replay(graph)
    np.testing.assert_allclose(device.get(step.out)[0, :, 0], 12 / 1100, rtol=1e-5)


def test_a_table_grows_until_a_graph_knows_it(device, step):
    cache = device.cache(cuflash.PagedKVCache, 9000, 16)
    cache.add(), cache.add()
    device.fill(cache, 5)
    first = cache.page_table
    assert first.shape == (MirroredPages.FIRST_ROWS, MirroredPages.FIRST_TOKENS // 16)
    cache.reserve(0, MirroredPages.FIRST_TOKENS)
    table, lengths = cache.page_table, cache.lengths
    assert table.shape == (first.shape[0], 2 * first.shape[1])
    np.testing.assert_array_equal(device.get(table)[:2], mirror_of(cache)[:2])
    free = copy.copy(cache)
    device.capture(lambda: cuflash.decode(step.new, cache, out=step.out))
    before = cache.free_pages
    with pytest.raises(CacheFullError, match="PagedKVCache: needs larger arrays than a captured graph knows of"):
        cache.reserve(1, 2 * MirroredPages.FIRST_TOKENS)
    assert cache.free_pages == before
    while len(cache.seqs) < MirroredPages.FIRST_ROWS:
        cache.add()
    with pytest.raises(CacheFullError, match="PagedKVCache: needs larger arrays"):
        cache.add()
    with pytest.raises(CacheFullError, match="PagedKVCache: needs larger arrays"):
        cache.fork(0)
    assert (len(cache.seqs), cache.page_table, cache.lengths) == (MirroredPages.FIRST_ROWS, table, lengths)
    for _ in range(MirroredPages.FIRST_ROWS):
        last = free.add()
    assert last >= MirroredPages.FIRST_ROWS and free.lengths.shape == free.page_table.shape[:1] == (2 * first.shape[0],)
    free.append(*device.tokens(1, 5)[:1] * 2, seqs=[last])
    assert device.get(free.lengths)[[0, 1, last]].tolist() == [5, 5, 5]
    free.check()
    device.get(free.lengths)[last] = 15
    free.append(*device.tokens(1, 5)[:1] * 2, seqs=[last])
    with pytest.raises(CacheFullError, match=rf"4 token\(s\) of row {last}"):
        free.check()


def mirror_of(cache):
    """What the page table on the device should be."""
    mirror = np.full(cache.page_table.shape, -1, np.int32)
    table = cache._pages.table
    mirror[: len(table), : table.shape[1]] = table[:, : mirror.shape[1]]
    return mirror
