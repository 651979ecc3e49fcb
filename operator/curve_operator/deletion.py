"""Deleting a cluster: what still depends on it, and how its data on the nodes goes when that was confirmed. Pure."""

from __future__ import annotations

from typing import Any

from curve_operator import manifests, names
from curve_operator.actions import Apply, Finding, Plan, Scale, SetFinalizers
from curve_operator.observed import Observed, component_of
from curve_operator.placement import Layout
from curve_operator.settings import Settings

SHOWN = 5
WIPE_DEADLINE = 300


def blockers(settings: Settings, observed: Observed) -> list[str]:
    """Sentences on what would be lost; empty: the cluster may go."""
    if settings.confirm_deletion:
        return []
    found = []
    claims = observed.persistent_volumes
    if claims:
        found.append(f"{len(claims)} PersistentVolume(s) use it: {_some(claims)}")
    mds = observed.mds
    if mds.known:
        if mds.volumes and not claims:
            found.append(f"{mds.volumes} volume(s) exist: {_some(mds.volume_names)}")
    elif observed.status.get("poolCreated"):
        found.append(f"the MDS does not answer, so nobody knows which volumes exist ({mds.error})")
    return found


def plan_blocked(settings: Settings, found: list[str], plan: Plan) -> None:
    plan.findings.append(
        Finding(
            "DeletionBlocked",
            True,
            "VolumesExist",
            "; ".join(found)
            + ". Delete them first, or lose them: "
            + f"kubectl annotate curvecluster {settings.name} -n {settings.namespace} "
            + f"{names.ANNOTATION_CONFIRM}={settings.name}",
        )
    )
    plan.waiting.insert(0, found[0])


def plan_teardown(settings: Settings, observed: Observed, layout: Layout, plan: Plan) -> None:
    """Without a wipe the finalizer goes and Kubernetes removes what is owned. With one: stop, wipe, then that."""
    if names.FINALIZER not in observed.finalizers:
        return
    if settings.wipe_data:
        for (kind, name), item in sorted(observed.objects.items()):
            if kind == "StatefulSet" and item["spec"].get("replicas") != 0:
                plan.add(Scale(name, 0, "the cluster is deleted"))
        running = running_pods(observed)
        if running:
            plan.wait(f"pods to end: {_some(running)}")
            return
        waiting = _wipe(settings, observed, layout, plan)
        if waiting:
            plan.wait(f"data of the cluster to be removed on {', '.join(waiting)}")
            return
    rest = tuple(name for name in observed.finalizers if name != names.FINALIZER)
    plan.add(SetFinalizers(rest, "nothing depends on the cluster any more"))


def running_pods(observed: Observed) -> tuple[str, ...]:
    """The daemons' pods that may still write; a pod on an unreachable node is not waited for."""
    ready = {node.name for node in observed.nodes if node.ready}
    return tuple(
        pod["metadata"]["name"]
        for pod in observed.pods
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        and component_of(pod) != "wipe"
        and (pod.get("spec") or {}).get("nodeName", "") in {"", *ready}
    )


def _wipe(settings: Settings, observed: Observed, layout: Layout, plan: Plan) -> list[str]:
    """Nodes whose Job has not ended; a failed one is told and not waited for."""
    waiting = []
    for wanted in wipe_jobs(settings, observed, layout):
        name, node = wanted["metadata"]["name"], wanted["metadata"]["annotations"][names.ANNOTATION_NODE]
        job = observed.get("Job", name)
        if job is None:
            plan.add(Apply(wanted, f"data of the cluster on {node} is removed, as cleanupConfirm says"))
            waiting.append(node)
            continue
        ended = {
            item["type"]: item
            for item in (job.get("status") or {}).get("conditions") or []
            if item.get("status") == "True" and item.get("type") in ("Complete", "Failed")
        }
        if "Failed" in ended:
            message = ended["Failed"].get("message", "the Job failed")
            plan.findings.append(Finding("DataRemoved", False, "JobFailed", f"data remains on {node}: {message}"))
        elif "Complete" not in ended:
            waiting.append(node)
    return waiting


def wipe_jobs(settings: Settings, observed: Observed, layout: Layout) -> list[dict[str, Any]]:
    """One per reachable node. It removes only what carries this cluster's marker."""
    ready = {node.name for node in observed.nodes if node.ready}
    directories: dict[str, list[str]] = {}
    devices: dict[str, list[str]] = {}
    for item in observed.existing_chunkservers():
        target = devices if item.path.startswith("/dev/") else directories
        target.setdefault(item.node, []).append(item.path)
    for index, node in enumerate(layout.etcd_nodes):
        directories.setdefault(node, []).append(manifests.etcd_directory(settings, index))
    jobs = []
    for node in sorted({*directories, *devices} & ready):
        paths, disks = directories.get(node, []), devices.get(node, [])
        mounts = [{"name": f"d{index}", "mountPath": f"/wipe/{index}"} for index in range(len(paths))]
        volumes: list[dict[str, Any]] = [
            {"name": f"d{index}", "hostPath": {"path": path}} for index, path in enumerate(paths)
        ]
        command = ["curve-operator", "disk", "wipe", "--cluster", settings.uid]
        for index in range(len(paths)):
            command += ["--directory", f"/wipe/{index}"]
        for disk in disks:
            command += ["--device", disk]
        if disks:
            mounts.append({"name": "dev", "mountPath": "/dev"})
            volumes.append({"name": "dev", "hostPath": {"path": "/dev"}})
        jobs.append(_job(settings, node, command, mounts, volumes, privileged=bool(disks)))
    return jobs


def _job(
    settings: Settings,
    node: str,
    command: list[str],
    mounts: list[dict[str, Any]],
    volumes: list[dict[str, Any]],
    *,
    privileged: bool,
) -> dict[str, Any]:
    container = {
        "name": "wipe",
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": command,
        "volumeMounts": mounts,
        "securityContext": {"privileged": privileged},
    }
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{settings.name}-wipe-{names.short_hash(node)}",
            "labels": names.labels(settings.name, "wipe"),
            "annotations": {names.ANNOTATION_NODE: node},
        },
        "spec": {
            "backoffLimit": 2,
            "activeDeadlineSeconds": WIPE_DEADLINE,
            "template": {
                "metadata": {"labels": names.labels(settings.name, "wipe")},
                "spec": {
                    "nodeName": node,
                    "restartPolicy": "Never",
                    "tolerations": [{"operator": "Exists"}],
                    "imagePullSecrets": [{"name": name} for name in settings.pull_secrets],
                    "containers": [container],
                    "volumes": volumes,
                },
            },
        },
    }
    return manifests.complete(settings, manifest)


def _some(items: tuple[str, ...]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
