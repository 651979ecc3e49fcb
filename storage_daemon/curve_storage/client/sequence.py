"""Numbers of a writer's mutations in one copyset, which make a repeated request harmless.

The replicated state of a copyset remembers which numbers of the present writer it has applied. The client numbers its
mutations per copyset, sends the same number with every repetition, and tells the lowest number that it still waits
for, so that the copyset can forget what lies below. Counting per copyset, and not per volume, keeps that memory
small in all others while one copyset waits for its quorum.
"""

from __future__ import annotations


class Sequence:
    __slots__ = ("_next", "_open")

    def __init__(self) -> None:
        self._next = 1
        self._open: dict[int, None] = {}  # in order of insertion, which is the order of the numbers

    def begin(self) -> int:
        seq = self._next
        self._next = seq + 1
        self._open[seq] = None
        return seq

    def end(self, seq: int) -> None:
        """Acknowledged, or given up with an unknown outcome: from the next mutation on the copyset refuses it."""
        del self._open[seq]

    @property
    def low(self) -> int:
        for seq in self._open:
            return seq
        return self._next

    def __len__(self) -> int:
        return len(self._open)
