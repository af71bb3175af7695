"""PagedKVCache operation by operation: where tokens go, which pages are taken and shared, and errors.

`test_paged_release` is about what gives pages back; `test_paged_machine` puts the operations together at random.
"""

import copy
import pickle

import numpy as np
import pytest
from backends import host, on_devices, on_numpy
from paged import pages_of, state, stored

import cuflash


def test_a_new_cache(dtype, backend):
    cache = cuflash.PagedKVCache(6, 4, 2, 3, value_dim=5, dtype=dtype, xp=backend.xp)
    assert (cache.pages, cache.page_size, cache.kv_heads, cache.head_dim, cache.value_dim) == (6, 4, 2, 3, 5)
    assert cache.k.shape == (6, 4, 2, 3)
    assert cache.v.shape == (6, 4, 2, 5)
    assert cache.k.dtype == cache.v.dtype == cache.dtype == dtype
    assert cache.k_scale is None and cache.v_scale is None
    assert cache.nbytes == 6 * 4 * 2 * 8 * dtype.itemsize
    assert cache.lengths.dtype == cache.page_table.dtype == np.int32
    assert (cache.seqs, cache.free_pages) == ((), 6)
    assert (host(cache.page_table) == -1).all()
    assert cache.check() is None and cache.sync() is None


def test_like_gives_the_dtype(backend, normal):
    like = backend.asarray(normal(2, dtype="float16"))
    assert cuflash.PagedKVCache(1, 2, 1, 4, like=like).dtype == np.float16


