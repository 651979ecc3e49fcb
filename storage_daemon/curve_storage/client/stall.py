"""What I/O waits for: one sentence while it waits, one log line when that begins and one when it ends."""

from __future__ import annotations

from curve_storage.clock import Clock
from curve_storage.telemetry import logs

NOTICE_AFTER = 1.0

_log = logs.get("client")


class StallMonitor:
    """Requests that could not be answered at the first attempt report here until they are done.

    A wait shorter than a second (an election, a reconnect) is not a stall. `seconds` counts time spent stalled.
    """

    def __init__(self, clock: Clock, where: str) -> None:
        self._clock = clock
        self._where = where
        self._waiting: dict[int, float] = {}
        self._reason = ""
        self._stalled_since: float | None = None
        self._past = 0.0
        self.count = 0

    def waiting(self, key: int, reason: str, age: float = 0.0) -> None:
        """Request `key`, `age` seconds old, waits for `reason`; repeated while it does."""
        now = self._clock.monotonic()
        since = self._waiting.setdefault(key, now - age)
        self._reason = reason
        if self._stalled_since is None and now - since >= NOTICE_AFTER:
            self._stalled_since = since
            self.count += 1
            _log.warning("io_stalled", volume=self._where, waiting_for=reason)

    def done(self, key: int) -> None:
        if self._waiting.pop(key, None) is None or self._waiting or self._stalled_since is None:
            return
        stalled = self._clock.monotonic() - self._stalled_since
        self._past += stalled
        self._stalled_since = None
        _log.warning("io_resumed", volume=self._where, stalled_seconds=round(stalled, 3), waited_for=self._reason)

    def reason(self) -> str | None:
        if not self._waiting:
            return None
        oldest = next(iter(self._waiting.values()))
        return self._reason if self._clock.monotonic() - oldest >= NOTICE_AFTER else None

    @property
    def seconds(self) -> float:
        running = self._clock.monotonic() - self._stalled_since if self._stalled_since is not None else 0.0
        return self._past + running
