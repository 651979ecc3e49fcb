"""Counts and latencies of chunk I/O: for the metrics endpoint and for rates in heartbeats."""

from __future__ import annotations

from dataclasses import dataclass

from curve_storage.telemetry import metrics

_latency = metrics.histogram("curve_chunkserver_io_seconds", "From request to reply, by operation", ("op",))
_bytes = metrics.counter("curve_chunkserver_io_bytes", "Payload bytes of answered requests, by operation", ("op",))


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, since the last call."""

    read_iops: int = 0
    write_iops: int = 0
    read_bps: int = 0
    write_bps: int = 0


class Statistics:
    def __init__(self) -> None:
        self._read = _latency.labels("read").observe
        self._write = _latency.labels("write").observe
        self._read_bytes = _bytes.labels("read").inc
        self._write_bytes = _bytes.labels("write").inc
        self.reads = self.writes = self.bytes_read = self.bytes_written = 0
        self._last: tuple[float, int, int, int, int] | None = None

    def read(self, length: int, seconds: float) -> None:
        self.reads += 1
        self.bytes_read += length
        self._read(seconds)
        self._read_bytes(length)

    def wrote(self, length: int, seconds: float) -> None:
        self.writes += 1
        self.bytes_written += length
        self._write(seconds)
        self._write_bytes(length)

    def rates(self, now: float) -> Rates:
        """now: monotonic seconds."""
        current = (now, self.reads, self.writes, self.bytes_read, self.bytes_written)
        last, self._last = self._last, current
        if last is None or now <= last[0]:
            return Rates()
        return Rates(*(int((new - old) / (now - last[0])) for new, old in zip(current[1:], last[1:], strict=True)))