def test_a_quantised_cache_counts_its_scales(backend):
    cache = cuflash.PagedKVCache(6, 4, 2, 3, value_dim=5, dtype="int8", xp=backend.xp)
    assert cache.k_scale.shape == cache.v_scale.shape == (6, 4, 2)
    assert cache.nbytes == 6 * 4 * 2 * (8 + 2 * 4)


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
@pytest.mark.parametrize("page_size", [1, 3, 4, 100])
def test_append_puts_tokens_behind_those_there(page_size, layout, dtype, backend, normal):
    cache = cuflash.PagedKVCache(60, page_size, 3, 4, value_dim=5, dtype=dtype, xp=backend.xp)
    seqs = [cache.add(), cache.add()]
    k, v = normal(2, 3, 13, 4, dtype=dtype), normal(2, 3, 13, 5, dtype=dtype, seed=1)
    for part in (slice(0, 3), slice(3, 3), slice(3, 4), slice(4, 13)):
        new = [x[:, :, part] if layout == "bhld" else x[:, :, part].swapaxes(1, 2) for x in (k, v)]
        assert cache.append(*map(backend.asarray, new), layout=layout) is None
        assert host(cache.lengths)[seqs].tolist() == [part.stop] * 2
        assert cache.free_pages == 60 - 2 * -(-part.stop // page_size)
    for row, seq in enumerate(seqs):
        np.testing.assert_array_equal(stored(cache, seq), k[row])
        np.testing.assert_array_equal(stored(cache, seq, "v"), v[row])


def test_append_of_views(view, check, normal):
    cache = cuflash.PagedKVCache(8, 3, 3, 4, dtype=np.float32, xp=check.backend.xp)
    seqs = [cache.add(), cache.add()]
    k, v = normal(2, 3, 8, 4), normal(2, 3, 8, 4, seed=1)
    cache.append(*check.move((k, v), view))
    for row, seq in enumerate(seqs):
        np.testing.assert_array_equal(stored(cache, seq), k[row])
        np.testing.assert_array_equal(stored(cache, seq, "v"), v[row])


@pytest.mark.parametrize("lengths", [[2, 0, 3], np.array([2, 0, 3], np.uint8), 2])
def test_append_of_some_tokens_to_some_sequences(lengths, backend, tokens, filled, numbers):
    cache = filled(12, 4, [3, 4, 5, 1])
    first = numbers(4, 5)
    new = tokens(3, 3, seed=1)
    cache.append(new, new, seqs=[3, 0, 1], lengths=backend.give(lengths))
    for row, (seq, count) in enumerate(zip([3, 0, 1], np.broadcast_to(lengths, 3).tolist(), strict=True)):
        before = [1, 3, 4][row]
        expected = np.concatenate([first[seq, :, :before], host(new)[row, :, :count]], axis=1)
        np.testing.assert_array_equal(stored(cache, seq), expected)
    np.testing.assert_array_equal(stored(cache, 2), first[2])
    assert host(cache.k).any(axis=(2, 3)).sum() == host(cache.lengths).sum()  # and no token more


def test_all_means_the_live_ones_in_order_of_add(tokens, filled):
    cache = filled(8, 4, [1, 2, 3])
    cache.free(0)
    late = [cache.add() for _ in range(6)]
    assert 0 in late  # a number comes back, last in order
    assert cache.seqs == (1, 2, *late)
    new = tokens(8, 1, seed=1)
    cache.append(new, new)
    for row, seq in enumerate(cache.seqs):
        np.testing.assert_array_equal(stored(cache, seq)[:, -1], host(new)[row, :, 0])
    assert host(cache.lengths)[list(cache.seqs)].tolist() == [3, 4] + [1] * 6


def test_the_table_grows_with_sequences_and_tokens(tokens, filled, numbers):
    cache = filled(300, 1, [100])
    for _ in range(40):
        cache.add()
    new = tokens(41, 2, seed=1)
    cache.append(new, new)
    assert len(set(cache.seqs)) == 41
    assert len(cache.lengths) == len(cache.page_table) >= 41
    assert host(cache.lengths)[list(cache.seqs)].tolist() == [102] + [2] * 40
    np.testing.assert_array_equal(stored(cache, 0)[:, :100], numbers(1, 100)[0])
    np.testing.assert_array_equal(stored(cache, cache.seqs[40]), host(new)[40])
    cache.check()


# Too few pages.


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    ("count", "options"),
    [
        pytest.param(2, {"seqs": [0]}, id="a copy of the last page, and another page"),
        pytest.param(5, {}, id="the first sequence fits, all do not"),
        pytest.param(20, {"lengths": [0, 0, 14]}, id="the last one only"),
    ],
)
def test_a_full_cache_stays_as_it_was(count, options, dtype, tokens, filled):
    cache = filled(6, 4, [7, 5, 1], dtype=dtype)
    child = cache.fork(0)
    assert cache.free_pages == 1
    options = {"seqs": [0, 1, 2], **options}
    new = tokens(len(options["seqs"]), count, seed=1)
    before = state(cache)
    with pytest.raises(cuflash.CacheFullError, match="takes more pages than the 1 that are free of the cache's 6"):
        cache.append(new, new, **options)
    assert state(cache) == before
    with pytest.raises(cuflash.CacheFullError, match=r"PagedKVCache\.reserve: takes more pages than the 1"):
        cache.reserve(child, 2)  # a copy of the last page, and a page
    assert state(cache) == before
    cache.reserve(child, 1)
    assert cache.free_pages == 0


def test_an_unthinkable_reserve_fails_at_once(filled):
    cache = filled(8, 4)
    cache.add()
    for tokens in (2**31 - 1, 2**40, 2**100):
        with pytest.raises(cuflash.CacheFullError):
            cache.reserve(0, tokens)
    cache.trim(0, 2**100, 2**100)
    assert cache.page_table.nbytes < 1e4


