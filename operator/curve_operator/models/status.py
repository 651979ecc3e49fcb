"""`CurveCluster.status`: what an administrator asks, answered."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from curve_operator.models.base import ApiModel

Phase = Literal["Pending", "Creating", "Ready", "Updating", "Deleting", "Failed"]
Health = Literal["Healthy", "Degraded", "Unavailable", "Unknown"]
ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(ApiModel):
    type: str = Field(max_length=63)
    status: ConditionStatus
    reason: str = Field(max_length=128)
    message: str = Field(default="", max_length=4096)
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"})
    observed_generation: int = 0


class DaemonCount(ApiModel):
    ready: int = 0
    desired: int = 0


class Daemons(ApiModel):
    etcd: DaemonCount = DaemonCount()
    mds: DaemonCount = DaemonCount()
    chunkserver: DaemonCount = DaemonCount()


class CopysetCount(ApiModel):
    total: int = 0
    healthy: int = 0
    available: int = 0


class Capacity(ApiModel):
    total_bytes: int = Field(default=0, json_schema_extra={"format": "int64"})
    used_bytes: int = Field(default=0, json_schema_extra={"format": "int64"})
    volume_bytes: int = Field(default=0, json_schema_extra={"format": "int64"})
    total: str = ""
    used: str = ""


class PoolStatus(ApiModel):
    name: str
    replicas: int = 0
    copysets: int = 0
    copysets_healthy: int = 0
    capacity: str = ""
    used: str = ""


class DiskStatus(ApiModel):
    name: str = Field(description="Of the daemon")
    node: str
    path: str
    zone: str = ""
    state: Literal["Waiting", "Preparing", "Formatting", "Ready", "Failed", "Removed"] = "Waiting"
    progress: int = Field(default=0, description="Percent of the chunk pool prepared")
    message: str = ""


class Endpoints(ApiModel):
    mds: list[str] = []
    etcd: list[str] = []
    client_config_map: str = ""
    client_secret: str = ""


class ClusterStatus(ApiModel):
    observed_generation: int = 0
    phase: Phase = "Pending"
    health: Health = "Unknown"
    message: str = ""
    reasons: list[str] = Field(default=[], description="Why health is not Healthy, each with what to do")
    waiting_for: list[str] = Field(default=[], description="What the operator is waiting for")
    notes: list[str] = Field(default=[], description="What older or unusual fields of this resource mean today")
    ready: str = Field(default="", description="Daemons ready of those wanted")
    daemons: Daemons = Daemons()
    disks: list[DiskStatus] = []
    copysets: CopysetCount = CopysetCount()
    capacity: Capacity = Capacity()
    pools: list[PoolStatus] = []
    volumes: int = 0
    cluster_id: str = Field(default="", description="Known once the MDS has answered")
    pool_created: bool = Field(default=False, description="From then on volumes may exist")
    mds_leader: str = ""
    version: str = ""
    versions: list[str] = Field(default=[], description="More than one during an upgrade")
    endpoints: Endpoints = Endpoints()
    conditions: list[Condition] = Field(
        default=[],
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)
