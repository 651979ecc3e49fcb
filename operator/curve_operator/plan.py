"""What to do now, from what is wanted and what is there. Pure: every step is derived anew, none is remembered."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from curve_operator import daemon_config, deletion, manifests, names
from curve_operator.actions import Apply, CreatePool, Finding, Plan, SetFinalizers
from curve_operator.drift import first_difference
from curve_operator.observed import ChunkserverView, Observed, component_of, ready_replicas, ready_since, trouble
from curve_operator.placement import Layout, layout
from curve_operator.rollout import roll
from curve_operator.security import plan_security
from curve_operator.settings import Settings

CATCH_UP = timedelta(seconds=15)
"""From a chunkserver's readiness to the next one's restart: the MDS has noticed by then whatever the restart did."""
REASONS_SHOWN = 3
PATIENCE = timedelta(minutes=10)
"""After this time a pool is made without the disks that are still missing, when the others suffice."""


def make_plan(settings: Settings, observed: Observed, now: datetime) -> tuple[Plan, Layout]:
    plan = Plan()
    where = layout(settings, observed.nodes, observed.existing_chunkservers(), _etcd_now(settings, observed))
    if observed.deleting:
        found = deletion.blockers(settings, observed)
        if not found:
            deletion.plan_teardown(settings, observed, where, plan)
            return plan, where
        deletion.plan_blocked(settings, found, plan)
    elif names.FINALIZER not in observed.finalizers:
        finalizers = (*observed.finalizers, names.FINALIZER)
        plan.add(SetFinalizers(finalizers, "deletion must ask first whether volumes exist"))
    if settings.problems:
        plan.findings.append(Finding("Accepted", False, "BadSpec", "; ".join(settings.problems)))
        plan.wait("a correction of spec")
        return plan, where
    plan.findings.append(Finding("Accepted", True, "Valid"))
    if settings.paused:
        plan.wait(f"annotation {names.ANNOTATION_PAUSE} to be removed: nothing is changed meanwhile")
        return plan, where
    plan_security(settings, observed, now, plan)
    for node in where.missing_nodes:
        there = ", ".join(sorted(item.name for item in observed.nodes)[:5])
        plan.wait(f"node {node}: no such node (there are {there}); correct the name in spec or add the node")
    _objects(settings, observed, where, plan)
    etcd_ok, etcd_done = _etcd(settings, observed, where, plan)
    mds_ok, mds_done = _mds(settings, observed, plan, etcd_ok=etcd_ok, etcd_done=etcd_done)
    _chunkservers(settings, observed, where, now, plan, upgraded=etcd_done and mds_done)
    _pool(settings, observed, where, now, plan, mds_ok=mds_ok)
    return plan, where


def _etcd_now(settings: Settings, observed: Observed) -> dict[int, str]:
    found = {}
    for index in range(settings.etcd.count):
        item = observed.get("StatefulSet", settings.etcd_member(index))
        node = ((item or {}).get("metadata", {}).get("annotations") or {}).get(names.ANNOTATION_NODE)
        if node:
            found[index] = node
    return found


def _objects(settings: Settings, observed: Observed, where: Layout, plan: Plan) -> None:
    """Services, configuration and disruption budgets: may change at any time."""
    wanted: list[dict[str, Any]] = []
    own_etcd = not settings.etcd.external
    if own_etcd:
        ports = {"client": settings.etcd.client_port, "peer": settings.etcd.peer_port, "http": 2381}
        wanted += [manifests.service(settings, "etcd", ports), manifests.disruption_budget(settings, "etcd")]
    mds_config = {"mds.yaml": daemon_config.mds_yaml(settings)}
    wanted += [
        manifests.service(settings, "mds", {"rpc": settings.mds.port, "http": settings.mds.http_port}),
        manifests.disruption_budget(settings, "mds"),
        manifests.config_map(settings, f"{settings.name}-mds", "mds", mds_config),
        manifests.service(settings, "chunkserver", {"data": settings.storage.port, "http": settings.storage.http_port}),
        manifests.disruption_budget(settings, "chunkserver"),
        manifests.access(settings),
    ]
    for slot in where.slots:
        files = {"chunkserver.yaml": daemon_config.chunkserver_yaml(settings, slot)}
        wanted.append(manifests.config_map(settings, slot.name, "chunkserver", files))
    for manifest in wanted:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        present = observed.get(kind, name)
        if present is None:
            plan.add(Apply(manifest, f"{kind} {name} does not exist yet"))
            continue
        field = first_difference(manifest, present)
        if field:
            plan.add(Apply(manifest, f"{kind} {name}: {field} is not as wanted"))


def _etcd(settings: Settings, observed: Observed, where: Layout, plan: Plan) -> tuple[bool, bool]:
    """(has a quorum, settled as wanted)."""
    if settings.etcd.external:
        plan.findings.append(Finding("EtcdReady", None, "External", f"etcd at {', '.join(settings.etcd.external)}"))
        return True, True
    count = settings.etcd.count
    nodes = where.etcd_nodes if settings.etcd.claim is None else ("",) * count
    if len(nodes) < count:
        plan.wait("a node for etcd: none of those wanted exists")
        plan.findings.append(Finding("EtcdReady", False, "NoNodes", "no node can hold etcd's data"))
        return False, False
    wanted = [manifests.etcd(settings, index, nodes[index]) for index in range(count)]
    ready = sum(ready_replicas(observed.get("StatefulSet", item["metadata"]["name"])) > 0 for item in wanted)
    gate = "" if ready == count else f"{ready} of {count} etcd members are ready"
    done = roll(plan, "etcd member(s)", wanted, lambda name: observed.get("StatefulSet", name), gate=gate)
    quorum = ready > count // 2
    _report_role(plan, observed, "EtcdReady", "etcd", "etcd members", ready, count, quorum)
    return quorum, done


def _mds(settings: Settings, observed: Observed, plan: Plan, *, etcd_ok: bool, etcd_done: bool) -> tuple[bool, bool]:
    """(one serves, settled as wanted)."""
    known = {node.name for node in observed.nodes}
    wanted = manifests.mds(settings, tuple(name for name in settings.nodes if name in known))
    ready = ready_replicas(observed.get("StatefulSet", settings.mds_service))
    done = roll(
        plan,
        "MDS",
        [wanted],
        lambda name: observed.get("StatefulSet", name),
        gate="" if etcd_done else "etcd comes first",
        may_create="" if etcd_ok else "etcd to have a quorum before the MDS starts",
    )
    if not ready and settings.etcd.external and observed.answers:
        endpoints = ", ".join(settings.etcd.external)
        todo = f"if etcd at {endpoints} is not reachable, start it or correct spec.etcd.endpoints"
    else:
        todo = ""
    _report_role(plan, observed, "MdsReady", "mds", "MDS", ready, settings.mds.count, ready > 0, todo)
    return ready > 0, done


def _chunkservers(
    settings: Settings, observed: Observed, where: Layout, now: datetime, plan: Plan, *, upgraded: bool
) -> None:
    if not where.slots:
        plan.wait("a node that can hold data: none matches spec.storage, or all are tainted or cordoned")
    wanted = [manifests.chunkserver(settings, slot) for slot in where.slots]
    ready = sum(ready_replicas(observed.get("StatefulSet", slot.name)) > 0 for slot in where.slots)
    roll(
        plan,
        "chunkserver(s)",
        wanted,
        lambda name: observed.get("StatefulSet", name),
        gate=_chunkserver_gate(observed, now, upgraded=upgraded),
    )
    count = len(where.slots)
    _report_role(plan, observed, "ChunkserverReady", "chunkserver", "chunkservers", ready, count, ready == count > 0)
    if where.removed:
        gone = ", ".join(f"{item.path} on {item.node}" for item in where.removed)
        plan.findings.append(
            Finding(
                "DisksRemoved",
                True,
                "KeptRunning",
                f"no longer in spec, kept running because chunks live there: {gone}. Put them back, or drain them",
            )
        )


def _chunkserver_gate(observed: Observed, now: datetime, *, upgraded: bool) -> str:
    """Why a healthy chunkserver must not be restarted now."""
    mds = observed.mds
    if not upgraded:
        return "etcd and MDS come first"
    if not mds.known:
        return f"the MDS must answer first ({mds.error})"
    if mds.copysets_healthy < mds.copysets:
        return f"{mds.copysets - mds.copysets_healthy} of {mds.copysets} copysets are not healthy"
    offline = [str(item.id) for item in mds.chunkservers if not item.online]
    if offline:
        return f"chunkserver {offline[0]} is offline"
    for pod in observed.pods:
        since = ready_since(pod)
        if since is not None and now - since < CATCH_UP and component_of(pod) == "chunkserver":
            return f"{pod['metadata']['name']} became ready a moment ago: its copysets catch up first"
    return ""


def view_of(slot_name: str, observed: Observed) -> ChunkserverView | None:
    """The MDS's entry of a slot, found by the address of its pod."""
    hosts = {(pod.get("status") or {}).get("podIP") for pod in observed.pods_of(slot_name)}
    hosts.discard(None)
    return next((item for item in observed.mds.chunkservers if item.address.rsplit(":", 1)[0] in hosts), None)