def test_the_last_page_can_be_filled(tokens, filled, numbers):
    cache = filled(2, 4, [4])
    cache.append(tokens(1, 4, seed=1), tokens(1, 4, seed=1))
    assert cache.free_pages == 0
    cache.truncate(0, 5)
    cache.append(tokens(1, 3, seed=2), tokens(1, 3, seed=2))
    np.testing.assert_array_equal(stored(cache, 0)[:, 5:], numbers(1, 3, seed=2)[0])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"seqs": [0, 0, 1]}, cuflash.ProblemError),
        ({"seqs": [0, 1, 3]}, cuflash.ProblemError),
        ({"seqs": [0, 1, -1]}, cuflash.ProblemError),
        ({"seqs": [0, 1]}, cuflash.ProblemError),
        ({"seqs": [0.0, 1.0, 2.0]}, TypeError),
        ({"lengths": [1, 1, 3]}, cuflash.ProblemError),
        ({"lengths": [1, 1, -1]}, cuflash.ProblemError),
        ({"layout": "hbld"}, cuflash.ProblemError),
    ],
    ids=str,
)
def test_a_wrong_append_leaves_the_cache_as_it_was(wrong, error, tokens, filled):
    cache = filled(8, 4, [4, 4, 1])
    new, before = tokens(3, 2, seed=1), state(cache)
    with pytest.raises(error):
        cache.append(new, new, **wrong)
    with pytest.raises(TypeError):
        cache.append(new, new.astype(np.float64))
    with pytest.raises(cuflash.ProblemError):
        cache.append(new, new[:, :, :1])
    assert state(cache) == before


# Forks.


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("writer", [0, 1])
def test_forks_share_until_one_writes(writer, length, tokens, filled, numbers):
    cache = filled(8, 4, [length])
    used = 8 - cache.free_pages
    pair = [0, cache.fork(0)]
    assert host(cache.lengths)[pair].tolist() == [length] * 2
    assert pages_of(cache, pair[0]) == pages_of(cache, pair[1])
    assert cache.free_pages == 8 - used
    new = tokens(1, 2, seed=1)
    cache.append(new, new, seqs=[pair[writer]])
    whole = length // 4  # pages that stay shared
    one, other = pages_of(cache, pair[writer]), pages_of(cache, pair[1 - writer])
    assert one[:whole] == other[:whole]
    assert not set(one[whole:]) & set(other[whole:])
    first = numbers(1, length)[0]
    np.testing.assert_array_equal(stored(cache, pair[1 - writer]), first)
    for name in "kv":
        np.testing.assert_array_equal(stored(cache, pair[writer], name), np.concatenate([first, host(new)[0]], axis=1))
    cache.append(new, new, seqs=[pair[1 - writer]])  # now alone in the page that was left: nothing is copied
    assert pages_of(cache, pair[1 - writer])[: len(other)] == other
    cache.check()


def test_both_write_at_once_and_one_keeps_the_page(tokens, filled, numbers):
    cache = filled(2, 4, [3])
    child = cache.fork(0)
    new = tokens(2, 1, seed=1)
    cache.append(new, new)  # one page is free, and one is enough
    for row, seq in enumerate((0, child)):
        expected = np.concatenate([numbers(1, 3)[0], host(new)[row]], axis=1)
        np.testing.assert_array_equal(stored(cache, seq), expected)
    assert cache.free_pages == 0


def test_a_tree_of_forks(tokens, filled, numbers):
    cache = filled(20, 4, [6])
    family = [0]
    for generation in range(3):
        family += [cache.fork(seq) for seq in family]
        new = tokens(len(family), 1, seed=generation)
        cache.append(new, new, seqs=family)
    assert len(family) == 8
    assert len({pages_of(cache, seq)[0] for seq in family}) == 1
    for seq in family[1:]:
        cache.free(seq)
        np.testing.assert_array_equal(stored(cache, 0)[:, :6], numbers(1, 6)[0])
        cache.check()
    assert cache.free_pages == 20 - 3


def test_the_scales_are_copied_with_the_page(tokens, filled):
    cache = filled(4, 4, [3], dtype="int8")
    child = cache.fork(0)
    before = [stored(cache, 0, name) for name in ("k", "v", "k_scale", "v_scale")]
    cache.append(100 * tokens(1, 1, seed=1), 100 * tokens(1, 1, seed=1), seqs=[child])
    for name, array in zip(("k", "v", "k_scale", "v_scale"), before, strict=True):
        np.testing.assert_array_equal(stored(cache, child, name)[:, :3], array)
        np.testing.assert_array_equal(stored(cache, 0, name), array)


