"""What a leader knows of one member: how far its log matches, and what is on the way to it."""

from __future__ import annotations

from collections import deque
from typing import Final

PROBE: Final = 0
"""The matching point is unknown: one append at a time."""
REPLICATE: Final = 1
"""Appends are pipelined, limited by a window of messages and bytes."""
SNAPSHOT: Final = 2
"""The member is being sent a snapshot: no appends."""


class Progress:
    __slots__ = (
        "active", "born", "hibernated", "inflight", "inflight_bytes", "match", "next", "probing", "stamp", "state",
    )  # fmt: skip

    def __init__(self, next_index: int, born: int = 0) -> None:
        self.born = born
        """Answers to messages sent before this stamp are about a replica that may have been replaced since."""
        self.match = 0
        self.next = next_index
        self.state = PROBE
        self.probing = False
        self.stamp = 0
        """Send time (ns, leader's clock) of the newest message that the member has answered."""
        self.active = 0.0
        """When it was last heard, or last made progress with a snapshot."""
        self.inflight: deque[tuple[int, int]] = deque()
        self.inflight_bytes = 0
        self.hibernated = 0

    def sent(self, last: int, size: int) -> None:
        if self.state == PROBE:
            self.probing = True  # `next` stays until the answer
        else:
            self.next = last + 1
            self.inflight.append((last, size))
            self.inflight_bytes += size

    def acknowledged(self, index: int) -> bool:
        """The member's log matches up to `index`, durably. True when that is news."""
        if index <= self.match:
            return False
        self.match = index
        if self.next <= index:
            self.next = index + 1
        inflight = self.inflight
        while inflight and inflight[0][0] <= index:
            self.inflight_bytes -= inflight.popleft()[1]
        if self.state == PROBE:
            self.replicate()
        return True

    def replicate(self) -> None:
        self.state = REPLICATE
        self.probing = False
        self.next = self.match + 1
        self._clear()

    def probe(self, next_index: int) -> None:
        self.state = PROBE
        self.probing = False
        self.next = max(next_index, self.match + 1)
        self._clear()

    def snapshot(self) -> None:
        self.state = SNAPSHOT
        self.probing = False
        self._clear()

    def _clear(self) -> None:
        self.inflight.clear()
        self.inflight_bytes = 0
