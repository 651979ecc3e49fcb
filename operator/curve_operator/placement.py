"""Which disk of which node gets which chunkserver, in which zone; and where etcd's members stand. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curve_operator import names
from curve_operator.settings import DiskRequest, NodeRequest, Settings

ZONE_LABEL = "topology.kubernetes.io/zone"


@dataclass(frozen=True)
class Node:
    name: str
    labels: Mapping[str, str]
    taints: tuple[Mapping[str, Any], ...] = ()
    unschedulable: bool = False
    ready: bool = True


@dataclass(frozen=True)
class Slot:
    """One disk and its chunkserver."""

    name: str
    node: str
    disk: DiskRequest
    zone: str
    server: str


@dataclass(frozen=True)
class Existing:
    """A chunkserver that runs already, as its StatefulSet says: its zone never changes."""

    name: str
    node: str
    path: str
    zone: str


@dataclass(frozen=True)
class Layout:
    slots: tuple[Slot, ...]
    removed: tuple[Existing, ...]
    etcd_nodes: tuple[str, ...]
    missing_nodes: tuple[str, ...]
    notes: tuple[str, ...]


def layout(
    settings: Settings,
    nodes: Sequence[Node],
    existing: Sequence[Existing],
    etcd_now: Mapping[int, str],
) -> Layout:
    """etcd_now: member index → the node that holds its directory. Both it and `existing` are kept as they are."""
    known = {node.name: node for node in nodes}
    requests = _requests(settings, nodes, {item.node for item in existing})
    wanted = [(request, disk) for request in requests for disk in request.disks]
    missing = tuple(dict.fromkeys(request.node for request in requests if request.node not in known))
    before = {item.name: item for item in existing}
    needed = settings.storage.pool.zones or settings.storage.pool.replicas
    zones, notes = _zones(requests, known, needed)
    slots: list[Slot] = []
    position = 0
    for request, disk in wanted:
        name = names.chunkserver_name(settings.name, request.node, disk.path)
        if request.node not in known and name not in before:
            continue
        zone = before[name].zone if name in before else zones.get(request.node) or f"zone{position % needed + 1}"
        position += 1
        server = request.node if zones.get(request.node) else f"{request.node}-{zone}"
        slots.append(Slot(name, request.node, disk, zone, server))
    kept = {slot.name for slot in slots}
    removed = tuple(item for item in existing if item.name not in kept)
    if settings.nodes:
        candidates = [name for name in settings.nodes if name in known]
    else:
        candidates = list(dict.fromkeys(slot.node for slot in slots))
    absent = tuple(name for name in settings.nodes if name not in known)
    members = _etcd_nodes(settings, candidates, etcd_now)
    return Layout(tuple(slots), removed, members, tuple(dict.fromkeys((*missing, *absent))), notes)


def _requests(settings: Settings, nodes: Sequence[Node], in_use: set[str]) -> list[NodeRequest]:
    storage = settings.storage
    requests = list(storage.requests)
    if storage.all_nodes:
        named = {request.node for request in requests}
        for node in sorted(nodes, key=lambda item: item.name):
            if node.name in named or any(node.labels.get(key) != text for key, text in storage.node_selector.items()):
                continue
            # a node in use keeps its place while it is cordoned or unreachable
            if node.name in in_use or (not node.unschedulable and _tolerated(node, storage.pods.tolerations)):
                requests.append(NodeRequest(node.name, "", storage.disks))
    return requests


def _tolerated(node: Node, tolerations: Sequence[Mapping[str, Any]]) -> bool:
    return all(
        taint.get("effect") == "PreferNoSchedule" or any(_matches(taint, toleration) for toleration in tolerations)
        for taint in node.taints
    )


def _matches(taint: Mapping[str, Any], toleration: Mapping[str, Any]) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if not toleration.get("key"):
        return toleration.get("operator") == "Exists"
    if toleration["key"] != taint.get("key"):
        return False
    return toleration.get("operator") == "Exists" or toleration.get("value", "") == taint.get("value", "")


def _zones(
    requests: Sequence[NodeRequest], known: Mapping[str, Node], needed: int
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Zone of each node; a node without one spreads its disks over zone1 … zoneN (tests, small installations)."""
    present = [request for request in requests if request.node in known]
    explicit = {request.node: request.zone for request in present if request.zone}
    labelled = {request.node: known[request.node].labels.get(ZONE_LABEL, "") for request in present}
    by_label = {**{node: zone for node, zone in labelled.items() if zone}, **explicit}
    if len(by_label) == len(present) and len(set(by_label.values())) >= needed:
        return by_label, ()
    if len(present) >= needed:
        notes: tuple[str, ...] = ()
        if by_label and not explicit:
            notes = (
                f"node labels {ZONE_LABEL} name {len(set(by_label.values()))} zones where {needed} are needed: "
                "each node is a zone of its own",
            )
        return {request.node: explicit.get(request.node, request.node) for request in present}, notes
    if not present:
        return {}, ()
    return {}, (
        f"{len(present)} storage node(s) for {needed} replicas: copies of one chunk share a node and are lost with it",
    )


def _etcd_nodes(settings: Settings, candidates: Sequence[str], now: Mapping[int, str]) -> tuple[str, ...]:
    if settings.etcd.external or settings.etcd.claim is not None or not candidates:
        return tuple(now[index] for index in sorted(now))
    load = Counter(now.values())
    chosen: list[str] = []
    for index in range(settings.etcd.count):
        node = now.get(index) or min(candidates, key=lambda name: (load[name], candidates.index(name)))
        if index not in now:
            load[node] += 1
        chosen.append(node)
    return tuple(chosen)
