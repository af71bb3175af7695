"""PagedKVCache under any sequence of operations, beside a model of plain lists: contents, pages, results, errors.

The model keeps for every sequence a list of tokens and a list of pages, objects without content whose identity says who
shares what. After every step whatever no sequence fills is NaN in the cache, so that nothing can come from there.
"""

import numpy as np
import pytest
from backends import host
from conftest import poison
from hypothesis import settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from levels import TEST_LEVEL

import cuflash
from cuflash import reference

DTYPES = ("float64", "float32", "float16", "int8", "float8_e4m3fn")
EXAMPLES, STEPS_WANTED = 16 * TEST_LEVEL, 2500 * TEST_LEVEL // len(DTYPES)  # of each
ROUNDING = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "int8": 1e-5, "float8_e4m3fn": 1e-5}
MOST_SEQUENCES = 5
VECTORS = np.random.default_rng(0).standard_normal((997, 4, 3))  # token i appears as number i modulo 997
VECTORS[5], VECTORS[7, 1] = 0, 1e-3  # a zero vector, and one that is small beside its neighbours


class Sequence:
    """The model of a sequence: tokens are (keys, values) as they were stored; None stands for a trimmed page."""

    def __init__(self, tokens=(), pages=()):
        self.tokens, self.pages = list(tokens), list(pages)


