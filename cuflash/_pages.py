"""Which page holds which tokens: the free pages, how many sequences hold each page, a table row for each sequence.

Bookkeeping alone: no array of keys is known here. Token i of sequence `seq` lies in page ``table[seq, i // page_size]``
at ``i % page_size``; -1 is no page. A page that several sequences hold is never written: whoever is to write there gets
one of its own first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

_FIRST_ROWS, _FIRST_COLUMNS = 8, 8  # of the table, which doubles as it must


class Pages:
    """The pages of a cache and the sequences that hold them."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.table = np.full((_FIRST_ROWS, _FIRST_COLUMNS), -1, np.int32)
        self.held = np.zeros(_FIRST_ROWS, np.int32)  # entries of each row, from the first, that have or had a page
        self.live: dict[int, None] = {}  # sequences in order of add
        self.changes = 0  # of them
        self._holders = [0] * pages  # rows that list each page
        self._free = list(range(pages))[::-1]  # the last is taken first: runs of new pages ascend
        self._vacant = deque(range(_FIRST_ROWS))  # rows of no sequence; the longest vacant is taken first

    @property
    def pages(self) -> int:
        """How many there are."""
        return len(self._holders)

    @property
    def free_pages(self) -> int:
        """How many no sequence holds."""
        return len(self._free)

    @property
    def page_table(self) -> Any:
        """The table where keys are read: this one."""
        return self.table

    @property
    def rows(self) -> int:
        """Rows of `page_table`."""
        return len(self.table)

    def add(self) -> int:
        """A new sequence: its row of the table."""
        if not self._vacant:
            rows = len(self.table)
            self._vacant.extend(range(rows, 2 * rows))
            self.table = np.concatenate([self.table, np.full_like(self.table, -1)])
            self.held = np.concatenate([self.held, np.zeros_like(self.held)])
        seq = self._vacant.popleft()
        self.live[seq] = None
        self.changes += 1
        return seq

    def fork(self, parent: int, tokens: int) -> int:
        """A new sequence that holds the pages of the parent's first `tokens` tokens."""
        seq, entries = self.add(), self._count(tokens)
        row = self.table[parent, :entries]
        self.table[seq, :entries] = row
        self.held[seq] = entries
        for page in row.tolist():
            if page >= 0:
                self._holders[page] += 1
        return seq

    def free(self, seq: int) -> None:
        """Forget a sequence; its pages are free where nobody else holds them."""
        self.truncate(seq, 0)
        del self.live[seq]
        self.changes += 1
        self._vacant.append(seq)

    def truncate(self, seq: int, tokens: int) -> None:
        """Let go of all pages behind the first `tokens` tokens."""
        entries = self._count(tokens)
        self._let_go(seq, range(entries, self.held.item(seq)))
        self.held[seq] = min(entries, self.held.item(seq))

    def trim(self, seq: int, start: int, stop: int) -> None:
        """Let go of the pages that lie wholly within the tokens from `start` to `stop`."""
        self._let_go(seq, range(self._count(start), stop // self.page_size))

    def _let_go(self, seq: int, entries: range) -> None:
        if not entries:
            return
        for entry in reversed(entries):
            page = self.table.item(seq, entry)
            if page >= 0:
                self._holders[page] -= 1
                if not self._holders[page]:
                    self._free.append(page)
        self.table[seq, entries.start : entries.stop] = -1

    def owned(self, rows: Any, starts: np.ndarray, stops: np.ndarray) -> bool:
        """Whether nothing is `missing`, where that is known without a look."""
        return False

    def missing(self, spans: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, bool]]:
        """What must be taken before the tokens of some spans (seq, start, stop) may be written, each seq once.

        Entries of the table (seq, entry), and whether the page there now must be copied: it is shared, and tokens
        before `start` lie in it. Where there are too few free pages, what is found is too much, but not all.
        """
        size = self.page_size
        found: list[tuple[int, int, bool]] = []
        left: dict[int, int] = {}  # of a shared page, how many of its holders leave it for one of their own
        for seq, start, stop in spans:
            if start == stop:
                continue
            held = self.held.item(seq)
            last = min((stop - 1) // size, held + len(self._free))
            for entry in range(start // size, last + 1):
                page = self.table.item(seq, entry) if entry < held else -1
                if page < 0:
                    found.append((seq, entry, False))
                elif self._holders[page] - left.get(page, 0) > 1:
                    left[page] = left.get(page, 0) + 1
                    found.append((seq, entry, entry * size < start))
        return found

    def take(self, missing: list[tuple[int, int, bool]]) -> list[tuple[int, int]]:
        """Take a free page for each of what `missing` found; there must be enough. Returns copies to make, (from, to).

        The copies come before anything is written: another sequence may go on writing in the page that is left.
        """
        self._widen(max((entry for _, entry, _ in missing), default=0) + 1)
        copies = []
        for seq, entry, copy in missing:
            old, new = self.table.item(seq, entry), self._free.pop()
            if copy:
                copies.append((old, new))
            if old >= 0:
                self._holders[old] -= 1
            self._holders[new] = 1
            self.table[seq, entry] = new
            self.held[seq] = max(self.held.item(seq), entry + 1)
        return copies

    def grant(self, seqs: list[int], starts: list[int], stops: list[int]) -> None:
        """Know that nothing is `missing` of some spans any more. The host, which writes there itself, need not know."""

    def _widen(self, columns: int) -> None:
        now = self.table.shape[1]
        if columns > now:
            wider = np.full((len(self.table), max(columns, 2 * now)), -1, np.int32)
            wider[:, :now] = self.table
            self.table = wider

    def _count(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def find_fault(self) -> str | None:
        """What contradicts itself, as only a table written from outside can; None if all is well."""
        listed = [page for seq in self.live for page in self.table[seq, : self.held.item(seq)].tolist() if page >= 0]
        if max(listed, default=-1) >= self.pages:
            return f"page {max(listed)} is listed, but there are {self.pages} pages"
        counts = np.bincount(np.array(listed, np.int64), minlength=self.pages).tolist()
        for page, (count, holders) in enumerate(zip(counts, self._holders)):
            if count != holders:
                return f"page {page} is listed {count} times, but is held by {holders} sequences"
        if sorted(self._free) != [page for page, holders in enumerate(self._holders) if not holders]:
            return "the free pages are not those that no sequence holds"
        if np.count_nonzero(self.table >= 0) != len(listed):
            return "a row of no sequence, or behind a sequence's pages, lists a page"
        return None
