"""What a `CurveCluster` means once every spelling is resolved: the only form the rest of the operator reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from curve_operator import names
from curve_operator.models.spec import Daemon, Pool


@dataclass(frozen=True)
class DiskRequest:
    """One disk asked for on a node: a block device or a directory. size "" with percent 0: the daemon chooses."""

    path: str
    device: bool
    percent: int = 0
    size: str = ""


@dataclass(frozen=True)
class NodeRequest:
    node: str
    zone: str
    disks: tuple[DiskRequest, ...]


@dataclass(frozen=True)
class PodOptions:
    """Of one role: scheduling, resources, extra keys of its configuration file."""

    resources: dict[str, Any]
    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]]
    node_affinity: dict[str, Any]
    priority_class: str
    config: dict[str, Any]


@dataclass(frozen=True)
class EtcdSettings:
    external: tuple[str, ...]
    external_secret: str
    count: int
    image: str
    client_port: int
    peer_port: int
    claim: dict[str, str] | None
    pods: PodOptions


@dataclass(frozen=True)
class MdsSettings:
    count: int
    port: int
    http_port: int
    pods: PodOptions


@dataclass(frozen=True)
class StorageSettings:
    all_nodes: bool
    node_selector: dict[str, str]
    requests: tuple[NodeRequest, ...]
    disks: tuple[DiskRequest, ...]
    port: int
    http_port: int
    copysets_per_chunkserver: int
    wipe_devices: bool
    pool: Pool
    pods: PodOptions


@dataclass(frozen=True)
class Settings:
    name: str
    namespace: str
    uid: str
    generation: int
    image: str
    pull_policy: str
    pull_secrets: tuple[str, ...]
    nodes: tuple[str, ...]
    data_dir: str
    tls: bool
    log_level: str
    confirm_deletion: bool
    wipe_data: bool
    paused: bool
    etcd: EtcdSettings
    mds: MdsSettings
    storage: StorageSettings
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def etcd_service(self) -> str:
        return f"{self.name}-etcd"

    @property
    def mds_service(self) -> str:
        return f"{self.name}-mds"

    @property
    def ca_secret(self) -> str:
        return f"{self.name}-ca"

    @property
    def keyring_secret(self) -> str:
        return f"{self.name}-keyring"

    @property
    def client_secret(self) -> str:
        return f"{self.name}-client-tls"

    @property
    def client_config(self) -> str:
        return f"{self.name}-client"

    def tls_secret(self, role: str) -> str:
        return f"{self.name}-{role}-tls"

    def etcd_member(self, index: int) -> str:
        return f"{self.name}-etcd-{names.member_suffix(index)}"

    def etcd_host(self, index: int) -> str:
        return f"{self.etcd_member(index)}-0.{self.etcd_service}.{self.namespace}.svc"

    def mds_host(self, index: int) -> str:
        return f"{self.mds_service}-{index}.{self.mds_service}.{self.namespace}.svc"

    @property
    def mds_addresses(self) -> list[str]:
        return [f"{self.mds_host(index)}:{self.mds.port}" for index in range(self.mds.count)]

    @property
    def etcd_endpoints(self) -> list[str]:
        if self.etcd.external:
            return list(self.etcd.external)
        scheme = "https" if self.tls else "http"
        return [f"{scheme}://{self.etcd_host(index)}:{self.etcd.client_port}" for index in range(self.etcd.count)]


def options_of(daemon: Daemon, fallback: Daemon, config: dict[str, Any]) -> PodOptions:
    """fallback: the cluster-wide placement, used whole where the role gives none."""
    placement = daemon.placement or fallback.placement
    return PodOptions(
        resources=daemon.resources or {},
        node_selector=dict((placement and placement.node_selector) or {}),
        tolerations=list((placement and placement.tolerations) or []),
        node_affinity=dict((placement and placement.node_affinity) or {}),
        priority_class=(placement and placement.priority_class_name) or "",
        config=config,
    )
