"""Which chunkservers answer: an address that repeatedly does not is shunned for a while."""

from __future__ import annotations

from curve_storage.clock import Clock

TIMEOUTS_TO_SHUN = 3
TIMEOUT_SPACING = 0.2
SHUN_SECONDS = 5.0
REFUSED_SECONDS = 1.0


class PeerHealth:
    """Shared by all volumes of a process: what one learns about a chunkserver helps the others."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._timeouts: dict[str, int] = {}
        self._counted: dict[str, float] = {}
        self._until: dict[str, float] = {}

    def answered(self, address: str) -> None:
        if self._timeouts:
            self._timeouts.pop(address, None)
        if self._until:
            self._until.pop(address, None)

    def timed_out(self, address: str) -> None:
        """No answer for long. Many requests that wait together count once: what counts is time without any answer."""
        now = self._clock.monotonic()
        if now - self._counted.get(address, float("-inf")) < TIMEOUT_SPACING:
            return
        self._counted[address] = now
        count = self._timeouts.get(address, 0) + 1
        self._timeouts[address] = count
        if count >= TIMEOUTS_TO_SHUN:
            self._until[address] = now + SHUN_SECONDS

    def refused(self, address: str) -> None:
        """No connection, or a broken one."""
        self._until[address] = max(self._until.get(address, 0.0), self._clock.monotonic() + REFUSED_SECONDS)

    def shunned(self, address: str) -> bool:
        if not self._until:
            return False
        until = self._until.get(address)
        if until is None:
            return False
        if until <= self._clock.monotonic():
            del self._until[address]
            return False
        return True
