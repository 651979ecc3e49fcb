"""Counters of one open volume, cheap enough for every request, and their Prometheus form.

`VolumeCollector(volume.statistics, path)` registered in a process's registry exports
curve_client_{read,write,discard}_seconds (histograms), curve_client_{read,write,discard}_bytes_total,
curve_client_inflight, curve_client_stalled, curve_client_stalled_seconds_total, curve_client_stalls_total and
curve_client_throttled_seconds_total, each with the label `volume`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from curve_storage.client.stall import StallMonitor

BUCKETS = 24
"""Powers of two of a microsecond: 1 µs to 8 s, the last one takes everything longer."""


class Operation:
    """count, bytes, seconds of one kind of operation; buckets[i]: those of 2**(i-1) to 2**i µs."""

    __slots__ = ("buckets", "bytes", "count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.seconds = 0.0
        self.buckets = [0] * (BUCKETS + 1)

    def add(self, length: int, seconds: float) -> None:
        self.count += 1
        self.bytes += length
        self.seconds += seconds
        self.buckets[min(BUCKETS, int(seconds * 1e6).bit_length())] += 1


class VolumeStatistics:
    def __init__(self, inflight: Callable[[], int], stall: StallMonitor) -> None:
        self.read = Operation()
        self.write = Operation()
        self.discard = Operation()
        self.throttled_seconds = 0.0
        self.inflight = inflight
        self.stall = stall


class VolumeCollector(Collector):
    def __init__(self, statistics: VolumeStatistics, volume: str) -> None:
        self._statistics = statistics
        self._labels = [volume]

    def collect(self) -> Iterator[Metric]:
        statistics = self._statistics
        for name, operation in (
            ("read", statistics.read),
            ("write", statistics.write),
            ("discard", statistics.discard),
        ):
            running = 0
            cumulative: list[tuple[str, float]] = []
            for power, count in enumerate(operation.buckets[:BUCKETS]):
                running += count
                cumulative.append((repr(2.0**power / 1e6), float(running)))
            cumulative.append(("+Inf", float(operation.count)))
            histogram = HistogramMetricFamily(
                f"curve_client_{name}_seconds", f"Time of a {name} as its caller sees it", labels=["volume"]
            )
            histogram.add_metric(self._labels, cumulative, operation.seconds)
            yield histogram
            yield self._counter(f"curve_client_{name}_bytes", f"Bytes of {name} operations", operation.bytes)
        yield self._gauge("curve_client_inflight", "Chunk requests under way", statistics.inflight())
        stalled = statistics.stall.reason() is not None
        yield self._gauge("curve_client_stalled", "1 while I/O waits for more than a second", float(stalled))
        yield self._counter("curve_client_stalled_seconds", "Time with I/O waiting", statistics.stall.seconds)
        yield self._counter("curve_client_stalls", "Times that I/O began to wait", statistics.stall.count)
        yield self._counter(
            "curve_client_throttled_seconds", "Delay from the volume's own limits", statistics.throttled_seconds
        )

    def _counter(self, name: str, text: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(name, text, labels=["volume"])
        family.add_metric(self._labels, value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=["volume"])
        family.add_metric(self._labels, value)
        return family
