"""All copysets of this disk: loading at start, creating and removing by order of the MDS, trash.

    copysets/<group>             a replica, <group> = 16 hex digits
    copysets/<group>.incoming    a snapshot being received
    copysets/<group>.ready, .old the two halves of installing one
    copysets/<group>/damaged     marks a replica that must not serve again
    trash/<group>.<seconds>      removed replicas, whose chunks are reused after a while

A replica whose directory or log is damaged is never given an empty state under the same membership: it would vote as
if it had forgotten what it promised. It stays out of service, is reported as corrupt, and the MDS replaces it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from curve_storage.chunkserver.atomic_file import fsync_directory, write_atomic
from curve_storage.chunkserver.chunk_directory import PREFIX
from curve_storage.chunkserver.chunk_file import disk_failed
from curve_storage.chunkserver.copyset import Copyset, Surroundings, create_directory
from curve_storage.chunkserver.snapshot import INCOMING, OLD, READY, complete, discard_directory
from curve_storage.consensus.api import ConsensusHost, Membership
from curve_storage.errors import Corruption
from curve_storage.telemetry import logs

DAMAGED = "damaged"

log = logs.get("copysets")


class Copysets:
    def __init__(self, data: Path, around: Surroundings, *, trash_retention: float) -> None:
        self.root = data / "copysets"
        self._trash = data / "trash"
        self._around = around
        self._retention = trash_retention
        self.by_group: dict[int, Copyset] = {}
        self.damaged: dict[int, str] = {}
        self._removing: set[int] = set()
        self.root.mkdir(parents=True, exist_ok=True)
        self._trash.mkdir(parents=True, exist_ok=True)

    def count_chunk_files(self) -> int:
        """Chunk files outside the pool. Raises OSError."""
        return sum(
            name.startswith(PREFIX)
            for parent in (self.root, self._trash)
            for directory in parent.iterdir()
            if directory.is_dir()
            for name in os.listdir(directory)
        )

    def path(self, group: int) -> Path:
        return self.root / f"{group:016x}"

    async def load(self, host: ConsensusHost) -> None:
        """Brings every replica the log knows to life; the pool must be scanned. Raises OSError."""
        self._finish_installs()
        known = set(host.known_groups())
        for group in sorted(known):
            path = self.path(group)
            try:
                _refuse_marked(path)
                self.by_group[group] = copyset = Copyset(path, group, self._around)
            except Corruption as error:
                await self._damage(group, str(error), host)
                continue
            host.add_group(group, copyset)
        for directory in sorted(self.root.iterdir()):
            named = _group_of(directory)
            if named is None:
                log.error(
                    "not a replica's directory, left alone", path=str(directory),
                    todo="Remove it; if a replica is missing, it is rebuilt from its peers",
                )  # fmt: skip
                continue
            group = named
            if group in known:
                continue
            try:
                _refuse_marked(directory)
                index = Copyset(directory, group, self._around).applied
            except Corruption as error:
                await self._damage(group, str(error), None)
                continue
            if index:
                await self._damage(group, "the log knows nothing of it", None)
            else:
                discard_directory(directory, self._around.pool)  # a creation that did not get to the log

    async def _damage(self, group: int, reason: str, host: ConsensusHost | None) -> None:
        """Out of service for good, durably; the shared log need not keep its entries any longer."""
        self.damaged[group] = reason
        path = self.path(group)
        path.mkdir(exist_ok=True)
        if not (path / DAMAGED).exists():
            write_atomic(path / DAMAGED, reason.encode())
            fsync_directory(self.root)
        log.error("replica damaged, to be rebuilt from its peers", group=group, reason=reason)
        if host is not None:
            await host.remove_group(group)

    def _finish_installs(self) -> None:
        for directory in sorted(self.root.iterdir()):
            base, _, suffix = directory.name.partition(".")
            if suffix and f".{suffix}" == READY:
                complete(self.root / base)
        for directory in sorted(self.root.iterdir()):
            _, _, suffix = directory.name.partition(".")
            if f".{suffix}" in (INCOMING, OLD):
                discard_directory(directory, self._around.pool)

    def create(self, group: int, membership: Membership, host: ConsensusHost) -> bool:
        """A new empty replica, durably; False when there is one (or a damaged one to be removed first)."""
        if group in self.by_group or group in self.damaged or group in self._removing:
            return False
        path = self.path(group)
        try:
            discard_directory(path, self._around.pool)
            create_directory(path, group)
        except OSError as error:
            raise disk_failed(error, path) from error
        copyset = Copyset(path, group, self._around)
        host.add_group(group, copyset, membership)
        self.by_group[group] = copyset
        log.info("replica created", group=group, voters=list(membership.voters))
        return True

    async def remove(self, group: int, host: ConsensusHost) -> None:
        """Ends the replica; its chunks go to the trash. Idempotent. Raises DiskFailed."""
        if group in self._removing:
            return
        self._removing.add(group)
        try:
            await host.remove_group(group)
            copyset = self.by_group.pop(group, None)
            self.damaged.pop(group, None)
            path = self.path(group)
            if copyset is not None:
                async with copyset.exchange:
                    copyset.chunks.remove()
                    self._to_trash(path)
            else:
                self._to_trash(path)
            log.info("replica removed", group=group)
        finally:
            self._removing.discard(group)

    def _to_trash(self, path: Path) -> None:
        try:
            discard_directory(path.with_name(path.name + INCOMING), self._around.pool)
            if path.exists():
                os.rename(path, self._trash / f"{path.name}.{int(time.time())}")
                fsync_directory(path.parent)
                fsync_directory(self._trash)
        except OSError as error:
            raise disk_failed(error, path) from error

    def empty_trash(self, now: float, *, urgent: bool) -> int:
        """Recycles what is older than the retention (everything when urgent). now: wall seconds. Returns how many."""
        emptied = 0
        for directory in sorted(self._trash.iterdir()):
            removed = directory.name.rpartition(".")[2]
            if urgent or not removed.isdigit() or now - int(removed) >= self._retention:
                try:
                    discard_directory(directory, self._around.pool)
                except OSError as error:
                    raise disk_failed(error, directory) from error
                emptied += 1
        return emptied


def _group_of(directory: Path) -> int | None:
    """None: this is no name of ours (it may have rotted)."""
    try:
        group = int(directory.name, 16)
    except ValueError:
        return None
    return group if directory.name == f"{group:016x}" and directory.is_dir() else None


def _refuse_marked(directory: Path) -> None:
    mark = directory / DAMAGED
    if mark.exists():
        raise Corruption(mark.read_text(errors="replace"))
