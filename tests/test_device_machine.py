"""PagedKVCache on a device under any sequence of operations, replays of graphs and lengths that only the device knows.

The model is a list of token numbers for each sequence. No operation of the host waits unless the host has been told to
forget what it can know (a replay, after which it must sync before it appends, truncates or trims). Whatever happens, no
sequence's tokens may change but by what was done to it.
"""

import numpy as np
import pytest
import stand_in
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from levels import TEST_LEVEL

import cuflash
from cuflash import CacheFullError, ProblemError, _dispatch
from cuflash._problem import arrays

PAGES = 96
MOST_SEQUENCES = 5


class DeviceMachine(RuleBasedStateMachine):
    """See the head of this file."""

    @initialize(page_size=st.sampled_from([4, 3, 1]), prompts=st.sampled_from([(5, 9), (13,), ()]))
    def make(self, page_size, prompts):
        backend = stand_in.Backend(stand_in.Runtime())
        _dispatch._backends[stand_in.HOME] = backend
        arrays.register(stand_in.DeviceArray, stand_in.HOME)
        self.device = backend.runtime
        like = self.device.zeros((1,), np.float64)
        self.cache = cuflash.PagedKVCache(PAGES, page_size, 1, 1, dtype=np.float64, like=like)
        self.cache.k._values[...] = self.cache.v._values[...] = np.nan
        self.tokens, self.next_token = {}, 0
        self.stale = set()  # sequences of which the device knows more than the host
        for length in prompts:
            self.add()
            self.append_to([next(reversed(self.tokens))], [length], length, False)

    def teardown(self):
        _dispatch._backends.pop(stand_in.HOME, None)

    def sync(self):
        if self.stale:
            self.cache.sync()
            self.stale.clear()

    def new_tokens(self, rows, length):
        numbers = self.next_token + np.arange(rows * length).reshape(rows, length)
        self.next_token += numbers.size
        array = self.device.asarray(numbers[:, None, :, None].astype(np.float64))
        return numbers.tolist(), array

    @precondition(lambda self: len(self.tokens) < MOST_SEQUENCES)
    @rule()
    def add(self):
        self.tokens[self.cache.add()] = []

    @precondition(lambda self: 0 < len(self.tokens) < MOST_SEQUENCES)
    @rule(data=st.data())
    def fork(self, data):
        """Without a sync, whatever the device knows."""
        parent = data.draw(st.sampled_from(sorted(self.tokens)))
        self.tokens[child := self.cache.fork(parent)] = list(self.tokens[parent])
        if parent in self.stale:
            self.stale.add(child)

    @precondition(lambda self: len(self.tokens) > 2)
    @rule(data=st.data())
    def free(self, data):
        seq = data.draw(st.sampled_from(sorted(self.tokens)))
        self.cache.free(seq)
        del self.tokens[seq]
        self.stale.discard(seq)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), length=st.sampled_from([1, 2, 5, 7]), device_counts=st.booleans())
    def append(self, data, length, device_counts):
        seqs = data.draw(st.lists(st.sampled_from(sorted(self.tokens)), min_size=1, max_size=3, unique=True))
        counts = data.draw(st.lists(st.integers(0, length), min_size=len(seqs), max_size=len(seqs)))
        self.sync()
        self.append_to(seqs, counts, length, device_counts)

    def append_to(self, seqs, counts, length, device_counts):
        numbers, new = self.new_tokens(len(seqs), length)
        given = self.device.asarray(np.array(counts)) if device_counts else counts
        for attempt in range(2):
            try:
                self.cache.append(new, new, seqs=seqs, lengths=given)
                break
            except CacheFullError:
                self.cache.sync()
                if attempt:
                    return
        for seq, count, row in zip(seqs, counts, numbers, strict=True):
            self.tokens[seq] += row[:count]

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), tokens=st.integers(0, 9), replays=st.integers(0, 9))
    def replay(self, data, tokens, replays):
        """A graph that appends one token to a sequence, replayed more often than was reserved, perhaps."""
        seq = data.draw(st.sampled_from(sorted(self.tokens)))
        self.sync()
        try:
            self.cache.reserve(seq, tokens + 1)
        except CacheFullError:
            return
        room = len(self.cache._pages.table[seq]) and self.room(seq)
        (row,), new = self.new_tokens(1, 1)
        self.cache._lengths.kept.rows(self.device, np.array([seq]))  # as a call before the capture would have
        self.device.graph = graph = []
        self.cache.append(new, new, seqs=[seq])
        self.device.graph = None
        kept = min(replays, room - len(self.tokens[seq]))
        for _ in range(replays):
            self.device.replay(graph)
        self.tokens[seq] += row * kept
        self.stale.add(seq)
        if kept < replays:
            self.settle_dropped(seq, replays - kept)

    def room(self, seq):
        return int(self.cache._lengths.kept.reserved._values[seq])

    def settle_dropped(self, seq, count):
        with pytest.raises(CacheFullError, match=rf"{count} token\(s\) of row {seq} were not appended"):
            self.cache.check()

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), less=st.integers(1, 12))
    def rewind_on_the_device(self, data, less):
        """A length lowered by hand, then an append that knows nothing of it: into no page of another's."""
        seq = data.draw(st.sampled_from(sorted(self.tokens)))
        self.sync()
        least = self.cache._lengths.bounds([seq])[0][0]
        length = max(0, len(self.tokens[seq]) - less)
        self.cache.lengths._values[seq] = length
        del self.tokens[seq][length:]
        (row,), new = self.new_tokens(1, 2)
        try:
            self.cache.append(new, new, seqs=[seq])
        except CacheFullError:
            pass
        else:
            if length >= int(self.cache._lengths.kept.shared._values[seq]):
                self.tokens[seq] += row
            else:
                assert length < least
                self.settle_dropped(seq, 2)
        self.stale.add(seq)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def truncate(self, data):
        seq = data.draw(st.sampled_from(sorted(self.tokens)))
        self.sync()
        length, size = data.draw(st.integers(0, len(self.tokens[seq]))), self.cache.page_size
        if length % size and self.tokens[seq][length - 1] is None:
            length -= length % size  # trim has freed the page
        if length > self.cache._lengths.bounds([seq])[0][0]:
            with pytest.raises(ProblemError, match=r"for all that the host knows; sync\(\) makes it look"):
                self.cache.truncate(seq, length)
            self.cache.sync()
        self.cache.truncate(seq, length)
        del self.tokens[seq][length:]

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), first=st.sampled_from([0, 3]), last=st.integers(0, 6))
    def trim(self, data, first, last):
        """Without a sync: by the least that the host knows, so that no more goes than may."""
        seq, size = data.draw(st.sampled_from(sorted(set(self.tokens) - self.stale) or [None])), self.cache.page_size
        if seq is not None:
            self.cache.trim(seq, first, last)
            stop = self.cache._lengths.bounds([seq])[0][0] - last
            for start in range(-(-first // size) * size, stop - size + 1, size):
                self.tokens[seq][start : start + size] = [None] * size

    @rule()
    def look(self):
        self.cache.sync()
        self.stale.clear()
        least, most = self.cache._lengths.bounds(list(self.tokens))
        np.testing.assert_array_equal(least, most)

    @invariant()
    def holds_what_was_appended(self):
        if not hasattr(self, "cache"):
            return
        cache, size = self.cache, self.cache.page_size
        table, lengths = cache.page_table._values, cache.lengths._values
        known = cache._pages.table
        np.testing.assert_array_equal(table[: len(known), : known.shape[1]], known[:, : table.shape[1]])
        for seq, tokens in self.tokens.items():
            assert lengths[seq] == len(tokens)
            i = np.array([i for i, token in enumerate(tokens) if token is not None], int)
            pages = table[seq, i // size]
            assert (pages >= 0).all()
            np.testing.assert_array_equal(cache.k._values[pages, i % size, 0, 0], [tokens[at] for at in i])
            if seq not in self.stale:
                least, most = cache._lengths.bounds([seq])
                assert least[0] <= len(tokens) <= most[0]

    @invariant()
    def no_two_may_write_one_page(self):
        if not hasattr(self, "cache"):
            return
        kept, size, table = self.cache._lengths.kept, self.cache.page_size, self.cache._pages.table
        listed = np.bincount(table[table >= 0], minlength=PAGES)
        for seq in self.tokens:
            first, stop = int(kept.shared._values[seq]) // size, int(kept.reserved._values[seq]) // size
            own = table[seq, first:stop]
            assert (own >= 0).all() and (listed[own] == 1).all()


DeviceMachine.TestCase.settings = settings(
    max_examples=60 * max(1, TEST_LEVEL - 1), stateful_step_count=30, deadline=None
)
TestDeviceMachine = DeviceMachine.TestCase
