"""What the host knows of a cache on a device, where it does not look: bounds of lengths, and the page table's mirror.

Kernels read and raise the lengths. The host keeps a least and a most of each, which its own operations move, so that
none of them waits for the device. It does not see what a replayed graph appends or what is written into `lengths` by
hand; so nothing here relies on the bounds where a mistake would touch another sequence. The kernel that appends is told
which tokens of each sequence lie in pages that it holds alone, and drops what would go elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cuflash._dispatch import backend
from cuflash._gpu_decode_plan import first_workspace
from cuflash._lengths import Lengths
from cuflash._pages import Pages
from cuflash._problem import arrays
from cuflash._problem.caches import Append, CacheShape
from cuflash._problem.match import match_exact
from cuflash.errors import ProblemError

Array = Any

INT32_MOST = 2**31 - 1
Write = tuple[Array, Any, Any]  # an array on the device, places in it, and what is to stand there


class BoundedLengths(Lengths):
    """Lengths on a device, and for each the least and the most that it can be by what the host did itself."""

    exact = False

    def __init__(self, home: str, sequences: int, shape: CacheShape, dtype: Any) -> None:
        self._home = home
        runtime = self._backend.runtime
        self.array = runtime.zeros((sequences,), np.int32)
        self.kept = self._backend.keep(sequences)
        room = first_workspace(shape.rows * shape.tokens, min(shape.rows, sequences), shape.kv_heads, shape.value_dim)
        self.kept.make_room(runtime, *room, arrays.lse_dtype(dtype.name))
        self._least = np.zeros(sequences, np.int64)
        self._most = np.zeros(sequences, np.int64)

    @property
    def _backend(self) -> Any:
        return backend("cache", self._home)

    def replace(self, array: Array) -> None:
        """Write an array into the one that is there, whose address graphs and kernels know."""
        arrays.check_library("cache", "lengths", array, self._home, "k")
        match_exact("cache", "lengths", array.shape, self.array.shape, "(b,) of the cache")
        if array.dtype != np.int32:
            raise TypeError(f"cache: `lengths` has dtype {array.dtype}, but must be int32, as kernels read it")
        self.array[...] = array

    def bounds(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        return self._least[rows], self._most[rows]

    def read(self) -> np.ndarray:
        return self._backend.runtime.to_host(self.array)

    def settle(self, lengths: np.ndarray) -> None:
        self._least[:] = self._most[:] = lengths

    def appended(self, new: Append) -> None:
        """Raise the bounds; not by what is only captured, which happens when the graph is replayed."""
        if self._backend.runtime.capturing():
            return
        self._most[new.rows] += new.most
        if new.counts is new.most:
            self._least[new.rows] += new.most

    def assign(self, rows: Any, tokens: Any) -> None:
        self._least[rows] = self._most[rows] = tokens
        self._backend.scatter([(self.array, rows, self._most[rows])])

    def copy(self, parent: int, child: int) -> None:
        self.array[child : child + 1] = self.array[parent : parent + 1]
        for bound in (self._least, self._most):
            bound[child] = bound[parent]

    def may_reach(self, seq: int, reserved: int) -> int:
        return reserved

    def grow(self, sequences: int) -> None:
        more = sequences - len(self._most)
        if more > 0:
            runtime = self._backend.runtime
            self.array = _grown(runtime, self.array, sequences)
            self.kept.dropped = _grown(runtime, self.kept.dropped, sequences)
            self._least, self._most = (np.pad(bound, (0, more)) for bound in (self._least, self._most))

    def check_operation(self, function: str) -> None:
        """A graph would repeat what the host does once."""
        if self._backend.runtime.capturing():
            raise ProblemError(
                f"{function}: a graph is being captured, and would repeat this at each replay; do it before the capture"
                " begins, and reserve what the replays append"
            )

    def check_replaceable(self, function: str) -> None:
        self.kept.check_replaceable(function)

    def dropped(self) -> np.ndarray | None:
        dropped = self._backend.runtime.to_host(self.kept.dropped)
        self.kept.dropped[...] = self._backend.runtime.zeros(dropped.shape, np.int32)
        return dropped

    def of(self, rows: np.ndarray | None) -> Array:
        return self.array

    def looked_at(self, lengths: Array, rows: np.ndarray | None) -> np.ndarray:
        read = self.read()
        return read if rows is None else read[rows]

    def longest(self, rows: np.ndarray | None) -> int:
        return int((self._most if rows is None else self._most[rows]).max(initial=0))

    def positions(self, lengths: Array, scores: tuple[int, ...]) -> tuple[Array, Array | None]:
        return None, None


class MirroredPages(Pages):
    """Pages whose table is on the host, and of which a device has a copy that kernels read.

    The copy is changed entry by entry, in place, as the table changes. It has more rows and entries than a small cache
    ever needs, so that it seldom has to grow into a new array, which graphs would not know; `kept.reserved` and
    `kept.shared` grow with it.
    """

    FIRST_ROWS = 256
    FIRST_TOKENS = 32768  # of a sequence, in as many pages as that takes

    def __init__(self, home: str, pages: int, page_size: int, kept: Any) -> None:
        super().__init__(pages, page_size)
        self._home, self._kept = home, kept
        kept.pages = self
        self._taken: list[Write] = []  # entries of the table that the mirror gets when they are granted
        entries = max(1, min(pages, -(-self.FIRST_TOKENS // page_size)))
        # The entries of each row, from the first to before the second, that this sequence alone may write.
        self._own = np.zeros((self.FIRST_ROWS, 2), np.int64)
        self._make_mirror(self.FIRST_ROWS, entries)

    @property
    def _backend(self) -> Any:
        return backend("PagedKVCache", self._home)

    @property
    def page_table(self) -> Array:
        return self._mirror

    @property
    def rows(self) -> int:
        return len(self._own)

    @property
    def reach(self) -> int:
        """Tokens that the pages of any sequence have room for, at the most, rounded up to four binary digits.

        What is planned for so many tokens need not be planned anew for each page.
        """
        tokens = int(self.held.max()) * self.page_size
        shift = max(0, tokens.bit_length() - 4)
        return -(-tokens >> shift) << shift

    def _make_mirror(self, rows: int, entries: int) -> None:
        """New arrays on the device, filled with what the host knows."""
        runtime = self._backend.runtime
        table = np.full((rows, entries), -1, np.int32)
        known = self.table[:, :entries]
        table[: len(known), : known.shape[1]] = known
        self._own = np.pad(self._own, ((0, rows - len(self._own)), (0, 0)))
        self._mirror = runtime.asarray(table)
        first, stop = self._tokens(slice(None))
        self._kept.shared, self._kept.reserved = runtime.asarray(first), runtime.asarray(stop)

    def _tokens(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of some sequences: how many they share, and where their room ends."""
        first, stop = np.minimum(self._own[rows] * self.page_size, INT32_MOST).astype(np.int32).T
        return np.ascontiguousarray(first), np.ascontiguousarray(stop)

    def _fit(self, rows: int, entries: int) -> None:
        """Let the mirror have so many rows and entries; it doubles as it must."""
        have_rows, have_entries = self._mirror.shape
        if entries * self.page_size > self._kept.looked_at:
            self._kept.check_replaceable("PagedKVCache")
        if rows > have_rows or entries > have_entries:
            self._kept.check_replaceable("PagedKVCache")
            rows = max(rows, 2 * have_rows) if rows > have_rows else have_rows
            entries = max(entries, 2 * have_entries) if entries > have_entries else have_entries
            self._make_mirror(rows, entries)

    def _entries(self, seqs: Any, entries: Any) -> list[Write]:
        """Entries of the table as they are to be written into the mirror."""
        seqs, entries = np.broadcast_arrays(seqs, np.asarray(entries, np.int64))
        return [(self._mirror, seqs * self._mirror.shape[1] + entries, self.table[seqs, entries])]

    def _room(self, seqs: Any) -> list[Write]:
        """Likewise where some sequences may write."""
        shared, reserved = self._tokens(seqs)
        return [(self._kept.shared, seqs, shared), (self._kept.reserved, seqs, reserved)]

    def add(self) -> int:
        if not self._vacant:
            self._fit(2 * len(self.table), 0)
        return super().add()

    def fork(self, parent: int, tokens: int) -> int:
        """Neither of the two may write into the pages that they share from now on."""
        seq = super().fork(parent, tokens)
        held = self.held.item(seq)
        self._own[[seq, parent]] = held
        self._backend.scatter(self._entries(seq, range(held)) + self._room([seq, parent]))
        return seq

    def _let_go(self, seq: int, entries: range) -> None:
        super()._let_go(seq, entries)
        if not entries:
            return
        first, stop = self._own[seq].tolist()
        if entries.stop >= stop:
            stop = min(stop, entries.start)
        elif entries.stop > first:
            first = entries.stop
        self._own[seq] = min(first, stop), stop
        self._backend.scatter(self._entries(seq, entries) + self._room([seq]))

    def owned(self, rows: Any, starts: np.ndarray, stops: np.ndarray) -> bool:
        first, stop = self._own[rows].T * self.page_size
        return bool(((first <= starts) & (stops <= stop)).all())

    def missing(self, spans: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, bool]]:
        """Whatever is shared must be copied: it may hold tokens that the host does not know of."""
        found = super().missing(spans)
        width = self.table.shape[1]
        return [(seq, entry, entry < width and self.table.item(seq, entry) >= 0) for seq, entry, _ in found]

    def take(self, missing: list[tuple[int, int, bool]]) -> list[tuple[int, int]]:
        self._fit(0, 1 + max(entry for _, entry, _ in missing))
        copies = super().take(missing)
        seqs, entries, _ = zip(*missing)
        self._taken = self._entries(seqs, entries)
        return copies

    def grant(self, seqs: list[int], starts: list[int], stops: list[int]) -> None:
        rows, begin, end = (np.array(each, np.int64) for each in (seqs, starts, stops))
        first, stop = begin // self.page_size, -(-end // self.page_size)
        own_first, own_stop = self._own[rows].T
        wider = (begin < end) & ((first < own_first) | (stop > own_stop))
        if not wider.any():  # nor was a page taken: none of those that are its own already was missing
            return
        if self._backend.runtime.capturing():
            raise ProblemError(
                "PagedKVCache.append: a graph is being captured, but a sequence has no room of its own for these "
                "tokens yet; reserve what the replays append before the capture begins"
            )
        meets = (own_first < own_stop) & (first <= own_stop) & (own_first <= stop)
        own = np.stack([np.where(meets, np.minimum(first, own_first), first),
                        np.where(meets, np.maximum(stop, own_stop), stop)], axis=1)  # fmt: skip
        self._own[rows[wider]] = own[wider]
        self._backend.scatter(self._taken + self._room(rows[wider]))
        self._taken = []

    def find_fault(self) -> str | None:
        rows, entries = self._mirror.shape
        listed = self._backend.runtime.to_host(self._mirror)
        known = np.full((rows, entries), -1, np.int32)
        wide = self.table[:, :entries]
        known[: len(wide), : wide.shape[1]] = wide
        wrong = np.argwhere(listed != known)
        if len(wrong):
            seq, entry = wrong[0].tolist()
            return f"row {seq} lists page {listed[seq, entry]} at {entry}, where the cache has put {known[seq, entry]}"
        return super().find_fault()


def _grown(runtime: Any, array: Array, size: int) -> Array:
    """A longer array on the device with the numbers of `array`, and zeros behind."""
    longer = runtime.zeros((size,), array.dtype)
    longer[: len(array)] = array
    return longer
