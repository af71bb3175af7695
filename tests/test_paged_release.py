"""PagedKVCache: what gives pages back (truncate, free, trim), and reserve, which takes them ahead."""

import numpy as np
import pytest
from backends import host
from paged import pages_of, state, stored

import cuflash


@pytest.mark.parametrize(
    ("seq", "length", "expected", "free"),
    [
        (0, 3, [3, 6, 0], 5), (np.int64(1), 0, [9, 0, 0], 5), ([1, 0], [1, 4], [4, 1, 0], 6),
        (np.array([0, 2]), 0, [0, 6, 0], 6), (None, 0, [0, 0, 0], 8), (None, [8, 5, 0], [8, 5, 0], 4),
        ([], 0, [9, 6, 0], 3),
    ],
)  # fmt: skip
def test_truncate(seq, length, expected, free, filled, numbers):
    cache = filled(8, 4, [9, 6, 0])
    assert cache.free_pages == 3
    cache.truncate(seq, length)
    assert host(cache.lengths)[:3].tolist() == expected
    assert cache.free_pages == free
    np.testing.assert_array_equal(stored(cache, 0), numbers(3, 9)[0][:, : expected[0]])
    cache.check()


@pytest.mark.parametrize(
    ("seq", "length"), [(1, 7), (0, -1), (3, 0), (-1, 0), (None, 7), ([0, 1], [9, 7]), ([0], [1, 2])]
)
def test_a_wrong_truncate_changes_nothing(seq, length, filled):
    cache = filled(8, 4, [9, 6, 0])
    before = state(cache)
    with pytest.raises(cuflash.ProblemError):
        cache.truncate(seq, length)
    assert state(cache) == before


def test_freed_pages_serve_others(tokens, filled):
    cache = filled(3, 4, [12])
    cache.free(0)
    assert (cache.seqs, cache.free_pages) == ((), 3)
    assert (host(cache.page_table) == -1).all() and not host(cache.lengths).any()
    seq = cache.add()
    new = tokens(1, 12, seed=1)
    cache.append(new, new)
    np.testing.assert_array_equal(stored(cache, seq), host(new)[0])
    cache.check()


@pytest.mark.parametrize("name", ["free", "fork"])
@pytest.mark.parametrize("seq", [1, -1, 7, 100])
def test_what_was_freed_is_no_sequence_any_more(seq, name, filled):
    cache = filled(8, 4, [5, 5, 5])
    cache.free(1)
    before = state(cache)
    with pytest.raises(cuflash.ProblemError, match=f"`seq` names sequence {seq}, which was never added or was freed"):
        getattr(cache, name)(seq)
    assert state(cache) == before


@pytest.mark.parametrize(
    ("first", "last", "gone"),
    [
        (0, 0, [0, 1, 2]), (0, 1, [0, 1, 2]), (0, 2, [0, 1, 2]), (0, 3, [0, 1]), (0, 6, [0, 1]), (0, 7, [0]),
        (1, 2, [1, 2]), (4, 2, [1, 2]), (5, 2, [2]), (8, 2, [2]), (9, 2, []), (4, 7, []), (0, 14, []), (0, 99, []),
        (99, 0, []), (99, 99, []),
    ],
)  # fmt: skip
def test_trim_frees_whole_pages_in_between(first, last, gone, tokens, filled, numbers):
    cache = filled(8, 4, [14])
    before = pages_of(cache, 0)
    assert cache.trim(0, first, last) is None
    assert pages_of(cache, 0) == [-1 if entry in gone else page for entry, page in enumerate(before)]
    assert cache.free_pages == 4 + len(gone)
    assert host(cache.lengths)[0] == 14
    cache.trim(0, first, last)
    assert cache.free_pages == 4 + len(gone)
    new = tokens(1, 3, seed=1)
    cache.append(new, new)
    kept = [i for i in range(17) if i // 4 not in gone]
    found = stored(cache, 0)[:, kept]
    np.testing.assert_array_equal(found, np.concatenate([numbers(1, 14)[0], host(new)[0]], axis=1)[:, kept])
    cache.check()


def test_trim_keeps_what_a_fork_shares(filled, numbers):
    cache = filled(8, 4, [14])
    child = cache.fork(0)
    cache.trim(0, 0, 2)
    assert cache.free_pages == 4
    np.testing.assert_array_equal(stored(cache, child), numbers(1, 14)[0])
    cache.free(child)
    assert cache.free_pages == 7
    grandchild = cache.fork(0)
    assert pages_of(cache, grandchild) == pages_of(cache, 0)
    cache.check()


def test_a_stream_without_end_needs_few_pages(backend, tokens, filled):
    """Positions go on; the window's pages are all that is held."""
    cache = filled(5, 4, [1])
    steps = backend.length(300)
    for step in range(steps):
        new = tokens(1, 1, seed=step)
        cache.append(new, new)
        cache.trim(0, 0, 9)
        assert 5 - cache.free_pages <= 4
    assert host(cache.lengths)[0] == steps + 1
    q = backend.asarray(np.ones((1, 2, 3), np.float32))
    assert np.isfinite(host(cuflash.decode(q, cache, window=(8, 0)))).all()


def test_truncate_into_what_was_trimmed(backend, tokens, filled, numbers):
    cache = filled(8, 4, [14])
    cache.trim(0, 4, 2)  # tokens 4 to 11
    for length in (5, 7, 9, 11):
        before = state(cache)
        with pytest.raises(cuflash.ProblemError, match=rf"`length` is {length} for row 0, but trim has freed the page"):
            cache.truncate(0, length)
        assert state(cache) == before
    cache.truncate(0, 12)
    new = tokens(1, 2, seed=1)
    cache.append(new, new)
    np.testing.assert_array_equal(stored(cache, 0)[:, 12:], host(new)[0])
    cache.truncate(0, 8)  # an end of a page, in the gap
    cache.append(new, new)
    np.testing.assert_array_equal(stored(cache, 0)[:, 8:], host(new)[0])
    cache.truncate(0, 3)
    np.testing.assert_array_equal(stored(cache, 0), numbers(1, 14)[0][:, :3])
    assert cache.free_pages == 7
    cuflash.decode(backend.asarray(np.ones((1, 2, 3), np.float32)), cache)  # nothing is missing any more
    cache.check()


def test_reserve(backend, tokens, filled):
    cache = filled(8, 4, [6, 3])
    cache.reserve(0, 2)
    assert cache.free_pages == 5  # it fits where it is
    cache.reserve(0, 11)
    assert cache.free_pages == 2
    cache.reserve(0, 0)
    assert cache.free_pages == 2
    child = cache.fork(0)
    # What is reserved is not shared, where the host knows how far the tokens go.
    assert len(pages_of(cache, child)) == (2 if backend.name == "numpy" else 5)
    cache.free(child)
    new = tokens(1, 11, seed=1)
    held = pages_of(cache, 0)
    cache.append(new, new, seqs=[0])
    assert pages_of(cache, 0) == held
    np.testing.assert_array_equal(stored(cache, 0)[:, 6:], host(new)[0])
    cache.truncate(0, 6)
    assert cache.free_pages == 5
