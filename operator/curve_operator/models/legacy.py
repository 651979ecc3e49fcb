"""Fields of the earlier Go operator that are accepted so that its sample resources apply unchanged.

`interpret` turns them into present-day settings and writes what they mean into `status.notes`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from curve_operator.models.base import IMAGE, PORT, ApiModel


class CurveVersion(ApiModel):
    image: IMAGE | None = Field(default=None, description="Image of all daemons; `spec.image` is the present spelling")
    image_pull_policy: Literal["IfNotPresent", "Always", "Never", ""] | None = None


class S3Config(ApiModel):
    ak: str | None = Field(default=None, max_length=256, description="Not used: keys do not belong in a resource")
    sk: str | None = Field(default=None, max_length=256, description="Not used: keys do not belong in a resource")
    nos_address: str | None = Field(default=None, max_length=512)
    bucket_name: str | None = Field(default=None, max_length=256)


class SnapShotClone(ApiModel):
    enable: bool = False
    port: PORT | None = None
    dummy_port: PORT | None = None
    proxy_port: PORT | None = None
    s3_config: S3Config | None = None
    s3: S3Config | None = None
    config: dict[str, str] | None = None


class Prometheus(ApiModel):
    container_image: IMAGE | None = None
    data_dir: str | None = Field(default=None, max_length=512)
    listen_port: PORT | None = None
    retention_time: str | None = Field(default=None, max_length=32)
    retention_size: str | None = Field(default=None, max_length=32)


class Grafana(ApiModel):
    container_image: IMAGE | None = None
    data_dir: str | None = Field(default=None, max_length=512)
    listen_port: PORT | None = None
    user_name: str | None = Field(default=None, max_length=128)
    pass_word: str | None = Field(default=None, max_length=128)


class NodeExporter(ApiModel):
    container_image: IMAGE | None = None
    listen_port: PORT | None = None


class Monitor(ApiModel):
    enable: bool = False
    monitor_host: str | None = Field(default=None, max_length=253)
    prometheus: Prometheus | None = None
    grafana: Grafana | None = None
    node_exporter: NodeExporter | None = None


class ChunkserverSection(ApiModel):
    port: PORT | None = Field(default=None, description="`storage.port` is the present spelling")
    instances: int | None = Field(default=None, ge=1, le=64, description="Chunkservers per node, in directories")
    config: dict[str, str] | None = Field(default=None, description="`storage.config` is the present spelling")