class PagedCacheMachine(stateful.RuleBasedStateMachine):
    """See the head of this file."""

    dtype = backend = None
    steps = 0

    @stateful.initialize(pages=st.sampled_from([40, 24, 60, 12, 5]),
                         page_size=st.sampled_from([4, 3, 2, 1]), heads=st.sampled_from([(4, 2), (2, 1), (1, 1)]),
                         prompts=st.sampled_from([(5, 9), (13,), ()]))  # fmt: skip
    def make(self, pages, page_size, heads, prompts):
        self.hq, self.hk = heads
        self.given = np.dtype("float32" if self.dtype in ("int8", "float8_e4m3fn") else self.dtype)
        options = {"value_dim": 2, "dtype": self.dtype, "xp": self.backend.xp}
        self.cache = cuflash.PagedKVCache(pages, page_size, self.hk, 3, **options)
        self.live, self.next_token = {}, 0
        poison(self.cache)
        for length in prompts:
            self.add()
            seqs = list(self.live)[-1:]
            self.append(seqs, [length], length, "bhld", seqs)

    # Operations.

    @precondition(lambda self: len(self.live) < MOST_SEQUENCES)
    @rule()
    def add(self):
        seq = self.cache.add()
        assert seq not in self.live
        self.live[seq] = Sequence()

    @precondition(lambda self: 0 < len(self.live) < MOST_SEQUENCES)
    @rule(data=st.data())
    def fork(self, data):
        parent = self.live[chosen := self.choose(data)]
        seq = self.cache.fork(chosen)
        assert seq not in self.live
        held = self.entries(len(parent.tokens)) if self.backend.name == "numpy" else None  # on a device also reserves
        self.live[seq] = Sequence(parent.tokens, parent.pages[:held])

    @precondition(lambda self: len(self.live) > 2)
    @rule(data=st.data())
    def free(self, data):
        seq = self.choose(data)
        self.cache.free(seq)
        del self.live[seq]

    @precondition(lambda self: self.live)
    @rule()
    def append_one_token(self):
        self.append(list(self.live), [1] * len(self.live), 1, "bhld", None)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), length=st.sampled_from([5, 2, 1, 7, 0]), layout=st.sampled_from(["bhld", "blhd"]))
    def append_to_some(self, data, length, layout):
        seqs = data.draw(st.lists(st.sampled_from(sorted(self.live)), min_size=1, max_size=3, unique=True))
        counts = data.draw(st.lists(st.integers(0, length), min_size=len(seqs), max_size=len(seqs)))
        if data.draw(st.booleans()):
            counts = [length] * len(seqs)
        self.append(seqs, counts, length, layout, seqs)

    def append(self, named, counts, length, layout, seqs):
        numbers = np.arange(self.next_token, self.next_token + len(named) * length).reshape(len(named), length) % 997
        self.next_token += numbers.size
        x = VECTORS[numbers].swapaxes(1, 2).astype(self.given)  # (b, 4, l, 3)
        k, v = x[:, : self.hk], x[:, 2 : 2 + self.hk, :, :2]
        moved = (k, v) if layout == "bhld" else (k.swapaxes(1, 2), v.swapaxes(1, 2))
        moved = [self.backend.asarray(x) for x in moved]
        options = {"seqs": seqs, "lengths": counts, "layout": layout}
        missing = self.missing(zip(named, counts, strict=True))
        if len(missing) > self.cache.free_pages:
            self.fails(cuflash.CacheFullError, lambda: self.cache.append(*moved, **options))
            return
        self.cache.append(*moved, **options)
        self.take(missing)
        for row, (seq, count) in enumerate(zip(named, counts, strict=True)):
            self.live[seq].tokens += self.as_stored(seq, k[row, :, :count], v[row, :, :count])

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.integers(0, 9))
    def reserve(self, data, tokens):
        seq = self.choose(data)
        missing = self.missing([(seq, tokens)])
        if len(missing) > self.cache.free_pages:
            self.fails(cuflash.CacheFullError, lambda: self.cache.reserve(seq, tokens))
            return
        self.cache.reserve(seq, tokens)
        self.take(missing)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def truncate(self, data):
        seqs = data.draw(st.lists(st.sampled_from(sorted(self.live)), max_size=2, unique=True))
        if len(seqs) == 0 and data.draw(st.booleans()):
            seqs = None
        named = list(self.live) if seqs is None else seqs
        back = [data.draw(st.integers(-1, 9)) for _ in named]
        lengths = [max(0, len(self.live[seq].tokens) - less) for seq, less in zip(named, back, strict=True)]
        size = self.cache.page_size
        wrong = any(
            length > len(self.live[seq].tokens) or (length % size and self.live[seq].pages[length // size] is None)
            for seq, length in zip(named, lengths, strict=True)
        )
        if wrong:
            self.fails(cuflash.ProblemError, lambda: self.cache.truncate(seqs, lengths))
            return
        self.cache.truncate(seqs, np.array(lengths, int))
        for seq, length in zip(named, lengths, strict=True):
            del self.live[seq].tokens[length:], self.live[seq].pages[self.entries(length) :]

    @precondition(lambda self: self.live)
    @rule(data=st.data(), first=st.integers(0, 5), last=st.integers(0, 9))
    def trim(self, data, first, last):
        seq = self.choose(data)
        self.cache.trim(seq, first, last)
        model, size = self.live[seq], self.cache.page_size
        for entry in range(len(model.pages)):
            if entry * size >= first and (entry + 1) * size <= len(model.tokens) - last:
                model.pages[entry] = None

    @precondition(lambda self: self.live)
    @rule(data=st.data(), lq=st.integers(1, 3), window=st.none() | st.integers(0, 8), causal=st.booleans())
    def decode(self, data, lq, window, causal):
        """Any sequences, one of them twice; against the reference over the lists."""
        seqs = None if data.draw(st.booleans()) else [self.choose(data) for _ in range(data.draw(st.integers(1, 3)))]
        named = list(self.live) if seqs is None else seqs
        q = VECTORS[np.arange(len(named) * lq).reshape(len(named), lq)].swapaxes(1, 2)[:, : self.hq].astype(self.given)
        moved = self.backend.asarray(q)
        options = {"window": None if window is None else (window, 0), "causal": causal}
        if any(self.sees_trimmed(seq, lq, window) for seq in named):
            looking = {"validate": True} if self.backend.name != "numpy" else {}
            self.fails(cuflash.ProblemError, lambda: cuflash.decode(moved, self.cache, seqs=seqs, **looking, **options))
            return
        found = cuflash.decode(moved, self.cache, seqs=seqs, return_lse=True, **options)
        expected = reference.decode(q, self.contiguous(named), return_lse=True, **options)
        for one, right in zip(found, expected, strict=True):
            rounding = ROUNDING[self.dtype]
            np.testing.assert_allclose(host(one).astype(float), right, rtol=rounding, atol=rounding)

    # The model.

    def choose(self, data):
        return data.draw(st.sampled_from(sorted(self.live)))

    def entries(self, tokens):
        return -(-tokens // self.cache.page_size)

    def holders(self, page):
        return sum(page is other for sequence in self.live.values() for other in sequence.pages)

    def missing(self, appends):
        """(sequence, entry) for each page that these appends of (seq, count) must take."""
        size, found, leaving = self.cache.page_size, [], []
        for seq, count in appends:
            model = self.live[seq]
            start = len(model.tokens)
            for entry in range(start // size, self.entries(start + count)) if count else ():
                page = model.pages[entry] if entry < len(model.pages) else None
                shared = page is not None and self.holders(page) - sum(page is other for other in leaving) > 1
                if page is None or shared:
                    found.append((model, entry))
                    leaving += [page] * shared
        return found

    def take(self, missing):
        for model, entry in missing:
            model.pages[entry : entry + 1] = [object()]

    def as_stored(self, seq, k, v):
        """The tokens just appended as the cache gives them back: equal, or as close as quantising promises."""
        count = k.shape[1]
        back = [self.gather(seq, name)[-count:] if count else () for name in "kv"]
        for found, given in zip(back, (k, v), strict=True):
            for token in range(count):
                x, y = given[:, token].astype(float), found[token]
                largest = np.abs(x).max(axis=-1, keepdims=True)
                if self.cache.dtype == np.int8:
                    assert (np.abs(x - y) <= largest / 254 * (1 + 1e-6)).all()
                elif self.cache.k_scale is not None:
                    assert (np.abs(x - y) <= np.maximum(np.abs(x) / 16, largest / 448 / 1024) * (1 + 1e-6)).all()
                else:
                    np.testing.assert_array_equal(x, y)
        return list(zip(*back, strict=True))

    def gather(self, seq, name):
        """Keys or values of a sequence through the page table, (length, hk, dim); what was trimmed is left out."""
        cache, length, table = self.cache, int(host(self.cache.lengths)[seq]), host(self.cache.page_table)
        size, scale = cache.page_size, getattr(cache, f"{name}_scale")
        codes = host(getattr(cache, name)).view(cache.dtype)
        found = []
        for i in range(length):
            page = int(table[seq, i // size])
            if page >= 0:
                token = codes[page, i % size].astype(float)
                found.append(token if scale is None else token * host(scale)[page, i % size].astype(float)[:, None])
        return found

    def sees_trimmed(self, seq, lq, window):
        model, size = self.live[seq], self.cache.page_size
        lowest = 0 if window is None else max(0, len(model.tokens) - lq - window)
        return any(model.pages[i // size] is None for i in range(lowest, len(model.tokens)))

    def contiguous(self, named):
        """The sequences of the model as rows of a cache that the reference reads."""
        longest = max(len(self.live[seq].tokens) for seq in named)
        k, v = (np.zeros((len(named), longest, self.hk, dim)) for dim in (3, 2))
        for row, seq in enumerate(named):
            for i, token in enumerate(self.live[seq].tokens):
                k[row, i], v[row, i] = token
        lengths = np.array([len(self.live[seq].tokens) for seq in named])
        return type("Contiguous", (), {"k": k, "v": v, "lengths": lengths})

    # What always holds.

    def state(self):
        cache = self.cache
        arrays = (cache.k, cache.v, cache.k_scale, cache.v_scale, cache.lengths, cache.page_table)
        return [host(x).tobytes() for x in arrays if x is not None] + [cache.seqs, cache.free_pages]

    def fails(self, error, call):
        """A call that cannot be done says so, and leaves every byte as it was."""
        before = self.state()
        with pytest.raises(error):
            call()
        assert self.state() == before

    @invariant()
    def agrees_with_the_model(self):
        if not hasattr(self, "cache"):
            return
        type(self).steps += 1
        cache, table = self.cache, host(self.cache.page_table)
        assert cache.seqs == tuple(self.live)
        pages = {}  # of the model's, by number: the same page everywhere, and no other one twice
        for seq, model in self.live.items():
            assert host(cache.lengths)[seq] == len(model.tokens)
            row = table[seq].tolist()
            assert row[len(model.pages) :] == [-1] * (len(row) - len(model.pages))
            for number, page in zip(row, model.pages, strict=False):
                assert (number < 0) == (page is None)
                if page is not None:
                    assert pages.setdefault(number, page) is page
        assert len(set(map(id, pages.values()))) == len(pages)
        assert cache.free_pages == cache.pages - len(pages)
        cache.check()
        self.poison_the_rest()

    @invariant()
    def holds_what_was_appended(self):
        for seq, model in getattr(self, "live", {}).items():
            size = self.cache.page_size
            kept = [token for i, token in enumerate(model.tokens) if model.pages[i // size] is not None]
            for place, name in enumerate("kv"):
                np.testing.assert_array_equal(self.gather(seq, name), [token[place] for token in kept])

    def poison_the_rest(self):
        """NaN in free pages, and behind the tokens of the others."""
        cache = self.cache
        filled = np.zeros((cache.pages, cache.page_size), bool)
        for seq in cache.seqs:
            i = np.arange(host(cache.lengths)[seq])
            pages = host(cache.page_table)[seq, i // cache.page_size]
            filled[pages[pages >= 0], i[pages >= 0] % cache.page_size] = True
        rest = self.backend.asarray(~filled)
        for codes, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
            if scale is None:
                codes[rest] = np.nan
            else:
                codes.view(np.uint8)[rest] = 0x7F
                scale[rest] = np.nan


@pytest.mark.grows
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_sequence_of_operations(dtype, backend):
    pytest.importorskip("ml_dtypes")
    machine = type(f"Machine_{dtype}", (PagedCacheMachine,), {"dtype": dtype, "backend": backend, "steps": 0})
    examples = backend.examples(EXAMPLES)
    stateful.run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=50))
    assert machine.steps >= STEPS_WANTED * examples // EXAMPLES
