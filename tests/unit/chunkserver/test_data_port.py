"""The data port over real connections: rights, leadership, fencing, limits, reads that must wait."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from curve_storage.chunkserver import chunk_file
from curve_storage.chunkserver.repair import RemoteReplicas, Repairer
from curve_storage.chunkserver.service import ChunkService
from curve_storage.chunkserver.statistics import Statistics
from curve_storage.clock import SystemClock
from curve_storage.consensus.api import Membership
from curve_storage.errors import (
    ChunkNotExist,
    Corruption,
    DiskFailed,
    Fenced,
    InvalidArgument,
    NoSpace,
    NotFound,
    NotLeader,
    Overloaded,
    PermissionDenied,
    StoreReadOnly,
    Unavailable,
)
from curve_storage.proto import mds_pb2
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE
from curve_storage.wire.channel import Channel, ChannelPool
from curve_storage.wire.messages import MessageType
from curve_storage.wire.server import Server
from curve_storage.wire.token import Keyring, TokenVerifier, volume_scope

VOLUME = 5


def block(number: int) -> bytes:
    return number.to_bytes(4, "little") * (BLOCK_SIZE // 4)


class Node:
    """A chunkserver's data port over a host that commits at once."""

    def __init__(self, root: Path, parts: SimpleNamespace, node: int, keyring: Keyring, files: int = 8) -> None:
        self.parts = parts
        self.disk = parts.Disk(root, files=files)
        self.host = parts.FakeHost(node)
        self.copysets = self.disk.copysets
        self.keyring = keyring
        self.addresses: dict[int, str] = {}
        self.channels = ChannelPool(token=lambda: self.cluster_token, client=f"chunkserver {node}")
        self.cluster_token = self.token("cluster")
        book = SimpleNamespace(address=self.addresses.get)
        self.repairer = Repairer(node, RemoteReplicas(self.channels, book))
        self.statistics = Statistics()
        self.service = ChunkService(
            self.host, self.copysets, self.disk.pool, self.disk.monitor, self.repairer, self.statistics
        )
        self.service.loading = False
        self.server = Server(verifier=TokenVerifier(keyring, SystemClock()))
        self.service.register(self.server)
        self.clients: list[ChannelPool] = []
        self.address = ""
        self.seq = 0

    def token(self, scope: str, epoch: int = 1, rights: str = "rw") -> bytes:
        return self.keyring.sign(scope, epoch=epoch, rights=rights, expires=SystemClock().wall() + 600)  # type: ignore[arg-type]

    async def start(self) -> None:
        self.address = f"127.0.0.1:{await self.server.start('127.0.0.1', 0)}"
        self.copysets.create(self.parts.GROUP, Membership(voters=(self.host.node_id,)), self.host)

    async def stop(self) -> None:
        for pool in [*self.clients, self.channels]:
            await pool.close()
        await self.service.stop()
        await self.server.stop()

    def client(self, scope: str = volume_scope(VOLUME), epoch: int = 1, rights: str = "rw") -> Channel:
        token = self.token(scope, epoch, rights)
        pool = ChannelPool(token=lambda: token, client="test")
        self.clients.append(pool)
        return pool.channel(self.address)

    @property
    def machine(self) -> Any:
        return self.copysets.by_group[self.parts.GROUP]

    def meta(self, chunk: int, offset: int, length: int, **keys: int) -> bytes:
        self.seq += 1
        return self.parts.chunk_meta(chunk, offset, length, keys.pop("seq", self.seq), **keys).pack()


@pytest.fixture
async def node(tmp_path: Path, parts: SimpleNamespace) -> AsyncIterator[Node]:
    made = Node(tmp_path / "data", parts, 1, Keyring.generate())
    await made.start()
    yield made
    await made.stop()
    assert not made.disk.failures


def packed(**fields: Any) -> bytes:
    return msgspec.msgpack.encode(fields)


async def call(channel: Channel, kind: MessageType, meta: bytes, payload: bytes = b"") -> bytes:
    return bytes((await channel.call(kind, meta, payload, timeout=30)).payload)


async def write(node: Node, channel: Channel, chunk: int, offset: int, data: bytes, **keys: int) -> None:
    await call(channel, MessageType.CHUNK_WRITE, node.meta(chunk, offset, len(data), **keys), data)


async def read(node: Node, channel: Channel, chunk: int, offset: int, length: int, **keys: int) -> bytes:
    return await call(channel, MessageType.CHUNK_READ, node.meta(chunk, offset, length, **keys))


