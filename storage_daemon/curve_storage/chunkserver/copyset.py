"""One copyset as a replicated state machine: chunks, and who may write to them.

`apply` is synchronous, goes to the page cache only, and decides by replicated state alone, so that replicas never
differ; what only this disk lacks (space) makes a chunk hollow here and is fetched later. A checkpoint makes chunk files
durable first and says so in `meta` afterwards, with the writers' table exactly as it was at its index: a newer table
would make the replay skip commands whose data is not on the disk yet.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Protocol

from curve_storage.chunkserver import commands, copyset_meta
from curve_storage.chunkserver.atomic_file import fsync_directory, write_atomic
from curve_storage.chunkserver.chunk_directory import ChunkDirectory, OpenFiles
from curve_storage.chunkserver.chunk_file import NO_SPACE, ChunkFile, Handle, disk_failed
from curve_storage.chunkserver.copyset_meta import CopysetMeta
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.chunkserver.snapshot import CopysetSink, CopysetSource
from curve_storage.chunkserver.writers import Verdict, WriterTable
from curve_storage.consensus.api import Buffer, Membership, SnapshotSink, SnapshotSource
from curve_storage.errors import Corruption, CurveError, FailedPrecondition, Fenced, StoreReadOnly
from curve_storage.telemetry import logs
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE

_FLUSH_PER_TURN = 16

log = logs.get("copyset")


class DiskSpace(Protocol):
    def exhausted(self, what: str) -> StoreReadOnly:
        """Small files cannot be written for want of space: the store is read-only from now on."""
        ...


class Surroundings:
    """What all copysets of a process share. io: threads for fsync and blocking reads."""

    def __init__(
        self,
        pool: ChunkPool,
        files: OpenFiles,
        io: Executor,
        space: DiskSpace,
        on_failed: Callable[[CurveError], None],
    ) -> None:
        self.pool = pool
        self.files = files
        self.io = io
        self.space = space
        self.on_failed = on_failed


def create_directory(path: Path, group: int) -> None:
    """An empty copyset on the disk, durably. Raises OSError."""
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / copyset_meta.FILE, copyset_meta.encode(CopysetMeta(group)))
    fsync_directory(path.parent)


class Copyset:
    """Implements consensus.api.StateMachine."""

    def __init__(self, path: Path, group: int, around: Surroundings) -> None:
        """Loads the last checkpoint of an existing directory. Raises Corruption, OSError."""
        self.group = group
        self.path = path
        self.around = around
        self.chunks = ChunkDirectory(path, group, around.pool, around.files)
        self.writers = WriterTable()
        self.membership = Membership(voters=())
        self.leader = False
        self.term = 0
        self.applied = 0
        self.applied_term = 0
        self._durable = 0
        self._meta_rotten = False
        self._emptied: set[int] = set()
        self._checkpointing = asyncio.Lock()
        self.load()

    def load(self) -> None:
        meta = copyset_meta.load(self.path)
        if meta.group != self.group:
            raise Corruption(
                f"the file is of group {meta.group}", where=str(self.path), todo="The replica must be rebuilt"
            )
        self.chunks.close_all()
        self.chunks.load(meta)
        self._emptied.clear()
        self.writers.restore(meta.writers)
        self.applied = self._durable = meta.index
        self.applied_term = meta.term

    # ---- commands

    def durable_index(self) -> int:
        return self._durable

    def apply(self, index: int, term: int, header: bytes, payload: memoryview) -> Any:
        result = self._execute(header, payload) if header else None
        self.applied = index
        self.applied_term = term
        return result

    def _execute(self, header: bytes, payload: memoryview) -> CurveError | None:
        op = commands.check_version(header)
        if op == commands.WRITE:
            return self._write(header, payload)
        if op == commands.DISCARD or op == commands.DELETE:
            return self._discard(header, op)
        if op == commands.FENCE:
            volume, epoch = commands.parse_fence(header)
            self.writers.fence(volume, epoch)
            return None
        if op == commands.DELETE_VOLUME:
            volume, doomed = commands.parse_delete_volume(header, payload)
            for chunk in doomed:
                self.chunks.delete(chunk)
            self.writers.forget(volume)
            return None
        raise Corruption(f"command {op} is not known", where=str(self.path), todo="Run a newer chunkserver")

    def _write(self, header: bytes, payload: memoryview) -> CurveError | None:
        meta = commands.chunk_meta(header)
        verdict = self.writers.admit(meta.volume, meta.epoch, meta.generation, meta.seq, meta.low)
        if verdict is not Verdict.APPLY:
            return self._refusal(verdict, meta.volume)
        chunk = self.chunks.for_write(meta.chunk, meta.volume, meta.sn)
        if chunk is not None:
            chunk.write(meta.offset, payload)
        return None

    def _discard(self, header: bytes, op: int) -> CurveError | None:
        meta = commands.chunk_meta(header)
        verdict = self.writers.admit(meta.volume, meta.epoch, meta.generation, meta.seq, meta.low)
        if verdict is not Verdict.APPLY:
            return self._refusal(verdict, meta.volume)
        if not self.chunks.exists(meta.chunk):
            return None
        if op == commands.DELETE or (meta.offset == 0 and meta.length == CHUNK_SIZE):
            self.chunks.delete(meta.chunk)
            return None
        chunk = self.chunks.for_write(meta.chunk, meta.volume, meta.sn)
        if chunk is not None:
            chunk.discard(meta.offset, meta.length)
            if chunk.blank:
                # Freed by the next checkpoint. Not here: a file of the same name made in the same interval could not
                # be told from this one after a crash.
                self._emptied.add(meta.chunk)
        return None

    def _still_empty(self) -> set[int]:
        found = set()
        for number in self._emptied:
            chunk = self.chunks.get(number)
            if chunk is not None and chunk.blank:
                found.add(number)
        return found

    def _refusal(self, verdict: Verdict, volume: int) -> CurveError | None:
        if verdict is Verdict.ALREADY_APPLIED:
            return None
        if verdict is Verdict.FENCED:
            return fenced(volume, self.writers.epoch(volume))
        return FailedPrecondition(
            "the request's number lies below those the writer has acknowledged",
            where=f"volume {volume}",
            todo="Drop it: it is a late duplicate",
        )

    def on_role(self, leader: bool, term: int) -> None:
        self.leader = leader
        self.term = term

    def on_membership(self, membership: Membership) -> None:
        self.membership = membership

    # ---- repair

    def is_bad(self, chunk: ChunkFile, block: int) -> bool:
        """Reads the block again and compares; blocking, for the rare moment of a repair. Raises DiskFailed."""
        data = chunk.read_blocking(block * BLOCK_SIZE, BLOCK_SIZE)
        return bool(chunk.check(block * BLOCK_SIZE, data))

    def install(self, chunk_id: int, first: int, entries: Sequence[int], data: Buffer) -> int:
        """Puts another replica's blocks where this one's are still bad (a newer write wins). Returns how many.

        entries: one per block from `first`, 0 for an unwritten one. Raises DiskFailed.
        """
        if chunk_id in self.chunks.hollow and not self.chunks.materialize(chunk_id):
            return 0
        chunk = self.chunks.get(chunk_id)
        if chunk is None:
            return 0
        view = memoryview(data)
        repaired = 0
        for position, entry in enumerate(entries):
            block = first + position
            if self.is_bad(chunk, block):
                chunk.install(block, entry, view[position * BLOCK_SIZE : (position + 1) * BLOCK_SIZE])
                repaired += 1
        if repaired:
            self.chunks.changed(chunk)
        return repaired

    # ---- checkpoint

    def describe(self) -> CopysetMeta:
        """The state as of `applied`, without the chunks' content (and without those that have none)."""
        empty = self._still_empty()
        return CopysetMeta(
            group=self.group,
            index=self.applied,
            term=self.applied_term,
            chunks=[number for number in self.chunks.with_files() if number not in empty],
            hollow=sorted(self.chunks.hollow),
            writers=self.writers.dump(),
        )

    async def checkpoint(self) -> int:
        """Raises StoreReadOnly while the file system is full, DiskFailed after any other error of the disk."""
        async with self._checkpointing:
            if self.chunks.removed:
                return self._durable  # removed while this waited for its turn
            meta = self.describe()
            if meta.index == self._durable and not self.chunks.has_dirty and not self._meta_rotten:
                return self._durable
            dirty = self.chunks.take_dirty()
            try:
                await self._save(meta, dirty)
            except OSError as error:
                self.chunks.put_back_dirty(dirty)
                if error.errno in NO_SPACE:
                    raise self.around.space.exhausted(
                        f"the checkpoint of {self.path.name} cannot be written"
                    ) from error
                failure = disk_failed(error, self.path)
                self.around.on_failed(failure)
                raise failure from error
            self._durable = max(self._durable, meta.index)
            self._meta_rotten = False
            listed = set(meta.chunks)
            for number in self._still_empty() - listed:
                self.chunks.delete(number)
            self._emptied = self._still_empty()
            self.around.files.trim()
            return meta.index

    async def renew_meta(self) -> bool:
        """Writes `meta` anew when the one on the disk has rotted. Raises as `checkpoint`."""
        if self.chunks.removed:
            return False
        try:
            copyset_meta.load(self.path)
            return False
        except Corruption:
            self._meta_rotten = True
        except OSError as error:
            raise disk_failed(error, self.path) from error
        await self.checkpoint()
        return True

    async def _save(self, meta: CopysetMeta, dirty: list[ChunkFile]) -> None:
        handles = []
        for number, chunk in enumerate(dirty, 1):
            handle = chunk.handle
            if self.chunks.flush(chunk):
                handles.append(handle)
            if number % _FLUSH_PER_TURN == 0:
                await asyncio.sleep(0)
        encoded = copyset_meta.encode(meta)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.around.io, _sync, self.path, handles, encoded)

    # ---- snapshots

    async def snapshot(self) -> SnapshotSource:
        return CopysetSource(self, self.describe())

    async def restore(self) -> SnapshotSink:
        return CopysetSink(self)

    @property
    def exchange(self) -> asyncio.Lock:
        """Held by a sink that exchanges the directory: no checkpoint runs meanwhile."""
        return self._checkpointing


def _sync(path: Path, handles: list[Handle], meta: bytes) -> None:
    for handle in handles:
        os.fsync(handle.fd)
    # New names of chunk files become durable with the meta file's, in the same directory.
    fsync_directory(path)
    write_atomic(path / copyset_meta.FILE, meta)


def fenced(volume: int, epoch: int) -> Fenced:
    return Fenced(
        f"a newer writer has the volume (epoch {epoch})" if epoch else "a newer writer has the volume",
        where=f"volume {volume}",
        todo="Stop using it here; it is attached elsewhere or was opened again",
    )
