"""Hundreds of chunkservers with the real tables, reports and schedulers: from a bad start they end in order, nothing is
moved without need, and what is found through indices is what a look at everything finds."""

from __future__ import annotations

import random

import msgspec
import pytest

from bench.scale import measure
from bench.scale_cluster import CAPACITY, BigCluster, Size
from curve_storage.mds import health, messages
from curve_storage.mds.config import MdsConfig
from curve_storage.mds.picture import PENDING, attention, view
from curve_storage.mds.records import ChunkServerRecord, CopysetRecord, Entry, Segment, pack_ids
from curve_storage.mds.schedulers import copysets, leaders, recover, replica
from curve_storage.mds.view import Step, StepKind, View
from curve_storage.proto import mds_pb2 as pb

Key = tuple[int, int]
TOLERANCE = 0.05


class Living(BigCluster):
    """Chunkservers that do what they are told, at once. groups: epoch, members as they really are; held: who has a
    replica."""

    def __init__(self, size: Size, seed: int) -> None:
        super().__init__(size, seed)
        self.groups: dict[Key, tuple[int, tuple[int, ...]]] = {}
        self.held: dict[int, set[Key]] = {}
        self.silent: set[int] = set()
        self.news: dict[int, set[Key]] = {}  # what a chunkserver has not reported yet
        self.want_full: set[int] = set()

    async def start(self) -> None:
        await super().start()
        for key, record in self.term.core.tables.copysets.items():
            self.groups[key] = (record.epoch, record.members)
            for member in record.members:
                self.held.setdefault(member, set()).add(key)

    def report(self, chunkserver: int, *, full: bool, changed: int = 0) -> bytes:
        tables = self.term.core.tables
        keys = self.held.get(chunkserver, set())
        if not full:
            keys = keys & self.news.get(chunkserver, set())
        return pb.HeartbeatRequest(
            chunkserver_id=chunkserver,
            secret=tables.chunkservers[chunkserver].secret,
            address=self.address(chunkserver),
            full=full,
            copysets=[
                pb.CopysetReport(
                    pool_id=key[0], copyset_id=key[1], leader=self.leader[key] == chunkserver,
                    term=self.groups[key][0], epoch=self.groups[key][0], voters=self.groups[key][1],
                )
                for key in sorted(keys)
            ],
            capacity=CAPACITY, used=0, format_percent=100, version="0.1.0",
        ).SerializeToString()  # fmt: skip

    async def round(self) -> None:
        """A second in which everybody beats and obeys."""
        self.clock.advance(1)
        for number in sorted(self.term.core.tables.chunkservers.keys() - self.silent):
            reply = await self.beat(self.report(number, full=number in self.want_full))
            self.want_full.discard(number)
            self.news.pop(number, None)
            if reply.want_full:
                self.want_full.add(number)
            for order in reply.orders:
                self.obey(number, order)

    def obey(self, chunkserver: int, order: pb.CopysetOrder) -> None:
        key = (order.pool_id, order.copyset_id)
        epoch, members = self.groups[key]
        kinds = pb.CopysetOrder
        if order.kind == kinds.CREATE:
            self.held.setdefault(chunkserver, set()).add(key)
            self.changed(key)
        elif order.kind == kinds.REMOVE_REPLICA:
            assert chunkserver not in members, "a member's data must not be deleted"
            self.lose(chunkserver, key)
        elif order.kind == kinds.TRANSFER_LEADER:
            assert order.target in members
            self.leader[key] = order.target
            self.groups[key] = (epoch + 1, members)
            self.changed(key)
        else:
            assert order.epoch == epoch
            gone = {kinds.CHANGE_PEER: order.old, kinds.REMOVE_PEER: order.target}.get(order.kind, 0)
            assert not gone or gone in members
            if order.kind != kinds.REMOVE_PEER:
                assert key in self.held[order.target], "the new member has its replica first"
            come = () if order.kind == kinds.REMOVE_PEER else (order.target,)
            now = tuple(sorted({*members, *come} - {gone}))
            self.groups[key] = (epoch + 1, now)
            if self.leader[key] == gone:
                self.leader[key] = now[0]
            self.changed(key)

    def changed(self, key: Key) -> None:
        for number, keys in self.held.items():
            if key in keys:
                self.news.setdefault(number, set()).add(key)

    def lose(self, chunkserver: int, key: Key) -> None:
        self.held[chunkserver].discard(key)
        self.want_full.add(chunkserver)

    def loads(self, numbers: set[int]) -> dict[int, int]:
        found = dict.fromkeys(numbers, 0)
        for _, members in self.groups.values():
            for member in members:
                if member in found:
                    found[member] += 1
        return found


