"""What was seen and planned → `status`, and the events of what changed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from curve_operator.actions import Finding, Plan
from curve_operator.models.status import (
    Capacity,
    ClusterStatus,
    Condition,
    CopysetCount,
    DaemonCount,
    Daemons,
    DiskStatus,
    Endpoints,
    Health,
    Phase,
    PoolStatus,
)
from curve_operator.observed import Observed, ready_replicas, trouble
from curve_operator.placement import Layout, Slot
from curve_operator.plan import view_of
from curve_operator.settings import Settings
from curve_storage.units import format_size

REPORTS = {"DisksRemoved", "DeletionBlocked"}
"""Conditions that report trouble when True; the others do when False."""


TOLD_AT_ONCE = {"Accepted", "DataRemoved", "DeletionBlocked", "Reconciled"}
"""Trouble worth an event when first seen; of the others only a change is, or every new cluster would warn."""


@dataclass(frozen=True)
class EventText:
    type: str  # Normal or Warning
    reason: str
    message: str


def make_status(
    settings: Settings, observed: Observed, plan: Plan, where: Layout, now: datetime, errors: Sequence[str] = ()
) -> ClusterStatus:
    """errors: what went wrong while acting, in the words of whoever refused."""
    mds = observed.mds
    before = observed.status
    daemons = _daemons(settings, observed, where)
    wanted = daemons.etcd.desired + daemons.mds.desired + daemons.chunkserver.desired
    running = daemons.etcd.ready + daemons.mds.ready + daemons.chunkserver.ready
    pool_created = bool(before.get("poolCreated")) or any(item.name == settings.storage.pool.name for item in mds.pools)
    waiting = [*plan.waiting]
    findings = list(plan.findings)
    if errors:
        findings.append(Finding("Reconciled", False, "ActionFailed", "; ".join(errors)))
        waiting.extend(f"an action to succeed: {error}" for error in errors)
    else:
        findings.append(Finding("Reconciled", True, "Succeeded"))
    ready = pool_created and mds.known and mds.health != "unavailable" and not settings.problems
    phase = _phase(settings, observed, plan, ready=ready, pool_created=pool_created, all_up=running == wanted > 0)
    health, reasons = _health(observed, plan, pool_created=pool_created)
    message = _message(settings, phase, health, waiting, reasons)
    findings.append(Finding("Ready", ready, "Serving" if ready else "NotServing", message))
    findings.append(
        Finding("Progressing", bool(waiting or plan.actions), "Working" if waiting or plan.actions else "Settled",
                "; ".join(waiting[:3]))
    )  # fmt: skip
    return ClusterStatus(
        observed_generation=settings.generation,
        phase=phase,
        health=health,
        message=message,
        reasons=reasons,
        waiting_for=waiting,
        notes=[*settings.notes, *where.notes],
        ready=f"{running}/{wanted}",
        daemons=daemons,
        disks=[_disk(slot, observed) for slot in where.slots]
        + [
            DiskStatus(name=item.name, node=item.node, path=item.path, zone=item.zone, state="Removed")
            for item in where.removed
        ],
        copysets=CopysetCount(total=mds.copysets, healthy=mds.copysets_healthy, available=mds.copysets_available),
        capacity=_capacity(observed),
        pools=[
            PoolStatus(
                name=item.name,
                replicas=item.replicas,
                copysets=item.copysets,
                copysets_healthy=item.copysets_healthy,
                capacity=format_size(item.capacity),
                used=format_size(item.used),
            )
            for item in mds.pools
        ],
        volumes=mds.volumes if mds.known else int(before.get("volumes") or 0),
        cluster_id=mds.cluster_id or str(before.get("clusterId") or ""),
        pool_created=pool_created,
        mds_leader=mds.leader,
        version=", ".join(mds.versions) or str(before.get("version") or ""),
        versions=list(mds.versions),
        endpoints=Endpoints(
            mds=settings.mds_addresses,
            etcd=settings.etcd_endpoints,
            client_config_map=settings.client_config,
            client_secret=settings.client_secret if settings.tls else "",
        ),
        conditions=_conditions(findings, before.get("conditions") or [], settings.generation, now),
    )


def unreadable(resource: Mapping[str, Any], error: str, now: datetime) -> ClusterStatus:
    """For a resource that does not fit the model: everything else of its status stays as it was."""
    before = ClusterStatus.model_validate(resource.get("status") or {})
    generation = int(resource["metadata"].get("generation") or 0)
    finding = Finding("Accepted", False, "BadSpec", error)
    present = [item.model_dump(by_alias=True) for item in before.conditions]
    return before.model_copy(
        update={
            "observed_generation": generation,
            "phase": "Failed",
            "message": error,
            "conditions": _conditions([finding], present, generation, now, keep=True),
        }
    )


def _daemons(settings: Settings, observed: Observed, where: Layout) -> Daemons:
    def count(names: Sequence[str]) -> int:
        return sum(ready_replicas(observed.get("StatefulSet", name)) for name in names)

    members = [] if settings.etcd.external else [settings.etcd_member(index) for index in range(settings.etcd.count)]
    slots = [slot.name for slot in where.slots]
    return Daemons(
        etcd=DaemonCount(ready=count(members), desired=len(members)),
        mds=DaemonCount(ready=count([settings.mds_service]), desired=settings.mds.count),
        chunkserver=DaemonCount(ready=count(slots), desired=len(slots)),
    )


def _phase(
    settings: Settings, observed: Observed, plan: Plan, *, ready: bool, pool_created: bool, all_up: bool
) -> Phase:
    if observed.deleting:
        return "Deleting"
    if settings.problems:
        return "Failed"
    if not pool_created:
        return "Creating" if observed.workloads("etcd") or observed.workloads("mds") else "Pending"
    if plan.updating:
        return "Updating"
    return "Ready" if ready or all_up else "Creating" if not observed.mds.known and not observed.status else "Ready"


def _health(observed: Observed, plan: Plan, *, pool_created: bool) -> tuple[Health, list[str]]:
    mds = observed.mds
    trouble_found = [
        finding.message
        for finding in plan.findings
        if finding.ok is False and finding.message and finding.type not in REPORTS
    ]
    if not mds.known:
        if pool_created:
            return "Unavailable", [f"the MDS does not answer: {mds.error}", *trouble_found]
        return "Unknown", trouble_found
    reasons = [*mds.reasons, *trouble_found]
    if not pool_created:
        return "Unknown", reasons
    named: dict[str, Health] = {"healthy": "Healthy", "degraded": "Degraded", "unavailable": "Unavailable"}
    health = named.get(mds.health, "Unknown")
    if health == "Healthy" and trouble_found:
        health = "Degraded"
    return health, list(dict.fromkeys(reasons))


def _message(settings: Settings, phase: str, health: str, waiting: list[str], reasons: list[str]) -> str:
    if phase == "Deleting":
        return f"deletion waits: {waiting[0]}" if waiting else "the cluster is being deleted"
    if settings.problems:
        return settings.problems[0]
    if phase != "Ready" and waiting:
        return f"waiting for {waiting[0]}"
    if health == "Healthy":
        return "the cluster serves volumes"
    if reasons:
        return reasons[0]
    return f"waiting for {waiting[0]}" if waiting else "the cluster is being made"


def _capacity(observed: Observed) -> Capacity:
    mds = observed.mds
    if not mds.known:
        return Capacity.model_validate(observed.status.get("capacity") or {})
    usable = sum(pool.capacity for pool in mds.pools)
    used = sum(pool.used for pool in mds.pools)
    return Capacity(
        total_bytes=usable,
        used_bytes=used,
        volume_bytes=mds.volume_bytes,
        total=format_size(usable),
        used=format_size(used),
    )


def _disk(slot: Slot, observed: Observed) -> DiskStatus:
    seen = view_of(slot.name, observed)
    base = DiskStatus(name=slot.name, node=slot.node, path=slot.disk.path, zone=slot.zone)
    why = next((text for text in (trouble(pod) for pod in observed.pods_of(slot.name)) if text), "")
    if seen is not None and seen.online:
        if seen.state == "error":
            return base.model_copy(update={"state": "Failed", "message": why or "the disk reports errors"})
        state = "Formatting" if seen.state == "formatting" else "Ready"
        message = "the disk is full: reads go on, writes wait" if seen.state == "full" else ""
        return base.model_copy(update={"state": state, "progress": seen.format_percent, "message": message})
    if why:
        return base.model_copy(update={"state": "Failed", "message": why})
    pods = observed.pods_of(slot.name)
    return base.model_copy(update={"state": "Preparing" if pods else "Waiting"})


def _conditions(
    findings: Sequence[Finding],
    before: Sequence[Mapping[str, Any]],
    generation: int,
    now: datetime,
    *,
    keep: bool = False,
) -> list[Condition]:
    """One of each type, the last finding wins; the time moves only when the status does. keep: others stay."""
    old = {str(item["type"]): item for item in before}
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    result: dict[str, Condition] = {}
    if keep:
        for name, item in old.items():
            result[name] = Condition.model_validate(item)
    for finding in findings:
        status = {True: "True", False: "False", None: "Unknown"}[finding.ok]
        same = old.get(finding.type, {}).get("status") == status
        result[finding.type] = Condition.model_validate(
            {
                "type": finding.type,
                "status": status,
                "reason": finding.reason,
                "message": finding.message[:4096],
                "lastTransitionTime": old[finding.type]["lastTransitionTime"] if same else stamp,
                "observedGeneration": generation,
            }
        )
    return [result[name] for name in sorted(result)]


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Worth a write? Everything counts: times of conditions move only with their status."""
    return {key: value for key, value in before.items() if key in after} != dict(after)


def transitions(before: Mapping[str, Any], after: ClusterStatus) -> list[EventText]:
    """Events for what an administrator would want to have been told; none for mere progress of counters."""
    found = []
    if before.get("phase") != after.phase:
        kind = "Warning" if after.phase == "Failed" else "Normal"
        found.append(EventText(kind, f"Phase{after.phase}", after.message or f"the cluster is {after.phase}"))
    if before.get("health", "Unknown") != after.health:
        bad = after.health in ("Degraded", "Unavailable")
        text = "; ".join(after.reasons[:3]) if bad else after.message
        found.append(EventText("Warning" if bad else "Normal", f"Health{after.health}", text or after.message))
    old = {item["type"]: item for item in before.get("conditions") or []}
    for condition in after.conditions:
        if condition.type in ("Ready", "Progressing"):
            continue
        was = old.get(condition.type, {}).get("status")
        good = (condition.status == "True") != (condition.type in REPORTS)
        if was == condition.status or (was is None and (good or condition.type not in TOLD_AT_ONCE)):
            continue
        found.append(
            EventText("Normal" if good else "Warning", f"{condition.type}{condition.reason}"[:128], condition.message)
        )
    return found
