"""The MDS's configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from curve_storage.config import ConfigModel, EtcdConfig, TlsFiles
from curve_storage.units import SEGMENT_SIZE, GiB, parse_size


def _size(value: Any) -> Any:
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        return value
    try:
        return parse_size(value)
    except Exception as error:
        raise ValueError(str(error)) from error


Size = Annotated[int, BeforeValidator(_size)]


class HeartbeatConfig(ConfigModel):
    """Seconds. `grace`: after a change of leader nobody is called missing before this time has passed."""

    interval: float = Field(default=1.0, gt=0)
    unhealthy_after: float = Field(default=5.0, gt=0)
    offline_after: float = Field(default=600.0, gt=0)
    grace: float = Field(default=10.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> HeartbeatConfig:
        if not self.interval < self.unhealthy_after < self.offline_after:
            raise ValueError("interval < unhealthy_after < offline_after must hold")
        return self


class SchedulersConfig(ConfigModel):
    """interval: seconds between rounds; *_timeout: seconds until an operator that made no end is given up."""

    interval: float = Field(default=2.0, gt=0)
    recover: bool = True
    replica: bool = True
    copyset: bool = True
    leader: bool = True
    per_chunkserver: int = Field(default=1, ge=1, description="replicas being copied to one chunkserver at a time")
    leader_transfers: int = Field(default=8, ge=1, description="leader moves of a pool at a time")
    transfer_timeout: float = Field(default=10.0, gt=0)
    change_timeout: float = Field(default=1800.0, gt=0)
    cooling: float = Field(default=10.0, ge=0, description="a chunkserver back for less time is given no leaders")
    balance_tolerance: float = Field(default=0.05, ge=0, description="spread of copysets left alone, of the average")


class MdsConfig(ConfigModel):
    name: str = Field(min_length=1)
    cluster_id: str = Field(default="", description="Empty: made once and kept in etcd")
    listen: str = "0.0.0.0:6700"
    advertise: str = Field(min_length=3, description="host:port under which the others reach this MDS")
    http: str = "0.0.0.0:6701"
    etcd: EtcdConfig
    tls: TlsFiles | None = None
    keyring: Path = Field(description="JSON file of token keys, shared with the chunkservers")
    election_ttl: float = Field(default=3.0, ge=1)
    heartbeat: HeartbeatConfig = HeartbeatConfig()
    session_ttl: float = Field(default=30.0, gt=0)
    token_ttl: float = Field(default=3600.0, gt=0)
    recycle_retention: float = Field(default=86400.0, ge=0)
    over_provisioning: float = Field(default=1.0, ge=1.0)
    min_volume_size: Size = Field(default=GiB, gt=0)
    max_volume_size: Size = Field(default=64 * 1024 * GiB, gt=0)
    volume_granularity: Size = Field(default=GiB, gt=0)
    copysets_per_chunkserver: int = Field(default=24, ge=1, description="when CreatePool does not say how many")
    pool_wait: float = Field(default=10.0, ge=0, description="seconds CreatePool waits for leaders")
    fence_timeout: float = Field(default=8.0, gt=0)
    schedulers: SchedulersConfig = SchedulersConfig()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _sizes(self) -> MdsConfig:
        if self.volume_granularity % SEGMENT_SIZE and SEGMENT_SIZE % self.volume_granularity:
            raise ValueError("volume_granularity must divide 1 GiB or be a multiple of it")
        if self.min_volume_size % self.volume_granularity:
            raise ValueError("min_volume_size must be a multiple of volume_granularity")
        return self
