"""An MDS in memory: the real services over a dict instead of etcd, a clock that is told the time, chunkservers that
are a few lines each."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from curve_storage.clock import ManualClock
from curve_storage.config import EtcdConfig
from curve_storage.errors import NotLeader, Unavailable
from curve_storage.mds.config import MdsConfig
from curve_storage.mds.heartbeat import Answer, Order, OrderKind
from curve_storage.mds.monitor import Beat, Replica
from curve_storage.mds.store import MemoryStore
from curve_storage.mds.term import Term
from curve_storage.mds.topology import Registration
from curve_storage.units import GiB
from curve_storage.wire.messages import MessageType, split_group


class Signer:
    def sign(self, scope: str, *, epoch: int, rights: str, expires: float) -> bytes:
        return f"{scope}|{epoch}|{rights}|{expires:.0f}".encode()


class Disk:
    """A chunkserver: what it holds, who leads, and the frames it has been sent."""

    def __init__(self, cluster: MiniCluster, number: int, zone: str, capacity: int) -> None:
        self.cluster = cluster
        self.number = number
        self.zone = zone
        self.capacity = capacity
        self.address = f"10.0.0.{number}:8200"
        self.id = 0
        self.secret = ""
        self.up = True
        self.used = 0
        self.replicas: dict[tuple[int, int], Replica] = {}

    async def register(self) -> None:
        record = await self.cluster.term.topology.register(
            Registration(
                uuid=f"uuid-{self.number}",
                secret=self.secret,
                address=self.address,
                server=f"server-{self.number}",
                zone=self.zone,
                capacity=self.capacity,
            )
        )
        self.id, self.secret = record.id, record.secret

    async def beat(self, *, full: bool = True, obey: bool = True) -> Answer:
        answer = await self.cluster.term.heartbeats.report(
            self.id,
            self.secret,
            address=self.address,
            full=full,
            beat=Beat(capacity=self.capacity, used=self.used),
            replicas=list(self.replicas.items()),
        )
        if obey:
            for order in answer.orders:
                self.obey(order)
        return answer

    def obey(self, order: Order) -> None:
        groups = self.cluster.groups
        match order.kind:
            case OrderKind.CREATE:
                if self.id in order.members:
                    groups.setdefault(order.copyset, (1, tuple(sorted(order.members)), order.members[0]))
                self.cluster.holders.setdefault(order.copyset, set()).add(self.id)
            case OrderKind.REMOVE_REPLICA:
                self.cluster.holders[order.copyset].discard(self.id)
            case OrderKind.TRANSFER_LEADER:
                epoch, members, _ = groups[order.copyset]
                groups[order.copyset] = (epoch, members, order.target)
            case OrderKind.ADD_PEER | OrderKind.REMOVE_PEER | OrderKind.CHANGE_PEER:
                epoch, members, leader = groups[order.copyset]
                assert order.epoch == epoch
                gone = {order.old} if order.kind is OrderKind.CHANGE_PEER else set()
                if order.kind is OrderKind.REMOVE_PEER:
                    gone = {order.target}
                now = set(members) - gone
                if order.kind is not OrderKind.REMOVE_PEER:
                    now.add(order.target)
                if leader in gone:
                    leader = min(now)
                groups[order.copyset] = (epoch + 1, tuple(sorted(now)), leader)
        self.cluster.sync()


class MiniCluster:
    def __init__(self, config: MdsConfig, clock: ManualClock) -> None:
        self.config = config
        self.clock = clock
        self.pairs: dict[str, bytes] = {}
        self.disks: list[Disk] = []
        self.groups: dict[tuple[int, int], tuple[int, tuple[int, ...], int]] = {}  # epoch, members, leader
        self.holders: dict[tuple[int, int], set[int]] = {}
        self.frames: list[tuple[int, tuple[int, int], dict[str, object]]] = []
        self.events: list[tuple[str, dict[str, object]]] = []
        self.before_frame: Callable[[int, tuple[int, int]], None] = lambda kind, key: None
        self.term_number = 0

    async def lead(self) -> Term:
        """A new MDS becomes leader: it knows only what is stored."""
        if self.term_number:
            self.store.leader = False
            self.term.close()
        self.term_number += 1
        self.store = MemoryStore(self.pairs)
        self.term = Term(
            self.config,
            self.clock,
            self.store,
            Signer(),
            self,
            rng=random.Random(self.term_number),
            on_event=lambda event, fields: self.events.append((event, fields)),
        )
        await self.term.start(background=False)
        return self.term

    async def call(self, address: str, type: int, meta: bytes, timeout: float) -> None:
        """The transport of FENCE and DELETE_VOLUME."""
        disk = next((d for d in self.disks if d.address == address and d.up), None)
        if disk is None:
            self.clock.advance(0.3)  # nothing else moves this clock while callers try again
            raise Unavailable("connection refused", where=address)
        body = msgspec.msgpack.decode(meta)
        key = split_group(body["group"])
        _, members, leader = self.groups[key]
        if leader != disk.id:
            raise NotLeader("not the leader", leader=str(leader))
        online = {d.id for d in self.disks if d.up}
        if len(online & set(members)) <= len(members) // 2:
            self.clock.advance(timeout)
            raise Unavailable("no quorum", where=address)
        self.before_frame(type, key)
        self.frames.append((MessageType(type), key, body))

    def sync(self) -> None:
        """Replicas as the groups make them."""
        for disk in self.disks:
            disk.replicas = {}
            for key, holders in self.holders.items():
                if disk.id in holders and key in self.groups:
                    epoch, members, leader = self.groups[key]
                    disk.replicas[key] = Replica(leader=leader == disk.id, term=epoch, epoch=epoch, voters=members)

    async def add_disks(self, count: int, zones: int = 3, capacity: int = 100 * GiB) -> None:
        for _ in range(count):
            number = len(self.disks) + 1
            disk = Disk(self, number, f"zone-{number % zones}", capacity)
            self.disks.append(disk)
            await disk.register()
            await disk.beat()

    async def beats(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.clock.advance(1.0)
            for disk in self.disks:
                if disk.up:
                    await disk.beat()

    async def with_pool(self, disks: int = 3, copysets: int = 6, capacity: int = 100 * GiB, **more: int) -> None:
        await self.add_disks(disks, capacity=capacity)
        await self.term.topology.create_pool("default", copysets=copysets, **more)
        await self.beats(3)

    def fences(self) -> list[tuple[int, int, tuple[int, int]]]:
        """(volume, epoch, copyset) in the order they were sent."""
        return [(b["volume"], b["epoch"], key) for kind, key, b in self.frames if kind == MessageType.FENCE]  # type: ignore[misc]


@pytest.fixture
def config(tmp_path: Path) -> MdsConfig:
    return MdsConfig(
        name="m1",
        advertise="127.0.0.1:6700",
        etcd=EtcdConfig(endpoints=["127.0.0.1:2379"]),
        keyring=tmp_path / "keys",
        fence_timeout=2.0,
    )


@pytest.fixture
async def cluster(config: MdsConfig) -> MiniCluster:
    made = MiniCluster(config, ManualClock())
    await made.lead()
    return made


@pytest.fixture
async def pooled(cluster: MiniCluster) -> MiniCluster:
    await cluster.with_pool()
    return cluster
