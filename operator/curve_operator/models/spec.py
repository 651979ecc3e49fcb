"""`CurveCluster.spec`: what an administrator asks for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from curve_operator.models.base import (
    ABSOLUTE_PATH,
    IMAGE,
    NODE_NAME,
    PORT,
    QUANTITY,
    ApiModel,
    opaque,
    rule,
    rules,
)
from curve_operator.models.legacy import ChunkserverSection, CurveVersion, Monitor, SnapShotClone

DaemonConfig = dict[str, str]

IMMUTABLE = "self == oldSelf"


class Placement(ApiModel):
    node_selector: dict[str, str] | None = None
    tolerations: list[dict[str, Any]] | None = Field(
        default=None,
        max_length=32,
        json_schema_extra={"items": opaque()},
    )
    node_affinity: dict[str, Any] | None = Field(default=None, json_schema_extra=opaque())
    priority_class_name: str | None = Field(default=None, max_length=253)


class Daemon(ApiModel):
    resources: dict[str, Any] | None = Field(
        default=None, description="Requests and limits of the container", json_schema_extra=opaque()
    )
    placement: Placement | None = None
    config: DaemonConfig | None = Field(
        default=None,
        max_length=100,
        description="Keys of the daemon's configuration file (dots go into sections) and their values as YAML",
    )


class EtcdStorage(ApiModel):
    storage_class_name: str | None = Field(default=None, max_length=253)
    size: QUANTITY = "4Gi"


class Etcd(Daemon):
    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.endpoints) || size(self.endpoints) == 0 || !has(self.volumeClaim)",
                "etcd.endpoints names an etcd that exists: remove etcd.volumeClaim, or remove the endpoints",
            ),
            rule(
                "has(self.endpoints) == has(oldSelf.endpoints)",
                "a cluster cannot move between its own etcd and an existing one: the metadata would be left behind",
            ),
        )
    )
    count: Literal[1, 3, 5] = Field(
        default=3,
        description="Members. One keeps no copy: only for tests",
        json_schema_extra=rules(rule(IMMUTABLE, "etcd.count cannot change: members are not added yet")),
    )
    image: IMAGE | None = Field(default=None, description="The etcd project's own image unless given")
    endpoints: list[str] | None = Field(
        default=None,
        max_length=16,
        description="host:port or http(s)://host:port of an existing etcd; the operator then runs none",
        json_schema_extra={"items": {"type": "string", "maxLength": 512, "minLength": 1}},
    )
    tls_secret_name: str | None = Field(
        default=None,
        max_length=253,
        description="With endpoints: Secret with ca.crt, tls.crt and tls.key for the existing etcd",
    )
    volume_claim: EtcdStorage | None = Field(
        default=None,
        description="Keep members on claims of a StorageClass; otherwise in directories of the nodes",
        json_schema_extra=rules(rule(IMMUTABLE, "etcd.volumeClaim cannot change: the members' data would be lost")),
    )
    client_port: PORT = 2379
    peer_port: PORT = 2380
    port: PORT | None = Field(default=None, description="Older spelling of peerPort")
    listen_port: PORT | None = Field(default=None, description="Older spelling of clientPort")


class Mds(Daemon):
    count: int = Field(default=3, ge=1, le=7, description="One is active, the others take over")
    port: PORT = 6700
    http_port: PORT | None = Field(default=None, description="Metrics and health; 6701 unless given")
    dummy_port: PORT | None = Field(default=None, description="Older spelling of httpPort")
    instances: int | None = Field(default=None, ge=1, le=7, description="Older spelling of count")


class Device(ApiModel):
    name: str = Field(
        max_length=512,
        pattern=r"^[^\s]+$",
        description="Block device: /dev/vdc, vdc, or a stable /dev/disk/by-id/... path",
    )
    mount_path: ABSOLUTE_PATH | None = Field(
        default=None, description="Accepted from older resources; the mount lives inside the pod only"
    )
    percentage: int = Field(default=90, ge=1, le=100, description="Share of the disk prepared as chunk files")


class Directory(ApiModel):
    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("!(has(self.size) && has(self.percentage))", "give size or percentage of a directory, not both")
        )
    )
    path: ABSOLUTE_PATH = Field(description="Directory on the node; created when it is missing")
    size: QUANTITY | None = Field(default=None, description="Bytes prepared as chunk files")
    percentage: int | None = Field(default=None, ge=1, le=100, description="Share of the free space instead of a size")


class SelectedNode(ApiModel):
    node: NODE_NAME
    zone: str | None = Field(default=None, max_length=63, pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9._-]*[a-zA-Z0-9])?$")
    devices: list[Device] | None = Field(default=None, max_length=64)
    directories: list[Directory] | None = Field(default=None, max_length=64)


class Pool(ApiModel):
    name: str = Field(default="default", max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    replicas: int = Field(default=3, ge=1, le=7)
    zones: int | None = Field(
        default=None, ge=1, le=7, description="Distinct zones of a copyset; replicas unless given"
    )
    copysets: int | None = Field(default=None, ge=1, le=100000, description="In all; chosen by the MDS unless given")
    scatter_width: int | None = Field(default=None, ge=0, le=100)


class Storage(Daemon):
    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!self.useSelectedNodes || (has(self.selectedNodes) && size(self.selectedNodes) > 0)",
                "useSelectedNodes needs selectedNodes: list each node with its devices or directories",
            ),
            rule(
                "!(self.useAllNodes && self.useSelectedNodes)",
                "choose one of useAllNodes and useSelectedNodes",
            ),
        )
    )
    use_all_nodes: bool = Field(default=False, description="Every node that nodeSelector and the taints admit")
    node_selector: dict[str, str] | None = Field(default=None, description="With useAllNodes: only nodes so labelled")
    nodes: list[NODE_NAME] | None = Field(default=None, max_length=1000, description="The same disks on each of these")
    use_selected_nodes: bool = False
    selected_nodes: list[SelectedNode] | None = Field(default=None, max_length=1000)
    devices: list[Device] | None = Field(default=None, max_length=64)
    directories: list[Directory] | None = Field(default=None, max_length=64)
    port: PORT = 8200
    http_port: PORT = 8201
    copy_sets: int | None = Field(default=None, ge=1, le=1000, description="Copysets per chunkserver")
    copysets: int | None = Field(default=None, ge=1, le=1000, description="Older spelling of copySets")
    wipe_devices: bool = Field(
        default=False,
        description="Prepare devices that hold other data: THAT DATA IS LOST. Without it they are refused",
    )
    pool: Pool = Field(
        default=Pool(),
        json_schema_extra=rules(
            rule(
                "self.name == oldSelf.name && self.replicas == oldSelf.replicas"
                " && has(self.copysets) == has(oldSelf.copysets)"
                " && (!has(self.copysets) || self.copysets == oldSelf.copysets)"
                " && has(self.zones) == has(oldSelf.zones) && (!has(self.zones) || self.zones == oldSelf.zones)",
                "name, replicas, zones and copysets of a pool are fixed when it is created",
            )
        ),
    )


class Tls(ApiModel):
    enabled: bool = Field(
        default=True,
        description="Mutual TLS between all daemons and clients; certificates are made and renewed by the operator",
        json_schema_extra=rules(rule(IMMUTABLE, "tls.enabled cannot change on a running cluster")),
    )


class ClusterSpec(ApiModel):
    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!(has(self.dataDir) && has(self.hostDataDir)) || self.dataDir == self.hostDataDir",
                "dataDir and hostDataDir are two spellings of one field: give one",
            ),
            rule(
                "(has(self.dataDir) ? self.dataDir : has(self.hostDataDir) ? self.hostDataDir :"
                " has(self.dataDirHostPath) ? self.dataDirHostPath : '') =="
                " (has(oldSelf.dataDir) ? oldSelf.dataDir : has(oldSelf.hostDataDir) ? oldSelf.hostDataDir :"
                " has(oldSelf.dataDirHostPath) ? oldSelf.dataDirHostPath : '')",
                "the data directory cannot change: the daemons' data would be left behind",
            ),
        )
    )
    image: IMAGE | None = Field(default=None, description="Curve image; the operator's own unless given")
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] | None = None
    image_pull_secrets: list[str] | None = Field(
        default=None, max_length=16, json_schema_extra={"items": {"type": "string", "maxLength": 253}}
    )
    nodes: list[NODE_NAME] | None = Field(
        default=None,
        max_length=1000,
        description="Nodes of etcd and MDS, and of storage when storage names none",
    )
    data_dir: ABSOLUTE_PATH | None = Field(
        default=None, description="Directory on the nodes for etcd and MDS; /var/lib/curve unless given"
    )
    etcd: Etcd = Etcd()
    mds: Mds = Mds()
    storage: Storage = Storage()
    tls: Tls = Tls()
    placement: Placement | None = Field(default=None, description="Of every daemon that gives none of its own")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    cleanup_confirm: Literal["Confirm", "confirm", ""] | None = Field(
        default=None,
        description="Confirm: deletion goes ahead while volumes exist, and the daemons' data on the nodes is removed",
    )
    curve_version: CurveVersion | None = None
    host_data_dir: ABSOLUTE_PATH | None = Field(default=None, description="Older spelling of dataDir")
    data_dir_host_path: ABSOLUTE_PATH | None = Field(default=None, description="Older spelling of dataDir")
    log_dir: ABSOLUTE_PATH | None = Field(default=None, description="Not used: daemons log to standard error")
    log_dir_host_path: ABSOLUTE_PATH | None = Field(default=None, description="Not used: daemons log to standard error")
    copysets: int | None = Field(default=None, ge=1, le=1000, description="Older spelling of storage.copySets")
    chunkserver: ChunkserverSection | None = None
    snap_shot_clone: SnapShotClone | None = None
    snapshotclone: SnapShotClone | None = None
    monitor: Monitor | None = None
