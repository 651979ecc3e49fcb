"""Desired Kubernetes objects from settings and layout, through the YAML templates. Pure: no clock, no cluster."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import jinja2
import yaml

from curve_operator import daemon_config, names
from curve_operator.placement import Slot
from curve_operator.settings import PodOptions, Settings

Manifest = dict[str, Any]

# the C parser where it was built: ten times faster, which counts with hundreds of disks
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

ETCD_REQUESTS = {"requests": {"cpu": "100m", "memory": "128Mi"}}
MDS_REQUESTS = {"requests": {"cpu": "100m", "memory": "256Mi"}}
CHUNKSERVER_REQUESTS = {"requests": {"cpu": "200m", "memory": "512Mi"}}


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("curve_operator", "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # values pass through tojson; this is YAML
        trim_blocks=False,
    )


def _render(settings: Settings, template: str, **values: Any) -> Manifest:
    text = (
        _environment()
        .get_template(template)
        .render(
            pull_policy=settings.pull_policy,
            pull_secrets=[{"name": name} for name in settings.pull_secrets],
            **values,
        )
    )
    manifest = yaml.load(text, Loader=_LOADER)
    assert isinstance(manifest, dict)
    return complete(settings, manifest)


def complete(settings: Settings, manifest: Manifest) -> Manifest:
    """Namespace and owner: deleting the cluster takes everything along."""
    metadata = manifest["metadata"]
    metadata["namespace"] = settings.namespace
    metadata["ownerReferences"] = [
        {
            "apiVersion": f"{names.GROUP}/{names.VERSION}",
            "kind": names.KIND,
            "name": settings.name,
            "uid": settings.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]
    template = manifest.get("spec", {}).get("template")
    if template:
        encoded = json.dumps(template, sort_keys=True).encode()
        metadata.setdefault("annotations", {})[names.ANNOTATION_TEMPLATE] = hashlib.sha256(encoded).hexdigest()[:16]
    return manifest


def service(settings: Settings, component: str, ports: dict[str, int]) -> Manifest:
    labels = names.labels(settings.name, component)
    return _render(
        settings,
        "service.yaml.j2",
        name=f"{settings.name}-{component}",
        labels=labels,
        selector=labels,
        ports=[{"name": name, "port": port} for name, port in ports.items()],
    )


def disruption_budget(settings: Settings, component: str) -> Manifest:
    labels = names.labels(settings.name, component)
    return _render(settings, "disruption.yaml.j2", name=f"{settings.name}-{component}", labels=labels, selector=labels)


def config_map(settings: Settings, name: str, component: str, files: dict[str, str]) -> Manifest:
    return complete(
        settings,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": names.labels(settings.name, component)},
            "data": files,
        },
    )


def etcd(settings: Settings, index: int, node: str) -> Manifest:
    """One member. node "": its data is on a claim and the scheduler chooses."""
    options = settings.etcd
    name = settings.etcd_member(index)
    labels = names.labels(settings.name, "etcd")
    return _render(
        settings,
        "etcd.yaml.j2",
        name=name,
        labels=labels,
        pod_labels={**labels, names.LABEL_DAEMON: name},
        selector={**labels, names.LABEL_DAEMON: name},
        annotations={names.ANNOTATION_NODE: node} if node else {},
        service=settings.etcd_service,
        image=options.image,
        pods=options.pods,
        affinity=_affinity(settings, "etcd", options.pods, node),
        command=daemon_config.etcd_command(settings, index),
        resources=options.pods.resources or ETCD_REQUESTS,
        client_port=options.client_port,
        peer_port=options.peer_port,
        claim=options.claim,
        directory=etcd_directory(settings, index),
        tls=settings.tls_secret("etcd") if settings.tls else "",
    )


def etcd_directory(settings: Settings, index: int) -> str:
    return f"{settings.data_dir}/{settings.namespace}-{settings.name}/etcd-{names.member_suffix(index)}"


def mds(settings: Settings, nodes: tuple[str, ...]) -> Manifest:
    """nodes: where the resource wants the MDS; empty: anywhere."""
    options = settings.mds
    labels = names.labels(settings.name, "mds")
    config = daemon_config.mds_yaml(settings)
    return _render(
        settings,
        "mds.yaml.j2",
        name=settings.mds_service,
        labels=labels,
        pod_labels=labels,
        pod_annotations={f"{names.GROUP}/config-hash": names.short_hash(config, 16)},
        selector=labels,
        annotations={},
        service=settings.mds_service,
        domain=f"{settings.mds_service}.{settings.namespace}.svc",
        replicas=options.count,
        image=settings.image,
        pods=options.pods,
        affinity=_affinity(settings, "mds", options.pods, *nodes),
        resources=options.pods.resources or MDS_REQUESTS,
        port=options.port,
        http_port=options.http_port,
        sources=_sources(settings, f"{settings.name}-mds", "mds.yaml", "mds"),
        external_tls=settings.etcd.external_secret,
    )


def chunkserver(settings: Settings, slot: Slot) -> Manifest:
    options = settings.storage
    labels = names.labels(settings.name, "chunkserver")
    config = daemon_config.chunkserver_yaml(settings, slot)
    device = slot.disk.device
    serve = ["curve-chunkserver", "--config", "/etc/curve/chunkserver.yaml"]
    prepare = ["curve-operator", "disk", "prepare", "--cluster", settings.uid, "--mount", daemon_config.DATA]
    mounts: list[dict[str, Any]] = [
        {"name": "config", "mountPath": "/etc/curve", "readOnly": True},
        {"name": "data", "mountPath": daemon_config.DATA},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if device:
        prepare += ["--device", slot.disk.path, *(["--wipe"] if options.wipe_devices else [])]
        serve = [
            *("curve-operator", "disk", "serve", "--device", slot.disk.path, "--mount", daemon_config.DATA, "--"),
            *serve,
        ]
        mounts.append({"name": "dev", "mountPath": "/dev"})
    # mounting a disk needs the whole of it; a directory needs only its owner, root
    security: dict[str, Any] = (
        {"privileged": True}
        if device
        else {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE", "FOWNER"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    )
    return _render(
        settings,
        "chunkserver.yaml.j2",
        name=slot.name,
        labels=labels,
        pod_labels={**labels, names.LABEL_DAEMON: slot.name},
        pod_annotations={f"{names.GROUP}/config-hash": names.short_hash(config, 16)},
        selector={**labels, names.LABEL_DAEMON: slot.name},
        annotations={
            names.ANNOTATION_NODE: slot.node,
            names.ANNOTATION_PATH: slot.disk.path,
            names.ANNOTATION_ZONE: slot.zone,
        },
        service=f"{settings.name}-chunkserver",
        image=settings.image,
        pods=options.pods,
        affinity=_affinity(settings, "chunkserver", options.pods, slot.node),
        prepare=prepare,
        command=serve,
        security=security,
        mounts=mounts,
        resources=options.pods.resources or CHUNKSERVER_REQUESTS,
        port=options.port,
        http_port=options.http_port,
        device=device,
        path=slot.disk.path,
        sources=_sources(settings, slot.name, "chunkserver.yaml", "chunkserver"),
    )


def access(settings: Settings) -> Manifest:
    """What CSI and volume host mount to find the cluster."""
    return config_map(settings, settings.client_config, "client", {"client.yaml": daemon_config.client_yaml(settings)})


def _sources(settings: Settings, config: str, file: str, role: str) -> list[dict[str, Any]]:
    """One volume at /etc/curve: configuration, keyring and certificates, renewed in place by the kubelet."""
    sources: list[dict[str, Any]] = [
        {"configMap": {"name": config, "items": [{"key": file, "path": file}]}},
        {
            "secret": {
                "name": settings.keyring_secret,
                "items": [{"key": "keyring.json", "path": "keyring/keyring.json"}],
            }
        },
    ]
    if settings.tls:
        sources.append(
            {
                "secret": {
                    "name": settings.tls_secret(role),
                    "items": [{"key": key, "path": f"tls/{key}"} for key in ("ca.crt", "tls.crt", "tls.key")],
                }
            }
        )
    return sources


def _affinity(settings: Settings, component: str, options: PodOptions, *nodes: str) -> dict[str, Any]:
    """Pinned to `nodes` when given; members of a role prefer separate nodes, and never require them."""
    affinity: dict[str, Any] = {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 100,
                    "podAffinityTerm": {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchLabels": names.labels(settings.name, component)},
                    },
                }
            ]
        }
    }
    node_affinity = json.loads(json.dumps(options.node_affinity))
    pinned = [node for node in nodes if node]
    if pinned:
        required = node_affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
        terms = required.setdefault("nodeSelectorTerms", [{}])
        field = {"key": "metadata.name", "operator": "In", "values": pinned}
        if len(pinned) == 1:
            for term in terms:
                term.setdefault("matchFields", []).append(field)
        else:
            # matchFields takes a single value: one term per node
            required["nodeSelectorTerms"] = [
                {**term, "matchFields": [*term.get("matchFields", []), {**field, "values": [node]}]}
                for term in terms
                for node in pinned
            ]
    if node_affinity:
        affinity["nodeAffinity"] = node_affinity
    return affinity