@on_numpy
def test_lengths_lowered_by_hand_do_not_let_a_fork_write_into_the_other(tokens, filled, numbers):
    cache = filled(9, 4, [12])
    child = cache.fork(0)
    cache.lengths[child] = 2
    new = tokens(1, 9, seed=1)
    cache.append(new, new, seqs=[child])
    np.testing.assert_array_equal(stored(cache, 0), numbers(1, 12)[0])
    expected = np.concatenate([numbers(1, 12)[0][:, :2], host(new)[0]], axis=1)
    np.testing.assert_array_equal(stored(cache, child), expected)
    cache.check()


@on_devices
def test_the_host_does_not_see_such_lengths_and_the_tokens_are_dropped(backend, tokens, filled, numbers):
    cache = filled(9, 4, [12])
    child = cache.fork(0)
    cache.lengths[child] = 2
    cache.append(tokens(1, 9, seed=1), tokens(1, 9, seed=1), seqs=[child])
    for seq, length in ((0, 12), (child, 2)):
        np.testing.assert_array_equal(stored(cache, seq), numbers(1, 12)[0, :, :length])
    with pytest.raises(cuflash.CacheFullError, match=rf"9 token\(s\) of row {child} were not appended"):
        cache.check()


# Written by hand; copies.


@on_numpy
@pytest.mark.parametrize("length", [-1, 9])
def test_lengths_beyond_the_pages_are_an_error_everywhere(length, tokens, filled):
    cache = filled(8, 4, [5, 5])
    cache.lengths[1] = length
    before, new = state(cache), tokens(1, 1, seed=1)
    for call in (
        cache.check, lambda: cache.append(new, new, seqs=[1]), lambda: cache.fork(1), lambda: cache.reserve(1, 1),
        lambda: cache.trim(1, 0, 0), lambda: cache.truncate(1, 0), lambda: cache.truncate(1, 1000),
    ):  # fmt: skip
        with pytest.raises(cuflash.ProblemError, match=f"`cache.lengths` holds {length}, but must lie in 0..8"):
            call()
    assert state(cache) == before
    cache.append(new, new, seqs=[0])  # the other one is sound
    cache.free(1)
    cache.check()


@pytest.mark.parametrize(
    ("where", "page", "fault"),
    [
        ((0, 0), 2, "page 0 is listed 0 times, but is held by 1"),
        ((0, 2), 7, "a row of no sequence, or behind a sequence's pages, lists a page"),
        ((5, 0), 0, "a row of no sequence, or behind a sequence's pages, lists a page"),
        ((1, 1), 8, "page 8 is listed, but there are 8 pages"),
    ],
)
def test_check_finds_a_table_changed_from_outside(where, page, fault, backend, filled):
    """NumPy's table is the only one; on a device it is a copy."""
    if backend.name != "numpy":
        fault = f"row {where[0]} lists page {page} at {where[1]}, where the cache has put "
    cache = filled(8, 4, [5, 5])
    cache.page_table[where] = page
    with pytest.raises(cuflash.ProblemError, match=f"`cache.page_table` was changed from outside: {fault}"):
        cache.check()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_is_a_cache_of_its_own(duplicate, tokens, filled):
    original = filled(8, 4, [5, 1], dtype="int8")
    before = state(original)
    other = duplicate(original)
    assert state(other) == before
    new = tokens(2, 4, seed=1)
    other.append(new, new)
    other.fork(0)
    other.truncate(0, 2)
    other.check()
    assert state(original) == before
    original.check()


def test_explain_says_how_keys_are_kept(backend, filled):
    cache = filled(8, 4, [5], dtype="int8")
    text = cuflash.explain(cuflash.decode, backend.asarray(np.ones((1, 2, 3), np.float32)), cache)
    assert text.startswith("decode of float32, batch (1,), hq=2, hk=2, lq=1, lk=32, d=3, dv=3\n")
    assert "int8 keys and values with scales, pages of 4 tokens" in text
