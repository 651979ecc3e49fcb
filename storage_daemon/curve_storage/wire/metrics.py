"""What the data port counts, read from the servers' own plain integers at the moment of a scrape.

A Prometheus counter costs more per increment than handling a request may; these cost nothing until someone asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from curve_storage.telemetry import metrics
from curve_storage.wire.messages import MessageType


class Counted(Protocol):
    inflight: int
    inflight_bytes: int
    refused: int
    violations: int

    @property
    def connections(self) -> int: ...

    def requests(self) -> dict[int, int]: ...


class WireCollector(Collector):
    def __init__(self) -> None:
        self._servers: list[Counted] = []

    def add(self, server: Counted) -> None:
        """From its start to its stop: nothing else lets go of it."""
        self._servers.append(server)

    def remove(self, server: Counted) -> None:
        if server in self._servers:
            self._servers.remove(server)

    def collect(self) -> Iterator[Metric]:
        servers = list(self._servers)
        for name, help_text, value in (
            ("connections", "Open data connections", sum(server.connections for server in servers)),
            ("inflight", "Requests being handled", sum(server.inflight for server in servers)),
            ("inflight_bytes", "Payload of requests being handled", sum(server.inflight_bytes for server in servers)),
        ):
            yield GaugeMetricFamily(f"curve_wire_server_{name}", help_text, value=value)
        for name, help_text, value in (
            ("overloaded", "Requests refused because too many were in flight", sum(one.refused for one in servers)),
            ("violations", "Connections closed for breaking the protocol", sum(one.violations for one in servers)),
        ):
            yield CounterMetricFamily(f"curve_wire_server_{name}", help_text, value=value)
        totals: dict[int, int] = {}
        for server in servers:
            for kind, count in server.requests().items():
                totals[kind] = totals.get(kind, 0) + count
        requests = CounterMetricFamily(
            "curve_wire_server_requests", "Requests admitted, by message type", labels=["type"]
        )
        for kind, count in sorted(totals.items()):
            requests.add_metric([_NAMES.get(kind, str(kind))], count)
        yield requests


_NAMES = {int(kind): kind.name.lower() for kind in MessageType}
collector = WireCollector()
metrics.registry().register(collector)
