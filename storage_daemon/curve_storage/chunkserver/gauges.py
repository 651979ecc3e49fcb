"""Gauges of a chunkserver, read when the metrics page is asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from curve_storage.chunkserver.copysets import Copysets
from curve_storage.chunkserver.disk_state import DiskMonitor
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.consensus.api import ConsensusHost, Role


class ChunkServerGauges(Collector):
    def __init__(self, host: ConsensusHost, copysets: Copysets, pool: ChunkPool, disk: DiskMonitor) -> None:
        self._host = host
        self._copysets = copysets
        self._pool = pool
        self._disk = disk

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        pool = self._pool.status()
        statuses = self._host.statuses()
        hollow = sum(len(one.chunks.hollow) for one in self._copysets.by_group.values())
        values: dict[str, tuple[str, float]] = {
            "pool_free": ("Chunk files ready for use", pool.free),
            "pool_total": ("Chunk files, used and free", pool.total),
            "pool_format_percent": ("Progress of making the chunk pool", pool.format_percent),
            "copysets": ("Replicas on this disk", len(statuses)),
            "leaders": ("Copysets this chunkserver leads", sum(one.role is Role.LEADER for one in statuses)),
            "copysets_damaged": (
                "Replicas out of service until they are rebuilt",
                len(self._copysets.damaged) + sum(one.corrupt for one in statuses),
            ),
            "copysets_hibernating": ("Idle replicas without timers", sum(one.hibernating for one in statuses)),
            "apply_lag": ("Committed entries not yet applied", sum(one.commit - one.applied for one in statuses)),
            "chunks": ("Chunks on this disk", sum(len(one.chunks) for one in self._copysets.by_group.values())),
            "chunks_hollow": ("Chunks whose content is still to be fetched", hollow),
            "read_only": ("1 while the file system is full", float(self._disk.read_only)),
        }
        for name, (text, value) in values.items():
            yield GaugeMetricFamily(f"curve_chunkserver_{name}", text, value=value)
