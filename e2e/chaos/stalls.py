"""How long I/O waited, and during which fault. Times are seconds of one monotonic clock. No I/O."""

from __future__ import annotations

import threading
from dataclasses import dataclass

NOTED_FROM = 0.05


@dataclass(frozen=True)
class Wait:
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Waits:
    """Requests of one workload that took `NOTED_FROM` seconds or longer, and those still under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: list[Wait] = []
        self._open: dict[int, float] = {}
        self.count = 0

    def begin(self, worker: int, now: float) -> None:
        with self._lock:
            self._open[worker] = now

    def end(self, worker: int, now: float) -> None:
        with self._lock:
            self.count += 1
            self._note(Wait(self._open.pop(worker), now))

    def note(self, start: float, end: float) -> None:
        """A request of which only the times are known."""
        with self._lock:
            self.count += 1
            self._note(Wait(start, end))

    def _note(self, wait: Wait) -> None:
        if wait.seconds >= NOTED_FROM:
            self._done.append(wait)

    def longest(self, start: float, end: float, now: float) -> float:
        """Seconds of the longest request that was under way at some time between start and end; waiting before
        `start` does not count. What is still under way counts until `now`."""
        with self._lock:
            waits = [*self._done, *(Wait(begun, max(now, begun)) for begun in self._open.values())]
        return max(
            (wait.end - max(wait.start, start) for wait in waits if wait.start < end and wait.end > start), default=0.0
        )

    def oldest(self, now: float) -> float:
        """Seconds the oldest request under way has waited."""
        with self._lock:
            return max((now - begun for begun in self._open.values()), default=0.0)
