"""Order between a read-modify-write of a block and every other mutation of the same block.

A write that does not cover whole blocks reads the block, changes a part and writes it back. Were another mutation of
the block applied in between, it would be lost although it was acknowledged. So such a write is exclusive on its
blocks: it waits for earlier mutations there, and later ones wait for it. Whole-block mutations are shared: they do
not wait for each other, and cost two dictionary operations each.

Two overlapping whole-block writes that are in flight together may land in either order, as on any disk; who needs an
order waits for the first before submitting the second.
"""

from __future__ import annotations

import asyncio


class _Entry:
    __slots__ = ("done", "end", "exclusive", "start")

    def __init__(self, start: int, end: int, exclusive: bool) -> None:
        self.start = start
        self.end = end
        self.exclusive = exclusive
        self.done: asyncio.Future[None] | None = None


class RangeOrder:
    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._next = 0
        self._exclusives = 0

    def shared(self, start: int, end: int) -> tuple[int, list[asyncio.Future[None]]]:
        """Registers a whole-block mutation of bytes [start, end). Returns its key for `leave` and what to wait for
        before it may go (mostly nothing)."""
        key = self._next
        self._next = key + 1
        waits = self._conflicts(start, end, only_exclusive=True) if self._exclusives else []
        self._entries[key] = _Entry(start, end, False)
        return key, waits

    def exclusive(self, start: int, end: int) -> tuple[int, list[asyncio.Future[None]]]:
        """The same for a read-modify-write of the blocks in [start, end)."""
        key = self._next
        self._next = key + 1
        waits = self._conflicts(start, end, only_exclusive=False)
        self._entries[key] = _Entry(start, end, True)
        self._exclusives += 1
        return key, waits

    def leave(self, key: int) -> None:
        entry = self._entries.pop(key)
        if entry.exclusive:
            self._exclusives -= 1
        if entry.done is not None and not entry.done.done():
            entry.done.set_result(None)

    def __len__(self) -> int:
        return len(self._entries)

    def _conflicts(self, start: int, end: int, *, only_exclusive: bool) -> list[asyncio.Future[None]]:
        # Only earlier entries are waited for, so there is no cycle and no deadlock.
        found: list[asyncio.Future[None]] = []
        for entry in self._entries.values():
            if entry.start < end and start < entry.end and (entry.exclusive or not only_exclusive):
                if entry.done is None:
                    entry.done = asyncio.get_running_loop().create_future()
                found.append(entry.done)
        return found
