"""The few file operations of the shared log, behind an interface: simulations lose and tear unsynced writes here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from curve_storage.consensus.api import Buffer
from curve_storage.errors import DiskFailed
from curve_storage.units import MiB

_IOV_MAX = 1024
_ZEROS = bytes(MiB)


class DiskFile(Protocol):
    name: str

    def read(self, offset: int, length: int) -> bytes:
        """Shorter at the end of the file. Raises DiskFailed."""
        ...

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Not durable before `sync`. Raises DiskFailed."""
        ...

    def sync(self) -> None:
        """Raises DiskFailed; nothing written before may then be trusted any more."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    def names(self) -> list[str]: ...

    def open(self, name: str) -> DiskFile: ...

    def create(self, name: str, size: int) -> DiskFile:
        """A file of zeros, written out and durable, its name too. Raises DiskFailed, NoSpace."""
        ...

    def remove(self, name: str) -> None: ...


class RealFile:
    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _failed(error, path, "cannot open") from error

    def read(self, offset: int, length: int) -> bytes:
        try:
            found = os.pread(self._fd, length, offset)
            if len(found) == length or not found:
                return found
            parts = [found]
            while len(found) and sum(map(len, parts)) < length:
                done = sum(map(len, parts))
                found = os.pread(self._fd, length - done, offset + done)
                parts.append(found)
            return b"".join(parts)
        except OSError as error:
            raise _failed(error, self._path, "cannot read") from error

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        try:
            for start in range(0, len(buffers), _IOV_MAX):
                part = buffers[start : start + _IOV_MAX] if len(buffers) > _IOV_MAX else buffers
                want = sum(map(len, part))
                done = os.pwritev(self._fd, part, offset)
                if done < want:  # interrupted: the rest in one piece
                    rest = memoryview(b"".join(part))
                    while done < want:
                        done += os.pwrite(self._fd, rest[done:], offset + done)
                offset += want
        except OSError as error:
            raise _failed(error, self._path, "cannot write") from error

    def sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise _failed(error, self._path, "cannot sync") from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RealDisk:
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for leftover in directory.glob("*.new"):
                leftover.unlink()
        except OSError as error:
            raise _failed(error, directory, "cannot prepare the directory") from error

    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._directory))
        except OSError as error:
            raise _failed(error, self._directory, "cannot list") from error

    def open(self, name: str) -> RealFile:
        return RealFile(self._directory / name)

    def create(self, name: str, size: int) -> RealFile:
        path = self._directory / name
        fresh = self._directory / f"{name}.new"
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                for offset in range(0, size, len(_ZEROS)):
                    part = memoryview(_ZEROS)[: min(len(_ZEROS), size - offset)]
                    if os.pwrite(fd, part, offset) != len(part):
                        raise OSError(28, "short write")
                    if offset % (8 * MiB) == 0:
                        os.fdatasync(fd)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(fresh, path)
            self._sync_directory()
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise _failed(error, path, "cannot create") from error
        return RealFile(path)

    def remove(self, name: str) -> None:
        try:
            (self._directory / name).unlink()
            self._sync_directory()
        except OSError as error:
            raise _failed(error, self._directory / name, "cannot remove") from error

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _failed(error: OSError, path: Path, what: str) -> DiskFailed:
    return DiskFailed(
        f"{what}: {error.strerror}", where=str(path), todo="Check the disk and its free space, then restart"
    )
