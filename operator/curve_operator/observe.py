"""Read everything a plan needs, in parallel, with deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from curve_operator import names, readiness
from curve_operator.kube import Kube
from curve_operator.mds_view import MdsConnection, look
from curve_operator.observed import NO_MDS, MdsView, Observed, component_of, ready_replicas
from curve_operator.placement import Node
from curve_operator.settings import Settings
from curve_storage.errors import CurveError

KINDS = (
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("v1", "Service"),
    ("apps/v1", "StatefulSet"),
    ("policy/v1", "PodDisruptionBudget"),
    ("batch/v1", "Job"),
)
DRIVER = "block.csi.curve.io"


async def observe(kube: Kube, mds: MdsConnection, settings: Settings, resource: Mapping[str, Any]) -> Observed:
    selector = names.selector(settings.name)
    *groups, pods, nodes = await asyncio.gather(
        *(kube.list(api, kind, settings.namespace, selector) for api, kind in KINDS),
        kube.list("v1", "Pod", settings.namespace, selector),
        kube.list("v1", "Node"),
    )
    objects = {(item["kind"], item["metadata"]["name"]): item for group in groups for item in group}
    deleting = bool(resource["metadata"].get("deletionTimestamp"))
    mds_pods = [pod for pod in pods if component_of(pod) == "mds"]
    view, answers = await asyncio.gather(
        _mds(mds, settings, objects, want_names=deleting),
        readiness.complaints(mds_pods, settings.mds.http_port),
    )
    volumes: tuple[str, ...] = ()
    if deleting:
        cluster_id = view.cluster_id or str((resource.get("status") or {}).get("clusterId") or "")
        volumes = await _persistent_volumes(kube, cluster_id)
    return Observed(
        resource=resource,
        objects=objects,
        pods=pods,
        nodes=[node_of(item) for item in nodes],
        mds=view,
        persistent_volumes=volumes,
        answers=answers,
    )


async def _mds(
    connection: MdsConnection, settings: Settings, objects: Mapping[tuple[str, str], Any], *, want_names: bool
) -> MdsView:
    if ready_replicas(objects.get(("StatefulSet", settings.mds_service))) == 0:
        return NO_MDS
    secret = objects.get(("Secret", settings.client_secret))
    if settings.tls and secret is None:
        return NO_MDS
    try:
        client = await connection.client(settings, secret)
    except CurveError as error:
        return MdsView(error=str(error))
    return await look(client, want_names=want_names)


async def _persistent_volumes(kube: Kube, cluster_id: str) -> tuple[str, ...]:
    """Names of the PersistentVolumes whose handle names this cluster."""
    if not cluster_id:
        return ()
    found = []
    for item in await kube.list("v1", "PersistentVolume"):
        csi = (item.get("spec") or {}).get("csi") or {}
        attributes = csi.get("volumeAttributes") or {}
        if csi.get("driver") == DRIVER and (
            cluster_id in str(csi.get("volumeHandle", "")) or cluster_id in attributes.values()
        ):
            found.append(item["metadata"]["name"])
    return tuple(sorted(found))


def node_of(item: Mapping[str, Any]) -> Node:
    spec = item.get("spec") or {}
    conditions = {entry["type"]: entry["status"] for entry in (item.get("status") or {}).get("conditions") or []}
    return Node(
        name=item["metadata"]["name"],
        labels=item["metadata"].get("labels") or {},
        taints=tuple(spec.get("taints") or ()),
        unschedulable=bool(spec.get("unschedulable")),
        ready=conditions.get("Ready") == "True",
    )
