"""Metrics of the MDS."""

from __future__ import annotations

from curve_storage.mds import health
from curve_storage.mds.picture import RETIRED
from curve_storage.mds.term import Term
from curve_storage.telemetry import metrics


class Figures:
    """Gauges about the cluster are set by the leader only; the others show 0 for `curve_mds_leader`."""

    def __init__(self) -> None:
        self._leader = metrics.gauge("curve_mds_leader", "1 on the MDS that leads")
        self._volumes = metrics.gauge("curve_mds_volumes", "Volumes outside the recycle bin")
        self._promised = metrics.gauge("curve_mds_volume_size_bytes", "Sum of the sizes of all volumes")
        self._allocated = metrics.gauge("curve_mds_pool_allocated_bytes", "Allocated to volumes", ("pool",))
        self._capacity = metrics.gauge("curve_mds_pool_capacity_bytes", "Usable, after replication", ("pool",))
        self._chunkservers = metrics.gauge("curve_mds_chunkservers", "Chunkservers in use by state", ("state",))
        self._copysets = metrics.gauge("curve_mds_copysets", "Copysets by state", ("state",))
        self._running = metrics.gauge("curve_mds_operators_running", "Placement steps under way")
        self._sessions = metrics.gauge("curve_mds_sessions", "Sessions of open volumes")
        self._recycled = metrics.gauge("curve_mds_recycle_bin_volumes", "Volumes in the recycle bin")
        self._waiting = metrics.gauge("curve_mds_removals_waiting", "Volumes whose removal waits for chunkservers")
        self._operators = metrics.counter("curve_mds_operators", "Placement steps by outcome", ("outcome",))
        self._terms = metrics.counter("curve_mds_terms", "Times this MDS became leader")

    def became_leader(self) -> None:
        self._leader.set(1)
        self._terms.inc()

    def stopped_leading(self) -> None:
        self._leader.set(0)

    def event(self, name: str) -> None:
        if name.startswith("operator_"):
            self._operators.labels(name.removeprefix("operator_")).inc()

    def collect(self, term: Term) -> None:
        core = term.core
        now = core.clock.monotonic()
        self._volumes.set(sum(1 for e in core.tables.entries.values() if not e.directory and not e.deleted_ms))
        self._promised.set(sum(core.tables.live_bytes.values()))
        for pool in core.tables.pools.values():
            self._capacity.labels(pool.name).set(core.pool_capacity(pool))
            self._allocated.labels(pool.name).set(core.tables.allocated_in(pool.id))
        states = {"online": 0, "unstable": 0, "offline": 0}
        for record in core.tables.chunkservers.values():
            if record.admin != RETIRED:
                states[core.monitor.online(record.id, now).name.lower()] += 1
        for state, number in states.items():
            self._chunkservers.labels(state).set(number)
        counts = health.counts(core)
        self._copysets.labels("all").set(counts.total)
        self._copysets.labels("available").set(counts.available)
        self._copysets.labels("healthy").set(counts.healthy)
        self._running.set(len(core.operators.running))
        self._sessions.set(term.sessions.count())
        self._recycled.set(len(core.tables.recycled()))
        self._waiting.set(len(term.cleaner.waiting))
