"""Prometheus metrics of a process: one registry of its own, metrics made where they are used.

`counter`, `gauge` and `histogram` return the existing metric when the name is known, so several instances of a
component in one process share it. Names are `curve_<part>_<what>_<unit>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from curve_storage.errors import InvalidArgument

LATENCY_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Seconds: from a cached read to the longest a person waits."""

_NAME = re.compile(r"^curve_[a-z][a-z0-9_]*$")
_registry = CollectorRegistry()
ProcessCollector(registry=_registry)
PlatformCollector(registry=_registry)
_metrics: dict[str, MetricWrapperBase] = {}
MetricT = TypeVar("MetricT", bound=MetricWrapperBase)


def registry() -> CollectorRegistry:
    return _registry


def counter(name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
    return _existing(name, Counter, lambda: Counter(name, documentation, labels, registry=_registry))


def gauge(name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
    return _existing(name, Gauge, lambda: Gauge(name, documentation, labels, registry=_registry))


def histogram(
    name: str, documentation: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS
) -> Histogram:
    return _existing(
        name, Histogram, lambda: Histogram(name, documentation, labels, registry=_registry, buckets=buckets)
    )


def _existing(name: str, kind: type[MetricT], make: Callable[[], MetricT]) -> MetricT:
    if not _NAME.match(name):
        raise InvalidArgument(f"{name!r} is not a metric name", todo="Use curve_<part>_<what>_<unit>")
    found = _metrics.get(name)
    if found is None:
        found = _metrics[name] = make()
    if not isinstance(found, kind):
        raise InvalidArgument(f"metric {name} exists as another kind", todo="Choose another name")
    return found
