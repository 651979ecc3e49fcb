"""What is there: the cluster's objects, its nodes, and the MDS's own view. Plain data, so that plans are pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from curve_operator import names
from curve_operator.placement import Existing, Node

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class PoolView:
    name: str
    replicas: int
    copysets: int
    copysets_healthy: int
    capacity: int
    used: int


@dataclass(frozen=True)
class ChunkserverView:
    id: int
    address: str
    server: str
    zone: str
    physical_pool: str
    online: bool
    state: str  # normal, error, full, formatting
    format_percent: int
    disk_path: str
    version: str


@dataclass(frozen=True)
class MdsView:
    """The MDS's answers of one moment; `error` says why there are none."""

    error: str = ""
    cluster_id: str = ""
    health: str = ""
    reasons: tuple[str, ...] = ()
    leader: str = ""
    pools: tuple[PoolView, ...] = ()
    chunkservers: tuple[ChunkserverView, ...] = ()
    copysets: int = 0
    copysets_healthy: int = 0
    copysets_available: int = 0
    volumes: int = 0
    volume_names: tuple[str, ...] = ()
    volume_bytes: int = 0
    capacity: int = 0
    used: int = 0
    versions: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        return not self.error


NO_MDS = MdsView(error="no MDS is ready yet")


@dataclass(frozen=True)
class Observed:
    """objects: by (kind, name). persistent_volumes: of this cluster (deletion only). answers: pod → why it is not
    ready, as it says itself."""

    resource: Manifest
    objects: Mapping[tuple[str, str], Manifest]
    pods: Sequence[Manifest] = ()
    nodes: Sequence[Node] = ()
    mds: MdsView = NO_MDS
    persistent_volumes: tuple[str, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)

    @property
    def deleting(self) -> bool:
        return bool(self.resource["metadata"].get("deletionTimestamp"))

    @property
    def finalizers(self) -> list[str]:
        return list(self.resource["metadata"].get("finalizers") or [])

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.resource.get("status") or {})

    def get(self, kind: str, name: str) -> Manifest | None:
        return self.objects.get((kind, name))

    def workloads(self, component: str) -> list[Manifest]:
        return [
            item
            for (kind, _), item in sorted(self.objects.items())
            if kind == "StatefulSet" and component_of(item) == component
        ]

    def existing_chunkservers(self) -> list[Existing]:
        found = []
        for item in self.workloads("chunkserver"):
            annotations = item["metadata"].get("annotations") or {}
            found.append(
                Existing(
                    item["metadata"]["name"],
                    annotations.get(names.ANNOTATION_NODE, ""),
                    annotations.get(names.ANNOTATION_PATH, ""),
                    annotations.get(names.ANNOTATION_ZONE, ""),
                )
            )
        return found

    def pods_of(self, daemon: str) -> list[Manifest]:
        return [pod for pod in self.pods if (pod["metadata"].get("labels") or {}).get(names.LABEL_DAEMON) == daemon]


def component_of(item: Manifest) -> str:
    return str((item["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT, ""))


def ready_replicas(workload: Manifest | None) -> int:
    """Ready pods of the present generation; a StatefulSet whose controller has not seen the change counts as it was."""
    return int(((workload or {}).get("status") or {}).get("readyReplicas") or 0)


def settled(workload: Manifest) -> bool:
    """All pods are of the newest template and ready."""
    status = workload.get("status") or {}
    wanted = int((workload.get("spec") or {}).get("replicas", 1))
    return (
        int(status.get("observedGeneration") or 0) >= int(workload["metadata"].get("generation") or 0)
        and int(status.get("updatedReplicas") or 0) == wanted
        and int(status.get("readyReplicas") or 0) == wanted
        and status.get("currentRevision") == status.get("updateRevision")
    )


def restarting(workload: Manifest) -> bool:
    """Its pods are on their way to a newer template; not merely down."""
    status = workload.get("status") or {}
    return bool(status.get("currentRevision")) and (
        status.get("currentRevision") != status.get("updateRevision")
        or int(status.get("observedGeneration") or 0) < int(workload["metadata"].get("generation") or 0)
    )


def ready_since(pod: Manifest) -> datetime | None:
    """When the pod became ready; None while it is not."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if (
            condition.get("type") == "Ready"
            and condition.get("status") == "True"
            and condition.get("lastTransitionTime")
        ):
            return datetime.fromisoformat(str(condition["lastTransitionTime"]).replace("Z", "+00:00"))
    return None


def trouble(pod: Manifest) -> str:
    """Why a pod is not ready, in the words of whoever refused: daemon, scheduler or kubelet."""
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        state = container.get("state") or {}
        ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
        waiting = state.get("waiting") or {}
        message = str(ended.get("message") or "").strip()
        if message and not container.get("ready"):
            return message.splitlines()[-1]
        if ended and ended.get("exitCode") and not container.get("ready"):
            return f"container {container['name']} ended with {ended.get('reason', 'Error')} {ended['exitCode']}"
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            text = str(waiting.get("message") or "")
            return f"container {container['name']}: {waiting['reason']}{': ' + text if text else ''}"
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"not scheduled: {condition.get('message', condition.get('reason', ''))}"
    return ""