async def scrambled(seed: int, zones: int, per_zone: int, replicas: int) -> tuple[Living, set[int], set[int], set[int]]:
    """After a bad time: two chunkservers lost, one draining, three blank ones added, leaders anywhere. Returns the
    cluster, the lost, the draining and the new."""
    rng = random.Random(seed)
    cluster = Living(Size(zones, per_zone, replicas), seed)
    await cluster.start()
    core = cluster.term.core
    numbers = sorted(core.tables.chunkservers)
    lost = {numbers[0], numbers[zones]}  # of one zone: no copyset loses its quorum
    (draining,) = rng.sample([n for n in numbers if n not in lost], 1)
    core.tables.put(replace_admin(core.tables.chunkservers[draining]))
    new = set()
    for zone in rng.sample(range(zones), 3):
        number = len(core.tables.chunkservers) + 1
        core.tables.put(
            ChunkServerRecord(
                id=number, uuid=f"new-{number}", secret=f"{number:032x}", address=cluster.address(number),
                server=f"server-{number}", zone=f"zone-{zone}", physical_pool="default", poolset="default",
                capacity=CAPACITY, version="0.1.0", confirmed=True,
            )
        )  # fmt: skip
        new.add(number)
    for key, (_, members) in cluster.groups.items():
        cluster.leader[key] = rng.choice([m for m in members if m not in lost] or list(members))
    cluster.silent = lost
    cluster.want_full = set(core.tables.chunkservers)
    await cluster.round()
    cluster.clock.advance(core.config.heartbeat.offline_after)
    for _ in range(15):
        await cluster.round()
    return cluster, lost, {draining}, new


def replace_admin(record: ChunkServerRecord) -> ChunkServerRecord:
    return msgspec.structs.replace(record, admin=PENDING)


def limits_raised(config: MdsConfig) -> MdsConfig:
    schedulers = config.schedulers.model_copy(update={"leader_transfers": 200})
    return config.model_copy(update={"schedulers": schedulers})


def plain(cluster: BigCluster) -> View:
    """The same picture without any index: every group made, every group looked at."""
    indexed = lazy(cluster)
    return View(indexed.nodes, dict(indexed.groups.items()), dict(indexed.steps), per_node=1)


def lazy(cluster: BigCluster) -> View:
    core = cluster.term.core
    return view(core.tables, core.monitor, core.operators.steps(), now=core.clock.monotonic(), per_node=1)


def wanted(picture: View) -> list[list[Step]]:
    return [
        recover.recover(picture),
        replica.replica(picture),
        copysets.drain(picture),
        copysets.balance(picture, TOLERANCE),
        leaders.leaders(picture, 50),
    ]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("seed", "zones", "per_zone", "replicas"), [(1, 6, 50, 6), (2, 12, 10, 9), (3, 9, 8, 20)])
async def test_from_a_bad_start_everything_ends_in_order(seed: int, zones: int, per_zone: int, replicas: int) -> None:
    cluster, lost, draining, new = await scrambled(seed, zones, per_zone, replicas)
    core = cluster.term.core
    core.config = limits_raised(core.config)  # the number of rounds is not what is tested
    gone = lost | draining
    to_move = sum(len({*members} & gone) for _, members in cluster.groups.values())
    using = set(core.tables.chunkservers) - gone
    moved = {"off": 0, "balance": 0}
    quiet = 0
    for _ in range(400):
        loads = cluster.loads(set(core.tables.chunkservers))
        steps = cluster.term.scheduling.round()
        for step in steps:
            if step.kind is StepKind.TRANSFER_LEADER:
                continue
            assert step.kind is StepKind.CHANGE_PEER and step.target in using
            if step.old in gone:
                moved["off"] += 1
            else:
                moved["balance"] += 1
                assert loads[step.old] > loads[step.target] + 1, "moved although it makes nothing more even"
        for _ in range(3):
            await cluster.round()
        quiet = 0 if steps or core.operators.running else quiet + 1
        if quiet == 8:  # also after steps that had to wait
            break
    assert quiet == 8, "the schedulers do not come to rest"
    assert moved["off"] == to_move, "each replica of a lost or drained chunkserver is copied once"
    arrived = cluster.loads(new)
    assert moved["balance"] <= sum(arrived.values()), "only blank chunkservers are filled up"
    after = cluster.loads(using)
    average = sum(after.values()) / len(after)
    assert max(after.values()) - min(after.values()) <= max(1.0, TOLERANCE * average) + 1
    for _, members in cluster.groups.values():
        assert len({core.tables.chunkservers[m].zone for m in members}) == 3 and not gone & {*members}
    for pool in core.tables.pools:
        led: dict[int, int] = {}
        for key, leader in cluster.leader.items():
            if key[0] == pool:
                led[leader] = led.get(leader, 0) + 1
        for key, (_, members) in cluster.groups.items():
            if key[0] == pool:
                assert all(led.get(m, 0) >= led[cluster.leader[key]] - 1 for m in members), "a leader could move"
    assert not [r for r in health.judge(core) if r.code.startswith("copyset")]
    for number in using:  # nothing is left over
        assert cluster.held.get(number, set()) == {k for k, (_, members) in cluster.groups.items() if number in members}


