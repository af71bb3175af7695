"""KVCache against a list of what was appended to each sequence; an append that fails leaves every byte as it was."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
from backends import host
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import cuflash


def state(cache):
    """Every byte of a cache."""
    arrays = [x for x in (cache.k, cache.v, cache.lengths, cache.k_scale, cache.v_scale) if x is not None]
    return [host(x).tobytes() for x in arrays] + [x.shape for x in arrays]


def stored(cache, row):
    """Keys and values (hk, length, d) of a sequence."""
    length = int(host(cache.lengths)[row])
    return [host(x)[row, :length].swapaxes(0, 1) for x in (cache.k, cache.v)]


def test_a_new_cache(dtype, backend):
    cache = cuflash.KVCache(3, 7, 2, 4, value_dim=5, dtype=dtype, xp=backend.xp)
    assert (cache.batch, cache.capacity, cache.kv_heads, cache.head_dim, cache.value_dim) == (3, 7, 2, 4, 5)
    assert cache.k.shape == (3, 7, 2, 4)
    assert cache.v.shape == (3, 7, 2, 5)
    assert cache.k.dtype == cache.v.dtype == cache.dtype == dtype
    assert cache.lengths.dtype == np.int32
    assert backend.to_numpy(cache.lengths).tolist() == [0, 0, 0]
    assert cache.nbytes == 3 * 7 * 2 * 9 * dtype.itemsize
    assert cache.grow is False
    assert cuflash.KVCache(1, 1, 1, 4, dtype=dtype, xp=backend.xp).value_dim == 4


def test_like_gives_the_dtype(backend, normal):
    like = backend.asarray(normal(2, dtype="float16"))
    assert cuflash.KVCache(1, 2, 1, 4, like=like).dtype == np.float16
    assert cuflash.KVCache(1, 2, 1, 4, like=like, dtype="float32").dtype == np.float32
    with pytest.raises(TypeError, match="dtype"):
        cuflash.KVCache(1, 2, 1, 4)


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_append_puts_tokens_behind_those_there(layout, dtype, backend, normal):
    cache = cuflash.KVCache(2, 9, 3, 4, value_dim=5, dtype=dtype, xp=backend.xp)
    k, v = normal(2, 3, 8, 4, dtype=dtype), normal(2, 3, 8, 5, dtype=dtype, seed=1)
    for part in (slice(0, 3), slice(3, 3), slice(3, 4), slice(4, 8)):
        new = [x[:, :, part] if layout == "bhld" else x[:, :, part].swapaxes(1, 2) for x in (k, v)]
        assert cache.append(*map(backend.asarray, new), layout=layout) is None
        assert backend.to_numpy(cache.lengths).tolist() == [part.stop] * 2
    for row in range(2):
        for found, wanted in zip(stored(cache, row), (k[row], v[row]), strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert not backend.to_numpy(cache.k)[:, 8:].any()  # nothing is written behind the new tokens


def test_append_of_views(view, check, normal):
    cache = cuflash.KVCache(2, 9, 3, 4, dtype=np.float32, xp=check.backend.xp)
    k, v = normal(2, 3, 8, 4), normal(2, 3, 8, 4, seed=1)
    cache.append(*check.move((k, v), view))
    for found, wanted in zip(stored(cache, 1), (k[1], v[1]), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("lengths", [[2, 0, 3], np.array([2, 0, 3]), np.array([2, 0, 3], np.uint8), 2])
@pytest.mark.parametrize("seqs", [None, [4, 0, 2], np.array([4, 0, 2])])
def test_append_of_some_tokens_to_some_rows(lengths, seqs, backend, normal):
    batch = 3 if seqs is None else 5
    cache = cuflash.KVCache(batch, 8, 1, 4, dtype=np.float32, xp=backend.xp)
    first = normal(batch, 1, 2, 4)
    cache.append(backend.asarray(first), backend.asarray(first))
    k, v = normal(3, 1, 3, 4, seed=1), normal(3, 1, 3, 4, seed=2)
    cache.append(backend.asarray(k), backend.asarray(v), lengths=backend.give(lengths), seqs=seqs)
    expected = [first[row, 0] for row in range(batch)]
    for i, (row, count) in enumerate(
        zip(seqs if seqs is not None else range(3), np.broadcast_to(lengths, 3), strict=True)
    ):
        expected[row] = np.concatenate([first[row, 0], k[i, 0, :count]])
    assert backend.to_numpy(cache.lengths).tolist() == [len(tokens) for tokens in expected]
    for row in range(batch):
        np.testing.assert_array_equal(stored(cache, row)[0][0], expected[row])
    assert backend.to_numpy(cache.k)[:, :, 0].any(axis=-1).sum() == sum(map(len, expected))  # and no token more


@pytest.mark.parametrize(
    ("new", "options"),
    [
        pytest.param(4, {}, id="all rows"),
        pytest.param(4, {"seqs": [2, 0, 1]}, id="rows by name"),
        pytest.param(4, {"lengths": [0, 0, 4]}, id="the last row only"),
        pytest.param(9, {"lengths": [1, 1, 9]}, id="more than the capacity"),
    ],
)
def test_a_full_cache_stays_as_it_was(new, options, backend, normal):
    cache = cuflash.KVCache(3, 8, 2, 4, dtype=np.float32, xp=backend.xp)
    for count in ([5, 5, 5], [0, 0, 1]):
        first = backend.asarray(normal(3, 2, 5, 4))
        cache.append(first, first, lengths=count)
    before = state(cache)
    more = backend.asarray(normal(3, 2, new, 4, seed=1))
    with pytest.raises(cuflash.CacheFullError, match=r"capacity=8.*grow"):
        cache.append(more, more, **options)
    assert state(cache) == before


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
@pytest.mark.parametrize("grow", [False, True])
def test_a_wrong_append_leaves_the_cache_as_it_was(wrong, error, grow, backend, normal):
    cache = cuflash.KVCache(3, 2, 2, 4, dtype=np.float32, grow=grow, xp=backend.xp)
    new = backend.asarray(normal(3, 2, 2, 4))
    cache.append(new, new, lengths=1)
    before = state(cache)
    with pytest.raises(error):
        cache.append(new, new, **wrong)
    with pytest.raises(TypeError):
        cache.append(new, backend.asarray(normal(3, 2, 2, 4, dtype="float64")))
    with pytest.raises(cuflash.ProblemError):
        cache.append(new, new[:, :, :1])
    assert state(cache) == before


@pytest.mark.parametrize("capacity", [0, 1, 5])
def test_grow_at_least_doubles_and_keeps_what_is_there(capacity, backend, normal):
    cache = cuflash.KVCache(2, capacity, 1, 4, dtype=np.float32, grow=True, xp=backend.xp)
    tokens = normal(2, 1, 40, 4)
    sizes = [cache.capacity]
    for i in range(40):
        new = backend.asarray(tokens[:, :, [i]])
        cache.append(new, new, lengths=[1, i % 2])
        if cache.capacity != sizes[-1]:
            sizes.append(cache.capacity)
    assert all(later >= 2 * sooner for sooner, later in pairwise(sizes))
    assert backend.to_numpy(cache.lengths).tolist() == [40, 20]
    np.testing.assert_array_equal(stored(cache, 0)[0], tokens[0])
    np.testing.assert_array_equal(stored(cache, 1)[1], tokens[1][:, 1::2])
    big = backend.asarray(normal(2, 1, 1000, 4))
    cache.append(big, big)
    assert cache.capacity >= 1040


@pytest.mark.parametrize(
    ("seq", "length", "expected"),
    [
        (0, 3, [3, 2, 0]),
        (np.int64(1), 0, [5, 0, 0]),
        ([1, 0], [1, 4], [4, 1, 0]),
        (np.array([0, 2]), 0, [0, 2, 0]),
        (None, 0, [0, 0, 0]),
        (None, [4, 2, 0], [4, 2, 0]),
        ([], 0, [5, 2, 0]),
    ],
)
def test_truncate(seq, length, expected, backend, make_cache, normal):
    x = normal(3, 1, 5, 4)
    cache = make_cache(x, x, [5, 2, 0])
    cache.truncate(seq, length)
    assert backend.to_numpy(cache.lengths).tolist() == expected
    np.testing.assert_array_equal(stored(cache, 0)[0], x[0][:, : expected[0]])


@pytest.mark.parametrize(
    ("seq", "length"), [(1, 3), (0, -1), (3, 0), (-1, 0), (None, 2), ([0, 1], [5, 3]), ([0], [1, 2])]
)
def test_a_wrong_truncate_changes_nothing(seq, length, make_cache, normal):
    x = normal(3, 1, 5, 4)
    cache = make_cache(x, x, [5, 2, 0])
    before = state(cache)
    with pytest.raises(cuflash.ProblemError):
        cache.truncate(seq, length)
    assert state(cache) == before


def test_append_after_truncate_overwrites(backend, make_cache, normal):
    x, y = normal(2, 1, 5, 4), normal(2, 1, 2, 4, seed=1)
    cache = make_cache(x, x, [5, 5])
    cache.truncate(1, 3)
    cache.append(backend.asarray(y[1:]), backend.asarray(y[1:]), seqs=[1])
    np.testing.assert_array_equal(stored(cache, 1)[0][0], np.concatenate([x[1, 0, :3], y[1, 0]]))
    np.testing.assert_array_equal(stored(cache, 0)[0], x[0])


class CacheMachine(RuleBasedStateMachine):
    """Any sequence of operations on a small cache, beside a list of token numbers for each sequence."""

    backend = None

    @initialize(batch=st.integers(0, 3), capacity=st.integers(0, 6), grow=st.booleans())
    def make(self, batch, capacity, grow):
        options = {"value_dim": 2, "dtype": np.float64, "grow": grow, "xp": self.backend.xp}
        self.cache = cuflash.KVCache(batch, capacity, 2, 1, **options)
        self.model = [[] for _ in range(batch)]
        self.tokens = 0

    @rule(data=st.data(), length=st.integers(0, 4))
    def append(self, data, length):
        batch = len(self.model)
        rows = data.draw(st.none() | st.permutations(range(batch)).map(lambda rows: rows[: batch // 2 + 1]))
        named = range(batch) if rows is None else rows
        counts = data.draw(st.none() | st.lists(st.integers(0, length), min_size=len(named), max_size=len(named)))
        numbers = self.tokens + np.arange(len(named) * length).reshape(len(named), length)
        self.tokens += numbers.size
        k = numbers[:, None, :, None] + np.array([0, 0.5])[:, None, None]
        k, v = self.backend.asarray(k), self.backend.asarray(np.concatenate([k, -k], axis=-1))
        before = state(self.cache)
        own = [length] * len(named) if counts is None else counts
        fits = all(len(self.model[row]) + count <= self.cache.capacity for row, count in zip(named, own, strict=True))
        if not fits and not self.cache.grow:
            with pytest.raises(cuflash.CacheFullError):
                self.cache.append(k, v, seqs=rows, lengths=counts)
            assert state(self.cache) == before
            return
        self.cache.append(k, v, seqs=rows, lengths=counts)
        for row, count, added in zip(named, own, numbers.tolist(), strict=True):
            self.model[row] += added[:count]

    @rule(data=st.data())
    def truncate(self, data):
        rows = (
            data.draw(st.none() | st.lists(st.sampled_from(range(len(self.model))), unique=True))
            if self.model
            else None
        )
        named = range(len(self.model)) if rows is None else rows
        lengths = [data.draw(st.integers(0, len(self.model[row]) + 1)) for row in named]
        if any(length > len(self.model[row]) for row, length in zip(named, lengths, strict=True)):
            before = state(self.cache)
            with pytest.raises(cuflash.ProblemError):
                self.cache.truncate(rows, lengths)
            assert state(self.cache) == before
            return
        self.cache.truncate(rows, np.array(lengths, int))
        for row, length in zip(named, lengths, strict=True):
            del self.model[row][length:]

    @invariant()
    def holds_what_was_appended(self):
        if not hasattr(self, "cache"):
            return
        k, v = host(self.cache.k), host(self.cache.v)
        assert host(self.cache.lengths).tolist() == [len(tokens) for tokens in self.model]
        assert self.cache.lengths.dtype == np.int32
        for row, tokens in enumerate(self.model):
            numbers = np.array(tokens, float)
            np.testing.assert_array_equal(k[row, : len(tokens), 0, 0], numbers)
            np.testing.assert_array_equal(k[row, : len(tokens), 1, 0], numbers + 0.5)
            np.testing.assert_array_equal(v[row, : len(tokens), 1], np.stack([numbers + 0.5, -numbers - 0.5], 1))


def test_any_sequence_of_operations(backend):
    machine = type("Machine", (CacheMachine,), {"backend": backend})
    few = settings(max_examples=backend.examples(60), stateful_step_count=25)
    run_state_machine_as_test(machine, settings=few)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_is_a_cache_of_its_own(duplicate, make_cache, backend, normal, same_bytes):
    new = backend.asarray(normal(2, 1, 3, 4))
    original = make_cache(normal(2, 1, 3, 4), normal(2, 1, 3, 4), [3, 1], capacity=8)
    before = [backend.to_numpy(array).copy() for array in (original.k, original.v, original.lengths)]
    other = duplicate(original)
    other.append(new, new)
    other.truncate(0, 2)
    assert backend.to_numpy(other.lengths).tolist() == [2, 4]
    for array, kept in zip((original.k, original.v, original.lengths), before, strict=True):
        same_bytes(backend.to_numpy(array), kept)


@pytest.mark.parametrize("length", [-1, 9])
def test_check_looks_at_lengths(length, backend):
    cache = cuflash.KVCache(2, 8, 1, 4, dtype=np.float32, xp=backend.xp)
    assert cache.check() is None and cache.sync() is None
    cache.lengths[1] = length
    with pytest.raises(cuflash.ProblemError, match=rf"KVCache.check: `cache.lengths` holds {length}, but must lie"):
        cache.check()
