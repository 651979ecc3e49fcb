"""One group's log as its core sees it: a window of entries in memory over the durable log."""

from __future__ import annotations

from bisect import bisect_right

from curve_storage.consensus.entry import Entry
from curve_storage.consensus.raft_messages import Restored, Storage
from curve_storage.errors import Internal

_TRIM = 64
_TRIM_BYTES = 256 << 10


class RaftLog:
    """Indexes base_index + 1 … last. `runs` gives every entry's term without touching the disk."""

    __slots__ = (
        "_base_term",
        "_last_term",
        "_starts",
        "_terms",
        "base",
        "bytes",
        "entries",
        "last",
        "offset",
        "storage",
    )

    def __init__(self, restored: Restored, storage: Storage) -> None:
        self.storage = storage
        self.base = restored.base_index
        self._base_term = restored.base_term
        self.last = restored.last_index
        self._starts = [index for index, _ in restored.runs]
        self._terms = [term for _, term in restored.runs]
        self._last_term = self._terms[-1] if self._terms else self._base_term
        self.offset = self.last + 1
        """Index of entries[0]."""
        self.entries: list[Entry] = []
        self.bytes = 0

    @property
    def last_term(self) -> int:
        return self._last_term

    def term(self, index: int) -> int | None:
        """Term of the entry, None when it is beyond either end; the base entry's term is known."""
        if index > self.last or index < self.base:
            return None
        starts = self._starts
        if not starts or index == self.base:
            return self._base_term
        if index >= starts[-1]:
            return self._last_term
        at = bisect_right(starts, index) - 1
        return self._terms[at] if at >= 0 else self._base_term

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.bytes += entry.size
        self.last = entry.index
        term = entry.term
        if term != self._last_term or not self._starts:
            self._starts.append(entry.index)
            self._terms.append(term)
            self._last_term = term

    def extend(self, entries: list[Entry]) -> None:
        """Consecutive entries after the last one."""
        if entries[0].term != entries[-1].term:
            for entry in entries:
                self.append(entry)
            return
        self.append(entries[0])
        if len(entries) > 1:
            self.entries.extend(entries[1:])
            self.last = entries[-1].index
            self.bytes += sum([entry.size for entry in entries]) - entries[0].size

    def truncate(self, index: int) -> None:
        """Removes `index` and everything after it."""
        if index <= self.base:
            raise Internal(f"truncation at {index} reaches below the log's base {self.base}")
        while self._starts and self._starts[-1] >= index:
            self._starts.pop()
            self._terms.pop()
        self._last_term = self._terms[-1] if self._terms else self._base_term
        self.last = index - 1
        keep = max(index - self.offset, 0)
        self.bytes -= sum(entry.size for entry in self.entries[keep:])
        del self.entries[keep:]
        self.offset = min(self.offset, index)

    def slice(self, low: int, high: int, max_bytes: int, max_count: int) -> list[Entry]:
        """Entries low…high (inclusive), at least one when low ≤ high, cut at the limits."""
        offset = self.offset
        if low < offset:
            return self.storage.read(low, min(high, offset - 1, low + max_count - 1), max_bytes)
        start = low - offset
        found = self.entries[start : min(high - offset + 1, start + max_count)]
        if self.bytes <= max_bytes:
            return found
        total = 0
        for count, entry in enumerate(found):
            total += entry.size
            if total > max_bytes and count:
                del found[count:]
                break
        return found

    def trim(self, index: int) -> None:
        """Entries up to `index` may leave memory (in batches: moving a list costs)."""
        count = index - self.offset + 1
        if count >= _TRIM or (count > 0 and self.bytes > _TRIM_BYTES):
            gone = self.entries[:count]
            del self.entries[:count]
            self.offset += len(gone)
            self.bytes -= sum([entry.size for entry in gone])

    def compact(self, index: int) -> None:
        """Entries up to `index` have left the durable log; `index` becomes the base."""
        if index <= self.base:
            return
        if index > self.last:
            raise Internal(f"compaction to {index} is beyond the last entry {self.last}")
        term = self.term(index)
        assert term is not None
        if index == self.last:
            self._starts.clear()
            self._terms.clear()
        else:
            at = bisect_right(self._starts, index + 1) - 1
            del self._starts[:at]
            del self._terms[:at]
            self._starts[0] = index + 1
        self.base = index
        self._base_term = term
        drop = index - self.offset + 1
        if drop > 0:
            self.bytes -= sum(entry.size for entry in self.entries[:drop])
            del self.entries[:drop]
            self.offset = index + 1

    def reset(self, index: int, term: int) -> None:
        """A snapshot replaced everything."""
        self.base = self.last = index
        self._base_term = self._last_term = term
        self._starts.clear()
        self._terms.clear()
        self.entries.clear()
        self.bytes = 0
        self.offset = index + 1