def _pool(settings: Settings, observed: Observed, where: Layout, now: datetime, plan: Plan, *, mds_ok: bool) -> None:
    pool = settings.storage.pool
    mds = observed.mds
    if not mds_ok or not mds.known:
        plan.findings.append(Finding("PoolReady", None, "NoMds", f"pool {pool.name}: {mds.error}"))
        if mds_ok:
            plan.wait(f"the MDS to answer: {mds.error}")
        return
    present = next((item for item in mds.pools if item.name == pool.name), None)
    if present is not None:
        healthy = present.copysets_healthy == present.copysets
        text = f"{present.copysets_healthy} of {present.copysets} copysets healthy"
        plan.findings.append(Finding("PoolReady", True, "Healthy" if healthy else "CopysetsDegraded", text))
        return
    views = {slot.name: view_of(slot.name, observed) for slot in where.slots}
    online = {name: view for name, view in views.items() if view is not None and view.online}
    missing = [slot.name for slot in where.slots if slot.name not in online]
    needed = pool.zones or pool.replicas
    zones = {view.zone for view in online.values()}
    enough = len(online) >= pool.replicas and len(zones) >= needed
    if missing and not (enough and now - _created(observed) > PATIENCE):
        text = f"pool {pool.name}: {len(online)} of {len(where.slots)} chunkservers registered; missing {missing[0]}"
        plan.wait(text)
        plan.findings.append(Finding("PoolReady", False, "WaitingForChunkservers", text))
        return
    if not enough:
        text = (
            f"pool {pool.name} needs {pool.replicas} chunkservers in {needed} zones, there are {len(online)} in "
            f"{len(zones)}: add disks or nodes in spec.storage, or make a smaller pool in spec.storage.pool"
        )
        plan.wait(text)
        plan.findings.append(Finding("PoolReady", False, "TooFewChunkservers", text))
        return
    per_server = settings.storage.copysets_per_chunkserver
    copysets = pool.copysets or max(per_server * len(online) // pool.replicas, 1 if per_server else 0)
    plan.add(
        CreatePool(
            pool.name,
            pool.replicas,
            needed,
            copysets,
            pool.scatter_width or 0,
            f"{len(online)} chunkservers in {len(zones)} zones are registered",
        )
    )
    plan.findings.append(Finding("PoolReady", False, "Creating", f"pool {pool.name} is made"))


def _created(observed: Observed) -> datetime:
    text = observed.resource["metadata"].get("creationTimestamp") or "1970-01-01T00:00:00Z"
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _report_role(
    plan: Plan,
    observed: Observed,
    type_: str,
    component: str,
    what: str,
    ready: int,
    wanted: int,
    good: bool,
    todo: str = "",
) -> None:
    if ready >= wanted and good:
        plan.findings.append(Finding(type_, True, "AllReady", f"{ready}/{wanted} {what} ready"))
        return
    reasons = []
    for pod in observed.pods:
        if component_of(pod) == component:
            why = trouble(pod) or observed.answers.get(pod["metadata"]["name"], "")
            if why:
                reasons.append(f"{pod['metadata']['name']}: {why}")
    text = f"{ready}/{wanted} {what} ready" + (f" ({'; '.join(reasons[:REASONS_SHOWN])})" if reasons else "")
    text += f": {todo}" if todo else ""
    plan.wait(text)
    plan.findings.append(Finding(type_, good, "SomeReady" if good else "NotReady", text))
