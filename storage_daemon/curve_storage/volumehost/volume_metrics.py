"""What the host's /metrics says of its volumes, from the last answers of their data processes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from curve_storage.fuse.statistics import BUCKETS
from curve_storage.volumehost.attachment import Condition
from curve_storage.volumehost.host import VolumeHost

_LABELS = ("volume", "path")


class VolumeCollector(Collector):
    """Counters start anew with each data process, as Prometheus expects of a restart."""

    def __init__(self, host: VolumeHost) -> None:
        self._host = host

    def collect(self) -> Iterable[Metric]:
        seconds = HistogramMetricFamily(
            "curve_volume_request_seconds", "Duration of requests of the block device", labels=(*_LABELS, "operation")
        )
        transferred = CounterMetricFamily(
            "curve_volume_bytes", "Bytes read and written", labels=(*_LABELS, "operation")
        )
        errors = CounterMetricFamily("curve_volume_errors", "Requests answered with an error", labels=_LABELS)
        resent = CounterMetricFamily(
            "curve_volume_resent_requests", "Repeated by the kernel at takeover", labels=_LABELS
        )
        inflight = GaugeMetricFamily("curve_volume_inflight_requests", "Requests in hand", labels=_LABELS)
        oldest = GaugeMetricFamily("curve_volume_oldest_request_seconds", "Age of the oldest request", labels=_LABELS)
        takeovers = CounterMetricFamily(
            "curve_volume_takeovers", "Data processes replaced after a death", labels=_LABELS
        )
        condition = GaugeMetricFamily("curve_volume_condition", "1 for the present one", labels=(*_LABELS, "condition"))
        for attachment in self._host.attachments.values():
            labels = [str(attachment.volume_id), attachment.state.path]
            report = attachment.report
            statistics: dict[str, Any] = report.get("statistics") or {}
            for operation in ("reads", "writes", "others"):
                found = statistics.get(operation)
                if found:
                    bounds = [*map(str, BUCKETS), "+Inf"]
                    buckets = list(zip(bounds, accumulate(found["counts"]), strict=True))
                    seconds.add_metric([*labels, operation], buckets, found["seconds"])
                    transferred.add_metric([*labels, operation], found["bytes"])
            errors.add_metric(labels, statistics.get("errors", 0))
            resent.add_metric(labels, statistics.get("resent", 0))
            inflight.add_metric(labels, report.get("inflight", 0))
            oldest.add_metric(labels, report.get("oldest", 0.0))
            takeovers.add_metric(labels, attachment.state.takeovers)
            present, _ = attachment.condition()
            for one in Condition:
                condition.add_metric([*labels, one.value], float(one is present))
        return [seconds, transferred, errors, resent, inflight, oldest, takeovers, condition]