async def test_write_read_discard_delete(node: Node) -> None:
    channel = node.client()
    big = b"".join(map(block, range(1, 257)))
    await write(node, channel, 1, 0, big)
    assert await read(node, channel, 1, 0, len(big)) == big
    await write(node, channel, 1, CHUNK_SIZE - BLOCK_SIZE, block(9))
    assert await read(node, channel, 1, CHUNK_SIZE - BLOCK_SIZE, BLOCK_SIZE) == block(9)
    await call(channel, MessageType.CHUNK_DISCARD, node.meta(1, BLOCK_SIZE, BLOCK_SIZE))
    assert await read(node, channel, 1, 0, 3 * BLOCK_SIZE) == block(1) + bytes(BLOCK_SIZE) + block(3)
    with pytest.raises(ChunkNotExist):
        await read(node, channel, 2, 0, BLOCK_SIZE)
    reply = await channel.call(MessageType.CHUNK_INFO, packed(group=node.parts.GROUP, chunk=1), timeout=30)
    assert msgspec.msgpack.decode(reply.meta) == {"exists": True, "sn": 0, "length": CHUNK_SIZE, "blocks": 256}
    table = await call(channel, MessageType.CHUNK_CHECKSUMS, packed(group=node.parts.GROUP, chunk=1))
    assert len(table) == 16384
    assert table[4:8] == bytes(4) != table[0:4]
    await call(channel, MessageType.CHUNK_DELETE, node.meta(1, 0, 0))
    with pytest.raises(ChunkNotExist):
        await read(node, channel, 1, 0, BLOCK_SIZE)
    await write(node, channel, 1, 0, block(1))
    assert await read(node, channel, 1, 0, 2 * BLOCK_SIZE) == block(1) + bytes(BLOCK_SIZE)
    assert (node.statistics.writes, node.statistics.reads) == (3, 4)


