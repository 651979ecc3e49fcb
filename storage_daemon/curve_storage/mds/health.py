"""One word for the cluster's health, and the reasons with names and what to do. Pure over state and reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from curve_storage.mds.core import Core
from curve_storage.mds.monitor import Disk, Online
from curve_storage.mds.picture import PENDING, RETIRED, attention, view
from curve_storage.mds.records import ChunkServerRecord
from curve_storage.mds.schedulers import recover
from curve_storage.units import format_size

HEALTHY, DEGRADED, UNAVAILABLE = "healthy", "degraded", "unavailable"
NEARLY_FULL = 0.85
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Reason:
    code: str
    message: str
    critical: bool = False


@dataclass(slots=True)
class CopysetCounts:
    total: int = 0
    healthy: int = 0
    available: int = 0


def word(reasons: Iterable[Reason]) -> str:
    found = list(reasons)
    if any(reason.critical for reason in found):
        return UNAVAILABLE
    return DEGRADED if found else HEALTHY


def name(record: ChunkServerRecord) -> str:
    return f"chunkserver {record.id} (server {record.server}, {record.address or 'address unknown'})"


def enumerate_some(items: list[str]) -> str:
    """The first few, and how many more."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def counts(core: Core) -> CopysetCounts:
    now = core.clock.monotonic()
    total = len(core.tables.copysets)
    result = CopysetCounts(total, total, total)
    for key in attention(core.tables, core.monitor, now):
        record = core.tables.copysets[key]
        result.available -= not core.monitor.available(record, now, patient=True)
        result.healthy -= not core.monitor.healthy(record, now, core.tables.pools[record.pool].replicas)
    return result


def judge(core: Core) -> list[Reason]:
    """All reasons why the cluster is not healthy, the critical ones first."""
    now = core.clock.monotonic()
    in_use = [r for r in core.tables.chunkservers.values() if r.admin != RETIRED]
    if core.monitor.in_grace([r.id for r in in_use], now):
        missing = sum(1 for r in in_use if not core.monitor.heard(r.id) or not core.monitor.servers[r.id].full)
        return [
            Reason(
                "collecting_reports",
                f"this MDS took over {now - core.monitor.started:.0f} s ago and waits for the reports of {missing} of "
                f"{len(in_use)} chunkservers; nothing needs to be done",
            )
        ]
    reasons = [*_pools(core), *_chunkservers(core, in_use, now), *_copysets(core, now), *_space(core)]
    return sorted(reasons, key=lambda reason: not reason.critical)


def _pools(core: Core) -> Iterable[Reason]:
    if not core.tables.pools:
        yield Reason("no_pool", "there is no pool yet, so no volume can be made: curve pool create")
    for pool in core.tables.pools.values():
        if not pool.complete:
            yield Reason("pool_incomplete", f"the creation of pool {pool.name} was cut short: create it again to go on")


def _chunkservers(core: Core, in_use: list[ChunkServerRecord], now: float) -> Iterable[Reason]:
    for record in in_use:
        online = core.monitor.online(record.id, now)
        state = core.monitor.servers.get(record.id)
        silent = now - (state.last if state else core.monitor.started)
        holds = len(core.tables.copysets_of.get(record.id, ()))
        if online is Online.OFFLINE:
            if record.admin == PENDING and not holds:
                continue
            what = f"its {holds} copysets are being moved" if holds else "it holds no copysets"
            yield Reason(
                "chunkserver_offline",
                f"{name(record)} has been silent for {silent:.0f} s and counts as lost; {what}. Start it again, "
                f"or have it emptied: curve chunkserver drain {record.id}",
            )
        elif online is Online.UNSTABLE:
            left = max(0.0, core.config.heartbeat.offline_after - silent)
            yield Reason(
                "chunkserver_unstable",
                f"{name(record)} has been silent for {silent:.0f} s. Start it again; in {left:.0f} s its data begin "
                f"to be copied elsewhere",
            )
        elif state is not None and state.beat.disk is Disk.ERROR:
            yield Reason(
                "disk_error",
                f"the disk of {name(record)} fails: {state.beat.disk_message or 'I/O errors'}. Replace it; its "
                f"copysets are being moved",
            )
        elif state is not None and state.beat.disk is Disk.FULL:
            yield Reason(
                "disk_full",
                f"the disk of {name(record)} is full and takes no more writes. Delete volumes or add chunkservers",
            )


def _copysets(core: Core, now: float) -> Iterable[Reason]:
    waiting, unavailable, lost, creating = [], [], [], 0
    picture = view(core.tables, core.monitor, core.operators.steps(), now=now, per_node=1)
    for group in picture.noticed():
        record = core.tables.copysets[group.key]
        text = f"{record.pool}/{record.id}"
        if not core.monitor.available(record, now, patient=True):
            if record.established:
                unavailable.append(text)
            else:
                creating += 1
        elif group.lost:
            lost.append(text)
        elif len(group.members) < group.replicas:
            waiting.append(text)
    if unavailable:
        yield Reason(
            "copyset_unavailable",
            f"{len(unavailable)} copysets have no leader with a quorum, I/O to their chunks waits: "
            f"{enumerate_some(unavailable)}. Start the chunkservers named here as silent",
            critical=True,
        )
    if creating:
        yield Reason("copyset_creating", f"{creating} copysets are being created; nothing needs to be done")
    if lost:
        yield Reason(
            "replica_lost",
            f"{len(lost)} copysets have a corrupt or missing replica, which is being rebuilt: {enumerate_some(lost)}",
        )
    if waiting:
        yield Reason(
            "copyset_degraded",
            f"{len(waiting)} copysets have fewer replicas than they should: {enumerate_some(waiting)}",
        )
    stuck = recover.stuck(picture)
    if stuck:
        names = enumerate_some([f"{g.key[0]}/{g.key[1]}" for g in stuck])
        yield Reason(
            "recovery_stuck",
            f"{len(stuck)} copysets have a member that is lost, and no chunkserver in a free zone can take its place: "
            f"{names}. Start that chunkserver again or add one in its zone",
        )


def _space(core: Core) -> Iterable[Reason]:
    for pool in core.tables.pools.values():
        total = used = 0
        for member in core.members_of_pool(pool):
            capacity, taken = core.reported(member)
            total, used = total + capacity, used + taken
        if total and used / total >= NEARLY_FULL:
            yield Reason(
                "pool_nearly_full",
                f"pool {pool.name} is {100 * used / total:.0f} % full ({format_size(total - used)} of "
                f"{format_size(total)} raw are left). Add chunkservers or delete volumes",
            )
