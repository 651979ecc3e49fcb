"""Heartbeats: what is reported when, and what each order does to a node, over a real gRPC connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curve_storage.chunkserver.addresses import AddressBook
from curve_storage.chunkserver.heartbeat import Heartbeat
from curve_storage.chunkserver.identity import Identity
from curve_storage.chunkserver.statistics import Statistics
from curve_storage.clock import ManualClock
from curve_storage.consensus.api import Membership
from curve_storage.errors import Unavailable
from curve_storage.proto import mds_pb2, mds_pb2_grpc
from curve_storage.rpc.leader import MdsClient
from curve_storage.rpc.server import listen, make_server
from curve_storage.units import BLOCK_SIZE
from curve_storage.wire.messages import group_id

Order = mds_pb2.CopysetOrder


class Mds(mds_pb2_grpc.HeartbeatServicer):
    def __init__(self) -> None:
        self.reply = mds_pb2.HeartbeatReply()
        self.requests: list[Any] = []
        self.down = False

    async def Report(self, request: Any, context: Any) -> Any:
        if self.down:
            raise Unavailable("electing")
        self.requests.append(request)
        return self.reply


class Beating:
    def __init__(self, tmp_path: Path, parts: SimpleNamespace) -> None:
        self.mds = Mds()
        self.disk = parts.Disk(tmp_path / "data")
        self.host = parts.FakeHost(3)
        self.copysets = self.disk.copysets
        self.book = AddressBook()
        self.server = make_server()
        mds_pb2_grpc.add_HeartbeatServicer_to_server(self.mds, self.server)
        self.client = MdsClient([f"127.0.0.1:{listen(self.server, '127.0.0.1:0')}"])
        self.heartbeat = Heartbeat(
            self.client,
            Identity("uuid", 3, "secret", "cluster"),
            "here:8200",
            self.host,
            self.copysets,
            self.disk.pool,
            self.disk.monitor,
            self.book,
            Statistics(),
            ManualClock(),
            interval=0.02,
            full_every=4,
        )

    async def beat(self, *orders: Any) -> Any:
        """One beat answered with these orders; the request."""
        del self.mds.reply.orders[:]
        self.mds.reply.orders.extend(orders)
        assert await self.heartbeat.beat()
        return self.mds.requests[-1]

    async def settled(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture
async def node(tmp_path: Path, parts: SimpleNamespace) -> AsyncIterator[Beating]:
    made = Beating(tmp_path, parts)
    await made.server.start()
    yield made
    await made.client.close()
    await made.server.stop(grace=0)
    assert not made.disk.failures


def order(kind: int, copyset: int = 7, **fields: Any) -> Any:
    return Order(kind=kind, pool_id=1, copyset_id=copyset, **fields)  # type: ignore[arg-type]


GROUP = group_id(1, 7)


async def test_create_is_done_once_and_reported(node: Beating) -> None:
    create = order(Order.CREATE, members=[1, 2, 3], epoch=1)
    first = await node.beat(create)
    assert first.full
    assert list(first.copysets) == []
    assert (first.chunkserver_id, first.secret, first.address) == (3, "secret", "here:8200")
    assert first.format_percent == 100
    second = await node.beat(create)
    assert [(one.pool_id, one.copyset_id, list(one.voters)) for one in second.copysets] == [(1, 7, [1, 2, 3])]
    assert not second.full
    third = await node.beat()
    assert list(third.copysets) == [], "unchanged: not sent again"
    assert list(node.host.machines) == [GROUP]
    fourth, fifth = await node.beat(), await node.beat()
    assert not fourth.full
    assert fifth.full
    assert len(fifth.copysets) == 1


async def test_a_joining_replica_is_not_its_own_voter(node: Beating) -> None:
    await node.beat(order(Order.CREATE, members=[1, 2, 4], epoch=9))
    assert node.host.memberships[GROUP] == Membership(voters=(1, 2, 4), epoch=9)


async def test_changes_are_reported_at_once_and_in_full_after_a_failure(node: Beating) -> None:
    await node.beat(order(Order.CREATE, members=[3], epoch=1))
    await node.beat()
    node.host.leading = False
    changed = await node.beat()
    assert [one.leader for one in changed.copysets] == [False]
    node.mds.down = True
    node.heartbeat._interval = 0.01
    assert not await node.heartbeat.beat()
    assert "electing" in node.heartbeat.problem
    node.mds.down = False
    assert (await node.beat()).full
    node.mds.reply.want_full = True
    await node.beat()
    assert (await node.beat()).full


async def test_removal(node: Beating) -> None:
    await node.beat(order(Order.CREATE, members=[3, 1, 2], epoch=4))
    machine = node.copysets.by_group[GROUP]
    machine.chunks.for_write(1, 5, 0)
    remove = order(Order.REMOVE_REPLICA, epoch=4)
    await node.beat(remove)
    await node.beat()
    assert GROUP in node.host.machines, "the leader of a group with itself as a voter stays"
    node.host.leading = False
    await node.beat(order(Order.REMOVE_REPLICA, epoch=3))
    await node.beat()
    assert GROUP in node.host.machines, "ordered for an older configuration"
    await node.beat(remove)
    await node.settled(lambda: GROUP not in node.host.machines and not node.copysets.by_group)
    assert not node.disk.path(GROUP).exists()
    gone = await node.beat()
    assert gone.full
    free = node.disk.pool.free
    assert node.copysets.empty_trash(0.0, urgent=False) == 0, "kept for a while"
    assert node.copysets.empty_trash(0.0, urgent=True) == 1
    node.disk.settle()
    assert node.disk.pool.free == free + 1
    await node.beat(remove)  # repeated: nothing left to do
    await node.beat(order(Order.CREATE, members=[3], epoch=1))
    assert GROUP in node.host.machines


async def test_orders_to_the_leader(node: Beating) -> None:
    await node.beat(order(Order.CREATE, members=[1, 2, 3], epoch=4))
    await node.beat(
        order(Order.TRANSFER_LEADER, epoch=3, target=1),
        order(Order.ADD_PEER, epoch=5, target=4),
        order(Order.ADD_PEER, copyset=99, epoch=4, target=4),
        order(Order.ADD_PEER, epoch=4, target=2),
    )
    assert (node.host.transfers, node.host.changes) == ([], [])
    await node.beat(order(Order.TRANSFER_LEADER, epoch=4, target=1), order(Order.CHANGE_PEER, epoch=4, old=1, target=4))
    await node.beat(order(Order.REMOVE_PEER, epoch=4, target=2), order(Order.ADD_PEER, epoch=4, target=5))
    assert node.host.transfers == [(GROUP, 1)]
    assert node.host.changes == [(GROUP, (2, 3, 4)), (GROUP, (1, 3)), (GROUP, (1, 2, 3, 5))]
    node.host.change_state[GROUP] = "running"
    await node.beat(order(Order.ADD_PEER, epoch=4, target=6))
    node.host.change_state.clear()
    node.host.leading = False
    await node.beat(order(Order.ADD_PEER, epoch=4, target=6))
    assert len(node.host.changes) == 3


async def test_addresses_and_disk_state(node: Beating) -> None:
    node.mds.reply.addresses[5] = "five:8200"
    await node.beat()
    assert node.book.address(5) == "five:8200"
    node.disk.monitor.exhausted("no checkpoint")
    full = await node.beat()
    assert full.disk == mds_pb2.DISK_STATE_FULL
    assert "no checkpoint" in full.disk_message
    node.disk.monitor.look_again()
    assert (await node.beat()).disk == mds_pb2.DISK_STATE_NORMAL
    assert full.capacity == 8 * 16 * 1024 * 1024
    assert full.used == 0


async def test_a_damaged_replica_is_reported_kept_out_and_replaced_only_after_removal(
    node: Beating, parts: SimpleNamespace
) -> None:
    await node.beat(order(Order.CREATE, members=[1, 2, 3], epoch=1))
    machine = node.copysets.by_group[GROUP]
    machine.apply(1, 1, *[part if i == 0 else memoryview(part) for i, part in enumerate(
        parts.write(1, 0, bytes(BLOCK_SIZE), 1))])  # fmt: skip
    await machine.checkpoint()
    meta = node.disk.path(GROUP) / "meta"
    meta.write_bytes(meta.read_bytes()[:-1])
    for _ in range(2):  # also after another restart, when the log has already forgotten it
        node.disk.open()
        node.copysets = node.disk.copysets
        node.heartbeat._copysets = node.copysets
        node.host.machines.clear()
        await node.copysets.load(node.host)
        assert node.copysets.by_group == {}
        assert node.host.memberships == {}
        node.heartbeat._want_full = True
        report = await node.beat(order(Order.CREATE, members=[1, 2, 3], epoch=1))
        assert [(one.copyset_id, one.corrupt) for one in report.copysets] == [(7, True)]
        assert node.host.machines == {}
    await node.beat(order(Order.REMOVE_REPLICA, epoch=1))
    await node.settled(lambda: not node.copysets.damaged)
    await node.beat(order(Order.CREATE, members=[1, 2], epoch=2))
    assert node.host.memberships[GROUP].voters == (1, 2)
    assert node.copysets.by_group[GROUP].durable_index() == 0


async def test_the_loop_beats_until_cancelled(node: Beating) -> None:
    task = asyncio.create_task(node.heartbeat.run())
    await node.settled(lambda: len(node.mds.requests) > 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
