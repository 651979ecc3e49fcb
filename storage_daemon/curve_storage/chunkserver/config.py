"""Configuration of a chunkserver (YAML, see docs/architecture.md for the keys common to all daemons)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from curve_storage.config import ConfigModel, TlsFiles
from curve_storage.errors import InvalidArgument
from curve_storage.units import MiB, parse_size


def _size(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return parse_size(value)
        except InvalidArgument as error:
            raise ValueError(f"{error.what}. {error.todo}") from error
    return value


Size = Annotated[int, BeforeValidator(_size)]


class PoolConfig(ConfigModel):
    """Pre-allocated chunk files."""

    size: str | int = Field(default="auto", description='"auto" (80 % of the file system), "75%" or bytes ("100Gi")')
    first_batch: int = Field(default=8, ge=1, description="chunk files that must exist before service starts")
    ready: int = Field(default=32, ge=1, description="files kept physically written ahead of use")
    reserve: int | None = Field(
        default=None, ge=0, description="files kept for applying what the group has already committed"
    )
    bandwidth: Size = Field(default=256 * MiB, gt=0, description="bytes per second of writing files ahead of use")

    @field_validator("size")
    @classmethod
    def _check(cls, value: str | int) -> str | int:
        if isinstance(value, str) and value != "auto":
            if value.endswith("%"):
                try:
                    percent = float(value[:-1])
                except ValueError:
                    percent = -1.0
                if not 0 < percent <= 95:
                    raise ValueError(f"{value!r}: a percentage lies between 0 and 95")
                return value
            return int(_size(value))
        return value


class LogConfig(ConfigModel):
    """The write-ahead log that all copysets share."""

    segment_size: Size = Field(default=64 * MiB, ge=MiB)
    max_size: Size = Field(default=1024 * MiB, ge=4 * MiB)


class ScrubConfig(ConfigModel):
    interval: float = Field(default=7 * 86400, gt=0, description="seconds within which every chunk is read once")
    bandwidth: Size = Field(default=20 * MiB, gt=0, description="bytes per second at most")
    enabled: bool = True


class ChunkServerConfig(ConfigModel):
    name: str = ""
    data: Path
    listen: str = "0.0.0.0:8200"
    advertise: str = ""
    http: str = "0.0.0.0:8201"
    mds: list[str] = Field(min_length=1)
    server: str = ""
    zone: str = "default"
    physical_pool: str = "default"
    poolset: str = "default"
    disk_type: str = "ssd"
    pool: PoolConfig = PoolConfig()
    log: LogConfig = LogConfig()
    scrub: ScrubConfig = ScrubConfig()
    tls: TlsFiles | None = None
    keyring: Path | None = None
    heartbeat_interval: float = Field(default=1.0, gt=0)
    full_report_every: int = Field(default=60, ge=1, description="beats; between them changes alone are reported")
    election_timeout_ms: int = Field(default=1000, ge=50)
    max_inflight: int = Field(default=4096, ge=1)
    open_chunks: int = Field(default=1024, ge=16)
    trash_retention: float = Field(
        default=300.0, ge=0, description="seconds before a removed replica's chunks are reused"
    )
    stop_timeout: float = Field(default=2.0, ge=0, description="seconds given to handing leaderships over at SIGTERM")
    log_level: str = "info"
