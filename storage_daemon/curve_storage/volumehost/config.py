"""Configuration of the volume host."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from curve_storage.config import ConfigModel


class VolumeHostConfig(ConfigModel):
    root: Path = Field(default=Path("/var/lib/curve/volumehost"), description="Sockets, mounts and state")
    node: str = Field(min_length=1, description="Name of this node, as the MDS knows it from attach requests")
    client: Path | None = Field(
        default=None, description="Client configuration (addresses of the MDS); also for data processes"
    )
    http: str = Field(default="0.0.0.0:9100", description="host:port of /metrics, /healthz and /readyz")
    log_level: str = "info"
    watchdog: float = Field(
        default=5.0, gt=0, description="Seconds without an answer after which a data process is replaced"
    )
    loop_block_size: int = Field(default=4096, description="Logical block of loop devices in bytes: 512 or 4096")
    open_timeout: float = Field(default=60.0, gt=0, description="Seconds a new attachment may take to open its volume")
    device_files: Path | None = Field(
        default=None, description="Tests and benchmarks only: serve the file <volume id> of this folder, not a volume"
    )
    device_delay: float = Field(default=0.0, ge=0, description="With device_files: seconds each read and write takes")

    @property
    def socket(self) -> Path:
        return self.root / "host.sock"

    @property
    def keeper(self) -> Path:
        return self.root / "keeper.sock"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"
