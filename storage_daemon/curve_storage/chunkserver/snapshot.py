"""Moving a whole replica: chunk files and meta, in pieces of at most 1 MiB, only what was ever written.

The source streams while writes go on: the meta is that of the snapshot's index, chunk content may be later. The
receiver replays from index + 1, which rewrites every block that changed meanwhile and deletes every chunk that went.

The sink fills `<group>.incoming`; its commit point is the rename to `<group>.ready`, after everything is on the disk.
Start-up completes a `ready` directory and recycles an `incoming` one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from curve_storage.chunkserver import copyset_meta
from curve_storage.chunkserver.atomic_file import fsync_directory, write_atomic
from curve_storage.chunkserver.chunk_directory import PREFIX, chunk_file_name
from curve_storage.chunkserver.chunk_file import DATA_START, FILE_SIZE, HEADER_SIZE, ChunkFile, Handle, disk_failed
from curve_storage.chunkserver.copyset_meta import CopysetMeta
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.consensus.api import Piece
from curve_storage.errors import Aborted, InvalidArgument
from curve_storage.units import BLOCK_SIZE, MiB

if TYPE_CHECKING:
    from curve_storage.chunkserver.copyset import Copyset

_RUN = MiB // BLOCK_SIZE
_BLANK_PAGE = bytes(HEADER_SIZE)
INCOMING = ".incoming"
READY = ".ready"
OLD = ".old"


class CopysetSource:
    """Implements consensus.api.SnapshotSource. Files: "meta" and one per chunk, named as on the disk."""

    def __init__(self, copyset: Copyset, meta: CopysetMeta) -> None:
        self.index = meta.index
        self._copyset = copyset
        self._meta = meta
        self._closed = False

    async def pieces(self) -> AsyncIterator[Piece]:
        encoded = copyset_meta.encode(self._meta)
        for offset in range(0, len(encoded), MiB):
            yield Piece(copyset_meta.FILE, offset, encoded[offset : offset + MiB])
        for number in self._meta.chunks:
            chunk = self._copyset.chunks.get(number)
            name = chunk_file_name(number)
            if chunk is None:
                # Deleted or emptied since: blank over there too, and the replay does the same to it as here.
                yield Piece(name, 0, _BLANK_PAGE)
                continue
            yield Piece(name, 0, chunk.head())
            async for piece in self._data(name, chunk):
                yield piece

    async def _data(self, name: str, chunk: ChunkFile) -> AsyncIterator[Piece]:
        loop = asyncio.get_running_loop()
        for first, count in chunk.written_runs(_RUN):
            if self._closed:
                raise Aborted("the snapshot was closed", where=self._copyset.path.name, todo="Start it again")
            offset, length = first * BLOCK_SIZE, count * BLOCK_SIZE
            data = chunk.read_now(offset, length)
            if data is None:
                data = await loop.run_in_executor(self._copyset.around.io, chunk.read_blocking, offset, length)
            # Not checked here: the table travels along, so the receiver detects and repairs a bad block itself.
            yield Piece(name, DATA_START + offset, data)

    def close(self) -> None:
        self._closed = True


class CopysetSink:
    """Implements consensus.api.SnapshotSink."""

    def __init__(self, copyset: Copyset) -> None:
        self._copyset = copyset
        self._pool = copyset.around.pool
        self._path = copyset.path.with_name(copyset.path.name + INCOMING)
        discard_directory(self._path, self._pool)
        self._path.mkdir(parents=True)
        self._meta = bytearray()
        self._handles: dict[str, Handle] = {}

    async def piece(self, piece: Piece) -> None:
        """Raises NoSpace when the pool is empty, InvalidArgument for a piece that cannot be."""
        if piece.name == copyset_meta.FILE:
            if piece.offset != len(self._meta):
                raise self._wrong(piece)
            self._meta += piece.data
            return
        if not piece.name.startswith(PREFIX) or "/" in piece.name or piece.offset + len(piece.data) > FILE_SIZE:
            raise self._wrong(piece)
        path = self._path / piece.name
        handle = self._handles.get(piece.name)
        if handle is None:
            self._pool.take(path)
            handle = self._handles[piece.name] = Handle(path)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._copyset.around.io, _write_all, handle, piece.data, piece.offset)
        except OSError as error:
            raise disk_failed(error, path) from error

    def _wrong(self, piece: Piece) -> InvalidArgument:
        return InvalidArgument(
            f"unexpected piece {piece.name!r} at {piece.offset}", where=self._path.name, todo="Send the snapshot again"
        )

    async def commit(self, index: int) -> None:
        copyset = self._copyset
        meta = copyset_meta.decode(bytes(self._meta), where=f"snapshot for {copyset.path.name}")
        if meta.group != copyset.group or meta.index != index:
            raise InvalidArgument(
                f"the snapshot is of group {meta.group} at {meta.index}, expected {copyset.group} at {index}",
                where=copyset.path.name,
                todo="Send the snapshot again",
            )
        loop = asyncio.get_running_loop()
        handles = list(self._handles.values())
        async with copyset.exchange:
            try:
                await loop.run_in_executor(
                    copyset.around.io, _make_ready, self._path, copyset.path, handles, bytes(self._meta)
                )
                copyset.chunks.close_all()
                old = complete(copyset.path)
                copyset.load()
                if old is not None:
                    discard_directory(old, self._pool)
            except OSError as error:
                raise disk_failed(error, self._path) from error

    def abort(self) -> None:
        self._handles.clear()
        discard_directory(self._path, self._pool)


def _write_all(handle: Handle, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(handle.fd, view, offset)
        view, offset = view[done:], offset + done


def _make_ready(incoming: Path, target: Path, handles: list[Handle], meta: bytes) -> None:
    for handle in handles:
        os.fsync(handle.fd)
    write_atomic(incoming / copyset_meta.FILE, meta)
    os.rename(incoming, target.with_name(target.name + READY))
    fsync_directory(target.parent)


def complete(target: Path) -> Path | None:
    """Puts `<group>.ready` in the place of `<group>`; repeatable after a crash. Returns where the old one is."""
    ready = target.with_name(target.name + READY)
    old = target.with_name(target.name + OLD)
    if ready.exists():
        if target.exists():
            os.rename(target, old)
        os.rename(ready, target)
        fsync_directory(target.parent)
    return old if old.exists() else None


def discard_directory(path: Path, pool: ChunkPool) -> None:
    """Chunk files back to the pool, the rest removed. Absent is fine. Raises OSError."""
    if not path.exists():
        return
    for name in os.listdir(path):
        if name.startswith(PREFIX):
            pool.give_back(path / name)
        else:
            (path / name).unlink()
    path.rmdir()
