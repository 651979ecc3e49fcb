"""Counters and latency histograms of one session, cheap enough for every request."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

# Upper bounds in seconds; slower ones are counted in a last bucket.
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    __slots__ = ("bytes", "counts", "longest", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0
        self.bytes = 0
        self.longest = 0.0

    def observe(self, seconds: float, size: int) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds
        self.bytes += size
        if seconds > self.longest:
            self.longest = seconds

    @property
    def total(self) -> int:
        return sum(self.counts)

    def as_dict(self) -> dict[str, Any]:
        return {"counts": list(self.counts), "seconds": self.seconds, "bytes": self.bytes, "longest": self.longest}


class Statistics:
    """reads, writes, others: completed requests by kind; errors: answered with an unexpected errno."""

    __slots__ = ("errors", "others", "reads", "resent", "writes")

    def __init__(self) -> None:
        self.reads = Histogram()
        self.writes = Histogram()
        self.others = Histogram()
        self.errors = 0
        self.resent = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "reads": self.reads.as_dict(),
            "writes": self.writes.as_dict(),
            "others": self.others.as_dict(),
            "errors": self.errors,
            "resent": self.resent,
        }