async def test_many_at_once_arrive_in_order(node: Node) -> None:
    channel = node.client()
    async with asyncio.TaskGroup() as group:
        for number in range(300):
            group.create_task(write(node, channel, number % 3 + 1, (number // 3 % 20) * BLOCK_SIZE, block(number)))
    for number in range(240, 300):
        assert await read(node, channel, number % 3 + 1, (number // 3 % 20) * BLOCK_SIZE, BLOCK_SIZE) == block(number)


@pytest.mark.parametrize(
    ("offset", "length"), [(1, 4096), (0, 100), (0, 0), (CHUNK_SIZE, 4096), (CHUNK_SIZE - 4096, 8192), (512, 4096)]
)
async def test_ranges_that_cannot_be(node: Node, offset: int, length: int) -> None:
    channel = node.client()
    with pytest.raises(InvalidArgument):
        await call(channel, MessageType.CHUNK_WRITE, node.meta(1, offset, length), bytes(length))
    with pytest.raises(InvalidArgument):
        await read(node, channel, 1, offset, length)
    if length:
        with pytest.raises(InvalidArgument):
            await call(channel, MessageType.CHUNK_DISCARD, node.meta(1, offset, length))


async def test_malformed_requests(node: Node) -> None:
    channel = node.client()
    with pytest.raises(InvalidArgument):
        await call(channel, MessageType.CHUNK_WRITE, node.meta(1, 0, 8192), bytes(4096))
    with pytest.raises(InvalidArgument):
        await call(channel, MessageType.CHUNK_WRITE, b"short", bytes(4096))
    with pytest.raises(InvalidArgument):
        await call(channel, MessageType.GET_LEADER, b"\xc1")
    with pytest.raises(InvalidArgument):
        await write(node, channel, 1, 0, block(1), seq=0)
    with pytest.raises(Overloaded):
        await write(node, channel, 1, 0, block(1), seq=1 << 20, low=1)
    assert node.machine.chunks.ids() == []


async def test_a_token_covers_its_volume_epoch_and_rights_only(node: Node) -> None:
    await write(node, node.client(), 1, 0, block(1))
    other = node.client(volume_scope(6))
    with pytest.raises(PermissionDenied):
        await read(node, other, 1, 0, BLOCK_SIZE)
    with pytest.raises(PermissionDenied):
        await write(node, other, 1, 0, block(2))
    with pytest.raises(PermissionDenied):
        await call(other, MessageType.CHUNK_CHECKSUMS, packed(group=node.parts.GROUP, chunk=1))
    reader = node.client(rights="r")
    assert await read(node, reader, 1, 0, BLOCK_SIZE) == block(1)
    for kind in (MessageType.CHUNK_DISCARD, MessageType.CHUNK_DELETE):
        with pytest.raises(PermissionDenied):
            await call(reader, kind, node.meta(1, 0, BLOCK_SIZE))
    with pytest.raises(PermissionDenied):
        await write(node, reader, 1, 0, block(2))
    with pytest.raises(PermissionDenied):
        await write(node, node.client(epoch=1), 1, 0, block(2), epoch=2)
    with pytest.raises(PermissionDenied):
        await call(reader, MessageType.FENCE, packed(group=node.parts.GROUP, volume=VOLUME, epoch=9))
    assert await read(node, reader, 1, 0, BLOCK_SIZE) == block(1)


async def test_a_fence_refuses_the_old_epoch_reads_too(node: Node) -> None:
    old, new = node.client(), node.client(epoch=2)
    await write(node, old, 1, 0, block(1))
    cluster = node.client("cluster")
    await call(cluster, MessageType.FENCE, packed(group=node.parts.GROUP, volume=VOLUME, epoch=2))
    with pytest.raises(Fenced):
        await write(node, old, 1, 0, block(2))
    with pytest.raises(Fenced):
        await read(node, old, 1, 0, BLOCK_SIZE)
    assert await read(node, new, 1, 0, BLOCK_SIZE, epoch=2) == block(1)
    await write(node, new, 1, 0, block(3), epoch=2)
    await call(cluster, MessageType.DELETE_VOLUME, packed(group=node.parts.GROUP, volume=VOLUME, chunks=[1, 2]))
    with pytest.raises(Fenced):
        await write(node, new, 1, 0, block(4), epoch=2)
    assert node.machine.chunks.ids() == []


async def test_only_the_leader_answers(node: Node) -> None:
    channel = node.client()
    await write(node, channel, 1, 0, block(1))
    node.host.leading, node.host.leader_elsewhere = False, 3
    node.machine.on_role(False, 2)
    for attempt in (write(node, channel, 1, 0, block(2)), read(node, channel, 1, 0, BLOCK_SIZE)):
        with pytest.raises(NotLeader) as caught:
            await attempt
        assert caught.value.leader == "3"
    reply = await channel.call(MessageType.GET_LEADER, packed(group=node.parts.GROUP), timeout=30)
    assert msgspec.msgpack.decode(reply.meta) == {"leader": 3, "term": 1}
    with pytest.raises(NotFound):
        await call(channel, MessageType.GET_LEADER, packed(group=12345))
    node.service.loading = True
    with pytest.raises(Unavailable):
        await call(channel, MessageType.GET_LEADER, packed(group=12345))


async def test_without_a_lease_a_read_waits_for_the_barrier(node: Node) -> None:
    channel = node.client()
    await write(node, channel, 1, 0, block(1))
    node.host.leased = False
    assert await read(node, channel, 1, 0, BLOCK_SIZE) == block(1)


async def test_a_full_pool_refuses_new_chunks_only_and_recovers(tmp_path: Path, parts: SimpleNamespace) -> None:
    node = Node(tmp_path / "data", parts, 1, Keyring.generate(), files=3)
    await node.start()
    try:
        channel = node.client()
        for chunk in (1, 2, 3):
            await write(node, channel, chunk, 0, block(chunk))
        with pytest.raises(NoSpace, match="used up"):
            await write(node, channel, 4, 0, block(4))
        assert node.disk.monitor.state()[1].startswith("the chunk pool is used up")
        await write(node, channel, 1, 0, block(11))
        assert await read(node, channel, 2, 0, BLOCK_SIZE) == block(2)
        await call(channel, MessageType.CHUNK_DELETE, node.meta(2, 0, 0))
        node.disk.settle()
        await write(node, channel, 4, 0, block(4))
        assert await read(node, channel, 4, 0, BLOCK_SIZE) == block(4)
        node.disk.monitor.exhausted("the meta file cannot be written")
        with pytest.raises(StoreReadOnly):
            await write(node, channel, 1, 0, block(1))
        assert await read(node, channel, 1, 0, BLOCK_SIZE) == block(11)
        node.disk.monitor.look_again()
        await write(node, channel, 1, 0, block(1))
    finally:
        await node.stop()


async def test_a_bad_block_is_repaired_over_the_wire(tmp_path: Path, parts: SimpleNamespace) -> None:
    keyring = Keyring.generate()
    nodes = [Node(tmp_path / str(number), parts, number, keyring) for number in (1, 2)]
    try:
        for node in nodes:
            await node.start()
            await write(node, node.client(), 1, 0, b"".join(map(block, range(1, 301))))
        first, second = nodes
        first.machine.on_membership(Membership(voters=(1, 2)))
        first.addresses[2] = second.address
        path = first.machine.path / f"chunk_{1:016x}"
        with open(path, "r+b") as file:
            for number in (3, 4, 299):
                file.seek(20480 + number * BLOCK_SIZE)
                file.write(b"rotten")
        channel = first.client()
        expected = b"".join(map(block, range(1, 301)))
        assert await read(first, channel, 1, 0, len(expected)) == expected
        await second.stop()
        assert await read(first, channel, 1, 0, len(expected)) == expected
        assert path.read_bytes()[20480:][: len(expected)] == expected
        with open(path, "r+b") as file:
            file.seek(20480)
            file.write(b"rotten")
        first.machine.on_membership(Membership(voters=(1,)))
        with pytest.raises(Corruption, match="chunk 1 block 0"):
            await read(first, channel, 1, 0, BLOCK_SIZE)
    finally:
        for node in nodes:
            await node.stop()


async def test_a_disk_that_fails_to_read_is_reported_and_given_up(
    tmp_path: Path, parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path / "data", parts, 1, Keyring.generate())
    await node.start()
    try:
        channel = node.client()
        await write(node, channel, 1, 0, block(1))

        def broken(*arguments: Any) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(chunk_file.os, "preadv", broken)
        with pytest.raises(DiskFailed, match="Input/output error"):
            await read(node, channel, 1, 0, BLOCK_SIZE)
        monkeypatch.undo()
        assert [failure.code for failure in node.disk.failures] == ["disk_failed"]
        assert node.disk.monitor.state()[0] == mds_pb2.DISK_STATE_ERROR
    finally:
        await node.stop()
