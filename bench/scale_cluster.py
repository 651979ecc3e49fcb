"""A metadata server of any size in this process: its real tables and decision code, chunkservers that are only their
reports."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from curve_storage.clock import ManualClock
from curve_storage.config import EtcdConfig
from curve_storage.mds.config import MdsConfig
from curve_storage.mds.records import ChunkServerRecord, CopysetRecord, PoolRecord
from curve_storage.mds.servicers import take_report
from curve_storage.mds.term import Term
from curve_storage.proto import mds_pb2 as pb
from curve_storage.units import TiB

REPLICAS = 3
POOLS = 10
CAPACITY = 16 * TiB


class Forgetful:
    """The store's side of a commit, measured: nothing is kept."""

    def __init__(self) -> None:
        self.commits = 0
        self.bytes = 0

    async def load(self, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
        return
        yield prefix, b""

    async def commit(self, puts: Mapping[str, bytes], deletes: Iterable[str]) -> None:
        self.commits += 1
        self.bytes += sum(len(key) + len(value) for key, value in puts.items())


class Signer:
    def sign(self, scope: str, *, epoch: int, rights: str, expires: float) -> bytes:
        return b"x" * 120


class Nobody:
    async def call(self, address: str, type: int, meta: bytes, timeout: float) -> None:
        return None


@dataclass
class Cost:
    """seconds: of CPU of this process."""

    seconds: float = 0.0


@contextmanager
def cpu(cost: Cost) -> Iterator[None]:
    began = time.process_time()
    yield
    cost.seconds += time.process_time() - began


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@dataclass
class Size:
    """`zones` zones of `per_zone` chunkservers with `replicas` replicas each."""

    zones: int
    per_zone: int
    replicas: int

    @property
    def chunkservers(self) -> int:
        return self.zones * self.per_zone

    @property
    def copysets(self) -> int:
        return self.chunkservers * self.replicas // REPLICAS


class BigCluster:
    """`term` knows the cluster as after reading it from etcd; `report` makes what chunkservers would send."""

    def __init__(self, size: Size, seed: int = 1) -> None:
        self.size = size
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self.store = Forgetful()
        config = MdsConfig(
            name="m1",
            advertise="127.0.0.1:6700",
            etcd=EtcdConfig(endpoints=["127.0.0.1:2379"]),
            keyring=Path("/nonexistent"),
        )
        self.term = Term(config, self.clock, self.store, Signer(), Nobody(), rng=self.rng)
        self.leader: dict[tuple[int, int], int] = {}
        self.epoch: dict[tuple[int, int], int] = {}

    async def start(self) -> None:
        await self.term.start(background=False)
        tables = self.term.core.tables
        for number in range(self.size.chunkservers):
            zone = number % self.size.zones
            tables.put(
                ChunkServerRecord(
                    id=number + 1, uuid=f"00000000-0000-0000-0000-{number:012d}", secret=f"{number:032x}",
                    address=self.address(number + 1), server=f"server-{number}", zone=f"zone-{zone}",
                    physical_pool="default", poolset="default", capacity=CAPACITY, version="0.1.0", confirmed=True,
                )
            )  # fmt: skip
        for pool in range(1, POOLS + 1):
            count = self.size.copysets // POOLS
            tables.put(
                PoolRecord(
                    id=pool, name=f"pool{pool}", physical_pool="default", poolset="default", replicas=REPLICAS,
                    copysets=count, scatter_width=0, zones=REPLICAS, complete=True,
                )
            )  # fmt: skip
        for number, members in enumerate(self._places()):
            key = (number % POOLS + 1, number // POOLS + 1)
            tables.put(CopysetRecord(pool=key[0], id=key[1], members=members, established=True))

    def _places(self) -> Iterator[tuple[int, ...]]:
        """Three members in three zones, every chunkserver in equally many, every one leading equally many."""
        zones = list(range(self.size.zones))
        leads = [[0] * (self.size.chunkservers + 1) for _ in range(POOLS)]
        order = [list(range(self.size.per_zone)) for _ in zones]
        made = 0
        for turn in range(self.size.per_zone * self.size.replicas):
            self.rng.shuffle(zones)
            if turn % self.size.per_zone == 0:
                for places in order:
                    self.rng.shuffle(places)
            place = turn % self.size.per_zone
            for start in range(0, len(zones) - REPLICAS + 1, REPLICAS):
                members = sorted(
                    order[zone][place] * self.size.zones + zone + 1 for zone in zones[start : start + REPLICAS]
                )
                led = leads[made % POOLS]
                leader = min(members, key=lambda member: led[member])
                led[leader] += 1
                self.leader[made % POOLS + 1, made // POOLS + 1] = leader
                made += 1
                yield tuple(members)

    @staticmethod
    def address(chunkserver: int) -> str:
        return f"10.{chunkserver >> 16}.{chunkserver >> 8 & 255}.{chunkserver & 255}:8200"

    # ---- what chunkservers send

    def report(self, chunkserver: int, *, full: bool, changed: int = 0) -> bytes:
        """A heartbeat as on the wire. changed: how many of its copysets are in it when it is not full."""
        tables = self.term.core.tables
        keys = sorted(tables.copysets_of.get(chunkserver, ()))
        if not full:
            keys = self.rng.sample(keys, min(changed, len(keys)))
        return pb.HeartbeatRequest(
            chunkserver_id=chunkserver,
            secret=tables.chunkservers[chunkserver].secret,
            address=self.address(chunkserver),
            full=full,
            copysets=[
                pb.CopysetReport(
                    pool_id=key[0],
                    copyset_id=key[1],
                    leader=self.leader[key] == chunkserver,
                    term=5,
                    epoch=tables.copysets[key].epoch,
                    voters=tables.copysets[key].members,
                    applied=1_000_000 + key[1],
                )
                for key in keys
            ],
            capacity=CAPACITY,
            used=CAPACITY // 3,
            format_percent=100,
            version="0.1.0",
        ).SerializeToString()

    async def beat(self, data: bytes) -> pb.HeartbeatReply:
        """What the heartbeat service does with a request, up to the reply's bytes."""
        reply = await take_report(self.term, pb.HeartbeatRequest.FromString(data))
        reply.SerializeToString()
        return reply

    async def pass_time(self, seconds: float, silent: frozenset[int] = frozenset()) -> None:
        """Everybody goes on beating meanwhile, but for the silent."""
        for _ in range(int(seconds // 4)):
            self.clock.advance(4)
            for number, state in self.term.core.monitor.servers.items():
                if number not in silent:
                    state.last = self.clock.monotonic()

    async def everybody(
        self, *, full: bool, changed: int = 0, silent: frozenset[int] = frozenset(), number: int = 0
    ) -> tuple[Cost, int]:
        """One round of heartbeats, of the first `number` chunkservers or of all: its cost at the MDS, and the bytes of
        the replies."""
        cost, sent = Cost(), 0
        end = (number or self.size.chunkservers) + 1
        for start in range(1, end, 100):
            block = [n for n in range(start, min(start + 100, end)) if n not in silent]
            data = [self.report(n, full=full, changed=changed) for n in block]
            with cpu(cost):
                for one in data:
                    reply = await self.beat(one)
                    sent += reply.ByteSize()
        return cost, sent
