"""What the host knows of each attached volume across its own restarts: one small JSON file per volume, fsynced,
with a checksum and a copy.

Layout of a volume's folder: `state.json` and its copy, `mount/` (mount point, with the file `volume` inside),
`nbd.sock`, `control.<generation>` (sockets of data processes), `process.log`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from curve_storage import twin_file
from curve_storage.errors import Corruption
from curve_storage.telemetry import logs

_VERSION = 2
_log = logs.get("volume-state")


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

    def body(self) -> dict[str, object]:
        return {"version": _VERSION, **asdict(self)}

    @classmethod
    def from_body(cls, fields: dict[str, Any]) -> VolumeState:
        """Raises ValueError."""
        if fields.pop("version", None) != _VERSION:
            raise ValueError("unknown version")
        try:
            state = cls(**fields)
        except TypeError as error:
            raise ValueError(str(error)) from error
        return replace(state, phase=Phase(state.phase), backend=Backend(state.backend))


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
        twin_file.save(folder / "state.json", state.body(), _write)

    def load(self, volume_id: int) -> VolumeState | None:
        """None when there is none; a damaged file is written anew from its copy. Raises Corruption naming the file
        when both are damaged."""
        path = self.folder(volume_id) / "state.json"
        try:
            body, repaired = twin_file.load(path, _write)
            for sentence in repaired:
                _log.warning("volume state repaired", volume=volume_id, what=sentence)
            state = VolumeState.from_body(body)
            if state.volume_id != volume_id:
                raise ValueError(f"it is of volume {state.volume_id}")
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise Corruption(
                f"not the state of a volume: {error}",
                where=str(path),
                todo="Unmount and detach the volume, remove its folder",
            ) from error
        return state

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
        twin_file.copy_of(folder / "state.json").unlink(missing_ok=True)
        (folder / "state.json").unlink(missing_ok=True)
        for entry in folder.iterdir():
            if entry.is_dir():
                entry.rmdir()
            else:
                entry.unlink(missing_ok=True)
        folder.rmdir()
        _sync_folder(self.root)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