@pytest.mark.parametrize("seed", range(6))
async def test_indices_find_what_a_look_at_everything_finds(seed: int) -> None:
    cluster, *_ = await scrambled(seed, 6, 10, 12)
    core = cluster.term.core
    rng = random.Random(seed)
    for turn in range(12):
        now = core.clock.monotonic()
        noticed = attention(core.tables, core.monitor, now)
        replicas = {pool.id: pool.replicas for pool in core.tables.pools.values()}
        whole = [key for key, r in core.tables.copysets.items() if core.monitor.healthy(r, now, replicas[key[0]])]
        available = [r for r in core.tables.copysets.values() if core.monitor.available(r, now, patient=True)]
        assert noticed | set(whole) == core.tables.copysets.keys()
        counts = health.counts(core)
        assert (counts.healthy, counts.available) == (len(whole), len(available))
        for pool in messages.pools(core):
            assert pool.copysets_healthy == len([key for key in whole if key[0] == pool.id])
            assert pool == messages.pool(core, core.tables.pools[pool.id])
        for found, expected in zip(wanted(lazy(cluster)), wanted(plain(cluster)), strict=True):
            assert [str(step.copyset) + str(step) for step in found] == [
                str(step.copyset) + str(step) for step in expected
            ]
        held = {n: {k for k, r in core.tables.copysets.items() if n in r.members} for n in core.tables.chunkservers}
        assert all(core.tables.copysets_of.get(n, set()) == keys for n, keys in held.items())
        assert core.tables.unsized == {k for k, r in core.tables.copysets.items() if len(r.members) != 3}
        cluster.term.scheduling.round()
        for _ in range(2):
            await cluster.round()
        disturb(cluster, rng, turn)


def disturb(cluster: Living, rng: random.Random, turn: int) -> None:
    """A chunkserver falls silent or comes back, a replica vanishes, a record appears with too few members."""
    numbers = sorted(cluster.term.core.tables.chunkservers)
    if turn % 3 == 0:
        cluster.silent ^= {rng.choice(numbers)}
    elif turn % 3 == 1:
        number = rng.choice(numbers)
        if cluster.held.get(number):
            cluster.lose(number, rng.choice(sorted(cluster.held[number])))
    else:
        key = rng.choice(sorted(cluster.groups))
        epoch, members = cluster.groups[key]
        if len(members) == 3 and cluster.leader[key] in members:
            others = [m for m in members if m != cluster.leader[key]]
            cluster.groups[key] = (epoch + 1, tuple(sorted((cluster.leader[key], rng.choice(others)))))
            cluster.changed(key)


async def test_chunks_are_counted_by_chunkserver_through_moves() -> None:
    cluster = BigCluster(Size(6, 5, 6))
    await cluster.start()
    await cluster.everybody(full=True)
    core = cluster.term.core
    rng = random.Random(1)
    for index in range(20):
        pool, chosen = cluster.term.segments.choose(Entry(id=99, parent=1, name="a", poolset="default"))
        ids = pack_ids([copyset for _, copyset in chosen])
        segment = Segment(volume=99, index=index, pool=pool.id, first_chunk=64 * index + 64, copysets=ids)
        core.tables.put(segment)
        key = rng.choice(sorted(core.tables.copysets))
        record = core.tables.copysets[key]
        spare = rng.choice([n for n in core.tables.chunkservers if n not in record.members])
        members = tuple(sorted((spare, *record.members[1:])))
        core.tables.put(CopysetRecord(pool=key[0], id=key[1], members=members, epoch=2, established=True))
        if index % 5 == 4:
            core.tables.remove(core.tables.segments[99][rng.choice(sorted(core.tables.segments[99]))])
    for number in core.tables.chunkservers:
        chunks = sum(core.tables.chunks_in[key] for key in core.tables.copysets_of.get(number, ()))
        assert core.tables.chunks_on[number] == chunks


async def test_the_measurement_works() -> None:
    """No verdict on time: that is for a quiet machine."""
    rows: list[tuple[str, float, str]] = []
    cluster = await measure(Size(6, 10, 30), rows.append)
    assert len(rows) >= 12 and all(row[2] for row in rows)
    assert cluster.term.core.operators.running, "a lost chunkserver's copysets are being replaced"


async def test_a_beat_without_news_costs_no_look_at_copysets_and_says_nothing() -> None:
    cluster = BigCluster(Size(6, 5, 30))
    await cluster.start()
    for _ in range(2):
        await cluster.everybody(full=True)
    number = 7
    silent = await cluster.beat(cluster.report(number, full=False))
    assert not silent.addresses and not silent.orders and not silent.want_full
    again = await cluster.beat(cluster.report(number, full=True))
    assert len(again.addresses) > 10, "who may not know them is told"
    core = cluster.term.core
    key = sorted(core.tables.copysets_of[number])[0]
    record = core.tables.copysets[key]
    spare = next(n for n in core.tables.chunkservers if n not in record.members and n not in again.addresses)
    members = tuple(sorted({*record.members, spare} - {next(m for m in record.members if m != number)}))
    core.tables.put(CopysetRecord(pool=key[0], id=key[1], members=members, epoch=9, established=True))
    told = await cluster.beat(cluster.report(number, full=False))
    assert spare in told.addresses
    assert not (await cluster.beat(cluster.report(number, full=False))).addresses
