"""What the host knows of each attached volume across its own restarts: one small JSON file per volume, fsynced.

Layout of a volume's folder: `state.json`, `mount/` (mount point, with the file `volume` inside), `nbd.sock`,
`control.<generation>` (sockets of data processes), `process.log`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from curve_storage.errors import Corruption

_VERSION = 1


class Phase(StrEnum):
    ATTACHING = "attaching"  # nobody has been given the device yet
    ATTACHED = "attached"
    DETACHING = "detaching"


class Backend(StrEnum):
    LOOP = "loop"
    NBD = "nbd"


@dataclass(frozen=True, slots=True)
class VolumeState:
    """generation: number of the present data process, from 1; takeovers: replacements after a death."""

    volume_id: int
    path: str
    epoch: int
    backend: Backend
    read_only: bool
    phase: Phase
    size: int = 0
    generation: int = 0
    takeovers: int = 0
    fenced: bool = False
    loop_number: int = -1
    loop_sequence: int = 0  # with the number: this very binding of the loop device, see `attach.loop`

    def encode(self) -> bytes:
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes, *, where: str) -> VolumeState:
        """Raises Corruption naming the file."""
        try:
            fields = json.loads(data)
            if fields.pop("version") != _VERSION:
                raise ValueError("unknown version")
            state = cls(**fields)
            return replace(state, phase=Phase(state.phase), backend=Backend(state.backend))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Corruption(
                f"not the state of a volume: {error}",
                where=where,
                todo="Unmount and detach the volume, remove its folder",
            ) from error


class StateStore:
    """The folder `volumes`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, volume_id: int) -> Path:
        return self.root / str(volume_id)

    def mount_point(self, volume_id: int) -> Path:
        return self.folder(volume_id) / "mount"

    def nbd_socket(self, volume_id: int) -> Path:
        return self.folder(volume_id) / "nbd.sock"

    def control(self, volume_id: int, generation: int) -> Path:
        return self.folder(volume_id) / f"control.{generation}"

    def controls(self, volume_id: int) -> list[Path]:
        """Sockets of data processes, alive or not, the newest first."""
        found = self.folder(volume_id).glob("control.*")
        return sorted(found, key=lambda path: int(path.suffix[1:] or 0), reverse=True)

    def save(self, state: VolumeState) -> None:
        folder = self.folder(state.volume_id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = folder / "state.json.new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, state.encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(folder / "state.json")
        _sync_folder(folder)

    def load(self, volume_id: int) -> VolumeState | None:
        """None when there is none; Corruption when it cannot be read."""
        path = self.folder(volume_id) / "state.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        return VolumeState.decode(data, where=str(path))

    def volume_ids(self) -> Iterator[int]:
        """Of every folder, with or without a state."""
        if self.root.is_dir():
            for folder in sorted(self.root.iterdir()):
                if folder.name.isdecimal():
                    yield int(folder.name)

    def remove(self, volume_id: int) -> None:
        """Forget the volume; its mount point must not be mounted any more."""
        folder = self.folder(volume_id)
        if not folder.is_dir():
            return
        (folder / "state.json").unlink(missing_ok=True)
        for entry in folder.iterdir():
            if entry.is_dir():
                entry.rmdir()
            else:
                entry.unlink(missing_ok=True)
        folder.rmdir()
        _sync_folder(self.root)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
