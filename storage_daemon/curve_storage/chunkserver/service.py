"""The data port: chunk requests become proposals or reads.

Writes go to the raft host with the request's own payload buffer; the reply is sent from the proposal's callback,
without a task per request. Reads with a valid lease and cached pages are answered in the handler; only what must wait
(for a read barrier, the disk, another replica) becomes a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import msgspec

from curve_storage.chunkserver import commands
from curve_storage.chunkserver.copyset import Copyset, fenced
from curve_storage.chunkserver.copysets import Copysets
from curve_storage.chunkserver.disk_state import DiskMonitor
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.chunkserver.reading import read, read_checked, read_now
from curve_storage.chunkserver.repair import FetchRequest, Repairer
from curve_storage.chunkserver.requests import ChunkOfGroup, DeleteVolumeMeta, FenceMeta, GroupMeta
from curve_storage.chunkserver.statistics import Statistics
from curve_storage.chunkserver.writers import MAX_WINDOW
from curve_storage.consensus.api import Buffer, ConsensusHost
from curve_storage.errors import (
    Aborted,
    ChunkNotExist,
    Corruption,
    CurveError,
    DiskFailed,
    Internal,
    InvalidArgument,
    NotFound,
    NotLeader,
    Overloaded,
    Unavailable,
)
from curve_storage.telemetry import logs
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE
from curve_storage.wire.messages import MAX_PAYLOAD, ChunkMeta, MessageType, split_group, unpack_chunk
from curve_storage.wire.server import Request, Server

_LONGEST = MAX_PAYLOAD[MessageType.CHUNK_READ]
_MASK = BLOCK_SIZE - 1
_TABLE_ENTRIES = CHUNK_SIZE // BLOCK_SIZE

log = logs.get("service")
_encode = msgspec.msgpack.Encoder().encode


StructT = TypeVar("StructT", bound=msgspec.Struct)


class ChunkService:
    def __init__(
        self,
        host: ConsensusHost,
        copysets: Copysets,
        pool: ChunkPool,
        disk: DiskMonitor,
        repairer: Repairer,
        statistics: Statistics,
    ) -> None:
        self._host = host
        self._copysets = copysets
        self._groups = copysets.by_group
        self._pool = pool
        self._disk = disk
        self._repairer = repairer
        self._statistics = statistics
        self._tasks: set[asyncio.Task[None]] = set()
        self.loading = True

    def register(self, server: Server) -> None:
        kind = MessageType
        server.handle(kind.CHUNK_WRITE, self.write, scope="volume")
        server.handle(kind.CHUNK_READ, self.read, scope="volume")
        server.handle(kind.CHUNK_DISCARD, self.discard, scope="volume")
        server.handle(kind.CHUNK_DELETE, self.delete, scope="volume")
        server.handle(kind.CHUNK_INFO, self.info, scope="any")
        server.handle(kind.CHUNK_CHECKSUMS, self.checksums, scope="any")
        server.handle(kind.CHUNK_FETCH, self.fetch, scope="cluster")
        server.handle(kind.FENCE, self.fence, scope="cluster")
        server.handle(kind.DELETE_VOLUME, self.delete_volume, scope="cluster")
        server.handle(kind.GET_LEADER, self.get_leader, scope="any")

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- mutations

    def write(self, request: Request) -> None:
        started = perf_counter()
        meta = unpack_chunk(request.meta)
        length = len(request.payload)
        if length != meta.length:
            raise InvalidArgument(f"the payload has {length} bytes, the request says {meta.length}")
        copyset = self._check_mutation(request, meta)
        if not copyset.chunks.exists(meta.chunk) and not self._pool.accepts_new_chunk():
            raise self._disk.no_space()
        header = commands.WRITE_PREFIX + request.meta
        future = self._host.propose(meta.group, header, request.payload)
        future.add_done_callback(partial(self._written, request, started, length))

    def _written(self, request: Request, started: float, length: int, future: asyncio.Future[Any]) -> None:
        self._mutated(request, future)
        self._statistics.wrote(length, perf_counter() - started)

    def discard(self, request: Request) -> None:
        self._chunk_mutation(request, commands.DISCARD_PREFIX)

    def delete(self, request: Request) -> None:
        self._chunk_mutation(request, commands.DELETE_PREFIX)

    def _chunk_mutation(self, request: Request, prefix: bytes) -> None:
        meta = unpack_chunk(request.meta)
        if prefix is commands.DELETE_PREFIX:
            meta = meta._replace(offset=0, length=CHUNK_SIZE)
        self._check_mutation(request, meta)
        future = self._host.propose(meta.group, commands.chunk_command(prefix, meta.pack()))
        future.add_done_callback(partial(self._mutated, request))

    def fence(self, request: Request) -> None:
        meta = _decode(FenceMeta, request.meta)
        self._group(meta.group)
        future = self._host.propose(meta.group, commands.fence(meta.volume, meta.epoch))
        future.add_done_callback(partial(self._mutated, request))

    def delete_volume(self, request: Request) -> None:
        meta = _decode(DeleteVolumeMeta, request.meta)
        self._group(meta.group)
        future = self._host.propose(meta.group, *commands.delete_volume(meta.volume, meta.chunks))
        future.add_done_callback(partial(self._mutated, request))

    def _mutated(self, request: Request, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            request.fail(Aborted("this chunkserver is stopping", todo="Retry at the new leader"))
            return
        error = future.exception()
        if error is None:
            error = future.result()
            if error is None:
                request.reply()
                return
        if not isinstance(error, CurveError):
            log.error("proposal failed", error=repr(error))
            error = Internal(repr(error), todo="See this chunkserver's log")
        request.fail(error)

    def _check_mutation(self, request: Request, meta: ChunkMeta) -> Copyset:
        _check_range(meta, CHUNK_SIZE)
        if request.identity is not None:
            request.identity.check_volume(meta.volume, write=True, epoch=meta.epoch)
        copyset = self._group(meta.group)
        if not copyset.leader:
            raise self._not_leader(meta.group)
        if meta.seq < 1 or not meta.volume:
            raise InvalidArgument(f"volume {meta.volume}, number {meta.seq}: both are counted from 1")
        if meta.seq - meta.low >= MAX_WINDOW:
            raise Overloaded(
                f"{MAX_WINDOW} requests of this writer are not acknowledged", todo="Wait for the oldest ones"
            )
        if copyset.writers.fenced(meta.volume, meta.epoch, meta.generation):
            raise fenced(meta.volume, copyset.writers.epoch(meta.volume))
        if self._disk.read_only:
            raise self._disk.store_read_only()
        return copyset

    # ---- reads

    def read(self, request: Request) -> None:
        started = perf_counter()
        meta = unpack_chunk(request.meta)
        _check_range(meta, _LONGEST)
        if request.identity is not None:
            request.identity.check_volume(meta.volume, write=False)
        copyset = self._group(meta.group)
        if meta.epoch < copyset.writers.epoch(meta.volume):
            raise fenced(meta.volume, copyset.writers.epoch(meta.volume))
        leased = self._host.lease_valid(meta.group)
        if leased:
            try:
                data = read_now(copyset, meta.chunk, meta.offset, meta.length)
            except DiskFailed as error:
                self._disk.failed(error)
                raise
            if data is not None:
                request.reply(b"", data)
                self._statistics.read(meta.length, perf_counter() - started)
                return
        elif not copyset.leader:
            raise self._not_leader(meta.group)
        self._start(request, self._read_later(request, copyset, meta, started, leased))

    async def _read_later(
        self, request: Request, copyset: Copyset, meta: ChunkMeta, started: float, leased: bool
    ) -> None:
        if not leased:
            await self._host.read_barrier(meta.group)
            if meta.epoch < copyset.writers.epoch(meta.volume):
                raise fenced(meta.volume, copyset.writers.epoch(meta.volume))
        data = await read(copyset, meta.chunk, meta.offset, meta.length, self._repairer)
        request.reply(b"", data)
        self._statistics.read(meta.length, perf_counter() - started)

    def info(self, request: Request) -> None:
        self._start(request, self._info(request, _decode(ChunkOfGroup, request.meta)))

    async def _info(self, request: Request, meta: ChunkOfGroup) -> None:
        copyset = self._group(meta.group)
        if not copyset.leader:
            raise self._not_leader(meta.group)
        await self._host.read_barrier(meta.group)
        chunk = copyset.chunks.get(meta.chunk)
        self._check_owner(request, chunk.volume if chunk is not None else 0)
        exists = copyset.chunks.exists(meta.chunk)
        answer = {
            "exists": exists,
            "sn": chunk.sn if chunk is not None else 0,
            "length": CHUNK_SIZE if exists else 0,
            "blocks": chunk.written_blocks if chunk is not None else 0,
        }
        request.reply(_encode(answer))

    def checksums(self, request: Request) -> None:
        """Of the local replica, whatever its role: for comparing replicas."""
        meta = _decode(ChunkOfGroup, request.meta)
        copyset = self._group(meta.group)
        chunk = copyset.chunks.get(meta.chunk)
        if chunk is None:
            raise ChunkNotExist("there is no such chunk on this chunkserver", where=f"chunk {meta.chunk}")
        self._check_owner(request, chunk.volume)
        request.reply(b"", chunk.entries(0, _TABLE_ENTRIES))

    def _check_owner(self, request: Request, volume: int) -> None:
        if request.identity is not None and volume:
            request.identity.check_volume(volume, write=False)

    def fetch(self, request: Request) -> None:
        self._start(request, self._fetch(request, _decode(FetchRequest, request.meta)))

    async def _fetch(self, request: Request, meta: FetchRequest) -> None:
        _check_span(meta.offset, meta.length, _LONGEST)
        copyset = self._group(meta.group)
        where = f"chunkserver {self._host.node_id} chunk {meta.chunk}"
        if copyset.applied < meta.applied:
            raise Unavailable("this replica is behind", where=where, todo="Retry in a moment")
        first, count = meta.offset // BLOCK_SIZE, meta.length // BLOCK_SIZE
        if meta.chunk in copyset.chunks.hollow:
            raise Corruption("this replica lacks the chunk's content itself", where=where)
        data: Buffer | None = None
        while data is None:
            chunk = copyset.chunks.get(meta.chunk)
            if chunk is None:
                request.reply(bytes(4 * count))
                return
            data, bad = await read_checked(copyset, chunk, meta.offset, meta.length)
            if data is not None and bad:
                raise Corruption(f"blocks {bad[:8]} are bad here too", where=where)
            # The entries belong to the bytes only while nothing was written in between: no await from here on.
            if data is not None:
                request.reply(chunk.entries(first, count), data)

    def get_leader(self, request: Request) -> None:
        meta = _decode(GroupMeta, request.meta)
        self._group(meta.group)
        status = self._host.status(meta.group)
        request.reply(_encode({"leader": status.leader, "term": status.term}))

    # ---- what they share

    def _group(self, group: int) -> Copyset:
        copyset = self._groups.get(group)
        if copyset is None:
            pool, number = split_group(group)
            if self.loading:
                raise Unavailable("the chunkserver is starting", where=f"copyset {pool}/{number}", todo="Retry")
            raise NotFound(
                "this chunkserver holds no such copyset", where=f"copyset {pool}/{number}", todo="Ask the MDS again"
            )
        return copyset

    def _not_leader(self, group: int) -> NotLeader:
        leader = self._host.status(group).leader
        hint = str(leader) if leader and leader != self._host.node_id else ""
        return NotLeader("another chunkserver leads this copyset", leader=hint, where=f"copyset {group:#x}")

    def _start(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(request, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except CurveError as error:
            if isinstance(error, DiskFailed):
                self._disk.failed(error)
            if not request.answered:
                request.fail(error)
        except asyncio.CancelledError:
            if not request.answered:
                request.fail(Aborted("this chunkserver is stopping", todo="Retry at the new leader"))
            raise
        except Exception as error:
            log.exception("request failed", type=request.type, peer=request.peer)
            if not request.answered:
                request.fail(Internal(f"{type(error).__name__}: {error}", todo="See this chunkserver's log"))


def _check_range(meta: ChunkMeta, longest: int) -> None:
    offset, length = meta.offset, meta.length
    if (offset | length) & _MASK or not 0 < length <= longest or offset + length > CHUNK_SIZE:
        _check_span(offset, length, longest)


def _check_span(offset: int, length: int, longest: int) -> None:
    if offset < 0 or (offset | length) & _MASK or not 0 < length <= longest or offset + length > CHUNK_SIZE:
        raise InvalidArgument(
            f"offset {offset}, length {length}: both are multiples of {BLOCK_SIZE} within a chunk of {CHUNK_SIZE}, "
            f"at most {longest} at once",
            todo="Split the request",
        )


def _decode(kind: type[StructT], meta: Buffer) -> StructT:
    return msgspec.msgpack.decode(meta, type=kind)
