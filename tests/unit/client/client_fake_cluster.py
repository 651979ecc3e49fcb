"""A cluster in memory: real data ports of three chunkservers, one replicated state, an MDS as plain coroutines.

Faults are scripted per request: `cluster.script` is called with (node, kind, meta) and returns a Fault or None.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from curve_storage import errors
from curve_storage.client import ClientConfig, Cluster
from curve_storage.clock import SystemClock
from curve_storage.proto import mds_pb2
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE, CHUNKS_PER_SEGMENT, SEGMENT_SIZE, GiB
from curve_storage.wire.messages import ChunkMeta, MessageType, group_id, unpack_chunk
from curve_storage.wire.server import Request, Server
from curve_storage.wire.token import Keyring, TokenVerifier, volume_scope

POOL = 1
COPYSETS = 4


class Fault(Enum):
    SILENCE = "the request is never seen"
    LOSE_REPLY = "applied, but not answered"
    BREAK = "applied, then the connection breaks"
    NOT_LEADER = "refused without a hint"


@dataclass
class Group:
    """The replicated state of one copyset."""

    leader: int = 1
    term: int = 1
    fence: int = 0
    writer: tuple[int, int] = (0, 0)
    low: int = 1
    applied: set[int] = field(default_factory=set)
    chunks: dict[int, bytearray] = field(default_factory=dict)


class FakeCluster:
    def __init__(self) -> None:
        self.keyring = Keyring.generate()
        self.verifier = TokenVerifier(self.keyring)
        self.nodes: dict[int, Server] = {}
        self.addresses: dict[int, str] = {}
        self.members: tuple[int, ...] = (1, 2, 3)
        self.groups: dict[int, Group] = {group_id(POOL, n): Group() for n in range(1, COPYSETS + 1)}
        self.script: Callable[[int, int, ChunkMeta], Fault | errors.CurveError | None] = lambda _n, _k, _m: None
        self.seen: list[tuple[int, int, ChunkMeta]] = []
        self.applications: Counter[tuple[int, int, int]] = Counter()
        self.mute: set[int] = set()  # nodes that answer nothing, like a stopped process
        self.held: list[Request] = []
        # MDS state
        self.size = 4 * GiB
        self.epoch = 1
        self.generation = 0
        self.session = ""
        self.token_seconds = 3600.0
        self.session_ttl = 30.0
        self.segments: dict[int, list[tuple[int, int]]] = {}
        self.throttle = (0, 0)
        self.mds_error: errors.CurveError | None = None
        self.allocation_error: errors.CurveError | None = None
        self.mds_calls: Counter[str] = Counter()
        self.cluster = Cluster(ClientConfig(mds=["fake:1"]), mds=self)  # type: ignore[arg-type]

    # ---- life

    async def start(self) -> None:
        for node in (1, 2, 3, 4):
            await self.start_node(node)

    async def start_node(self, node: int) -> None:
        server = Server(verifier=self.verifier)
        for kind, scope in (
            (MessageType.CHUNK_READ, "volume"),
            (MessageType.CHUNK_WRITE, "volume"),
            (MessageType.CHUNK_DISCARD, "volume"),
            (MessageType.GET_LEADER, "any"),
        ):
            server.handle(kind, lambda request, node=node: self._serve(node, request), scope=scope)  # type: ignore[arg-type, misc]
        port = await server.start("127.0.0.1", 0)
        self.nodes[node] = server
        self.addresses[node] = f"127.0.0.1:{port}"

    async def stop_node(self, node: int) -> None:
        await self.nodes.pop(node).stop()

    async def stop(self) -> None:
        await self.cluster.close()
        for node in list(self.nodes):
            await self.stop_node(node)

    def lead(self, node: int) -> None:
        for group in self.groups.values():
            group.leader = node
            group.term += 1

    def content(self, offset: int, length: int) -> bytes:
        """The bytes of the volume as the replicas have them."""
        out = bytearray()
        for start in range(offset, offset + length, BLOCK_SIZE):
            segment = self.segments.get(start // SEGMENT_SIZE)
            block = bytes(BLOCK_SIZE)
            if segment is not None:
                group, chunk = segment[start % SEGMENT_SIZE // CHUNK_SIZE]
                data = self.groups[group].chunks.get(chunk)
                if data is not None:
                    block = bytes(data[start % CHUNK_SIZE : start % CHUNK_SIZE + BLOCK_SIZE])
            out += block
        return bytes(out)

    # ---- data port

    def _serve(self, node: int, request: Request) -> None:
        if node in self.mute:
            self.held.append(request)
            return
        if request.type == MessageType.GET_LEADER:
            group = self.groups[msgspec.msgpack.decode(request.meta)["group"]]
            request.reply(msgspec.msgpack.encode({"leader": group.leader, "term": group.term}))
            return
        meta = unpack_chunk(request.meta)
        self.seen.append((node, request.type, meta))
        if node not in self.members:
            raise errors.NotFound(f"no copyset {meta.group:#x} here")
        fault = self.script(node, request.type, meta)
        if isinstance(fault, errors.CurveError):
            raise fault
        if fault is Fault.SILENCE:
            self.held.append(request)
            return
        group = self.groups[meta.group]
        if fault is Fault.NOT_LEADER:
            raise errors.NotLeader("in an election")
        if group.leader != node:
            raise errors.NotLeader("not the leader", leader=str(group.leader))
        assert request.identity is not None
        request.identity.check_volume(meta.volume, write=request.type != MessageType.CHUNK_READ, epoch=meta.epoch)
        payload = self._apply(group, request.type, meta, request.payload)
        if fault is Fault.LOSE_REPLY:
            self.held.append(request)
        elif fault is Fault.BREAK:
            request._connection.close()  # type: ignore[union-attr]
        else:
            request.reply(b"", payload)

    def _apply(self, group: Group, kind: int, meta: ChunkMeta, payload: memoryview) -> bytes:
        assert meta.offset % BLOCK_SIZE == 0 and meta.length % BLOCK_SIZE == 0 and meta.length > 0
        assert meta.offset + meta.length <= CHUNK_SIZE
        if meta.epoch < group.fence:
            raise errors.Fenced("another epoch")
        if kind == MessageType.CHUNK_READ:
            chunk = group.chunks.get(meta.chunk)
            if chunk is None:
                raise errors.ChunkNotExist("never written")
            return bytes(chunk[meta.offset : meta.offset + meta.length])
        writer = (meta.epoch, meta.generation)
        if writer < group.writer:
            raise errors.Fenced("a newer writer is at work")
        if writer > group.writer:
            group.writer, group.low, group.applied = writer, 1, set()
        assert meta.low <= meta.seq
        if meta.seq < group.low:
            raise errors.FailedPrecondition("stale")
        group.low = max(group.low, meta.low)
        group.applied = {seq for seq in group.applied if seq >= group.low}
        if meta.seq in group.applied:
            return b""
        group.applied.add(meta.seq)
        self.applications[meta.group, meta.generation, meta.seq] += 1
        if kind == MessageType.CHUNK_DISCARD:
            if meta.length == CHUNK_SIZE:
                group.chunks.pop(meta.chunk, None)
            elif meta.chunk in group.chunks:
                group.chunks[meta.chunk][meta.offset : meta.offset + meta.length] = bytes(meta.length)
        else:
            assert len(payload) == meta.length
            chunk = group.chunks.setdefault(meta.chunk, bytearray(CHUNK_SIZE))
            chunk[meta.offset : meta.offset + meta.length] = payload
        return b""

    # ---- MDS

    @property
    def namespace(self) -> FakeCluster:
        return self

    topology = namespace

    async def close(self) -> None:
        pass

    def _called(self, name: str) -> None:
        self.mds_calls[name] += 1
        if self.mds_error is not None:
            raise self.mds_error

    def _volume(self) -> mds_pb2.Volume:
        iops, rate = self.throttle
        return mds_pb2.Volume(
            id=7,
            path="/v",
            size=self.size,
            epoch=self.epoch,
            throttle=mds_pb2.Throttle(iops=iops, bytes_per_second=rate),
        )

    def _token(self, rights: str) -> bytes:
        expires = SystemClock().wall() + self.token_seconds
        return self.keyring.sign(volume_scope(7), epoch=self.epoch, rights=rights, expires=expires)

    async def OpenVolume(self, request: Any, timeout: float) -> mds_pb2.OpenVolumeReply:
        self._called("OpenVolume")
        if request.epoch and request.epoch < self.epoch:
            raise errors.Fenced("an old epoch", where="/v")
        rights = "r"
        if request.rights == mds_pb2.RIGHTS_READ_WRITE:
            self.generation += 1
            rights = "rw"
        self.session = f"s{self.mds_calls['OpenVolume']}"
        return mds_pb2.OpenVolumeReply(
            volume=self._volume(),
            session=self.session,
            session_ttl_ms=int(self.session_ttl * 1000),
            epoch=self.epoch,
            generation=self.generation,
            token=self._token(rights),
        )

    async def RefreshSession(self, request: Any, timeout: float) -> mds_pb2.RefreshSessionReply:
        self._called("RefreshSession")
        if request.session != self.session:
            raise errors.NotFound("no such session")
        return mds_pb2.RefreshSessionReply(volume=self._volume(), token=self._token("rw"))

    async def CloseVolume(self, request: Any, timeout: float) -> mds_pb2.Empty:
        self._called("CloseVolume")
        return mds_pb2.Empty()

    async def GetSegment(self, request: Any, timeout: float) -> mds_pb2.GetSegmentReply:
        self._called("GetSegment")
        await asyncio.sleep(0)
        index = request.offset // SEGMENT_SIZE
        if request.allocate:
            if request.session != self.session:
                raise errors.NotFound("no such session")
            if self.allocation_error is not None:
                raise self.allocation_error
            if index not in self.segments:
                self.mds_calls["allocated"] += 1
                first = 1 + index * CHUNKS_PER_SEGMENT
                self.segments[index] = [
                    (group_id(POOL, 1 + (first + n) % COPYSETS), first + n) for n in range(CHUNKS_PER_SEGMENT)
                ]
        chunks = self.segments.get(index)
        if chunks is None:
            return mds_pb2.GetSegmentReply(allocated=False)
        return mds_pb2.GetSegmentReply(
            allocated=True,
            segment=mds_pb2.Segment(
                volume_id=7,
                offset=request.offset,
                pool_id=POOL,
                chunk_size=CHUNK_SIZE,
                chunks=[mds_pb2.Chunk(id=chunk, copyset_id=group & 0xFFFFFFFF) for group, chunk in chunks],
            ),
        )

    async def GetCopysets(self, request: Any, timeout: float) -> mds_pb2.GetCopysetsReply:
        self._called("GetCopysets")
        return mds_pb2.GetCopysetsReply(
            copysets=[
                mds_pb2.Copyset(
                    pool_id=request.pool_id,
                    copyset_id=copyset,
                    members=[
                        mds_pb2.CopysetMember(chunkserver_id=node, address=self.addresses[node])
                        for node in self.members
                    ],
                )
                for copyset in request.copyset_ids
            ]
        )
