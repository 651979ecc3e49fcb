"""The volume's own limit on requests and bytes per second, applied where the bytes enter."""

from __future__ import annotations


class Bucket:
    """A token bucket that may go into debt: a request larger than the burst passes and delays the ones after it.

    rate: tokens per second, 0 = unlimited; burst: tokens that may be used at once, one second's worth by default.
    """

    def __init__(self, rate: float, now: float, burst: float | None = None) -> None:
        self.rate = rate
        self.burst = burst if burst is not None else rate
        self._tokens = self.burst
        self._at = now

    def take(self, amount: float, now: float) -> float:
        """Seconds to wait before the request may go. Callers are served in the order of their calls."""
        if not self.rate:
            return 0.0
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        self._tokens -= amount
        return max(0.0, -self._tokens / self.rate)


class VolumeThrottle:
    """IOPS and bytes together: a request waits for the later of the two."""

    def __init__(self) -> None:
        self._iops = Bucket(0, 0.0)
        self._bytes = Bucket(0, 0.0)
        self.limits = (0, 0)
        self.active = False

    def configure(self, iops: int, bytes_per_second: int, now: float) -> None:
        if (iops, bytes_per_second) == self.limits:
            return
        self.limits = (iops, bytes_per_second)
        self._iops = Bucket(iops, now)
        self._bytes = Bucket(bytes_per_second, now)
        self.active = bool(iops or bytes_per_second)

    def take(self, length: int, now: float) -> float:
        return max(self._iops.take(1, now), self._bytes.take(length, now))
