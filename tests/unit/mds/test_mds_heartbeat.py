"""Registration, pools, heartbeats, orders, health: the services together on scripted chunkservers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from curve_storage.errors import AlreadyExists, FailedPrecondition, NotFound, Unauthenticated
from curve_storage.mds import health
from curve_storage.mds.heartbeat import OrderKind
from curve_storage.mds.monitor import Beat, Limits, Monitor, Online, Replica
from curve_storage.mds.operators import Change, LeaderReport, Operators, Verdict, judge
from curve_storage.mds.picture import PENDING, RETIRED
from curve_storage.mds.records import CopysetRecord, PoolRecord, decode
from curve_storage.mds.topology import Registration
from curve_storage.mds.view import Step, StepKind

Cluster = Any


def words(cluster: Cluster) -> tuple[str, list[str]]:
    reasons = health.judge(cluster.term.core)
    return health.word(reasons), [reason.code for reason in reasons]


async def drive(cluster: Cluster, rounds: int = 40) -> None:
    """Heartbeats and scheduler rounds until nothing is under way."""
    for _ in range(rounds):
        await cluster.beats()
        if not cluster.term.scheduling.round() and not cluster.term.core.operators.running:
            await cluster.beats()
            return


# ---- registration


async def test_registration_is_idempotent_and_guards_the_identity(cluster: Cluster) -> None:
    await cluster.add_disks(1)
    disk = cluster.disks[0]
    first = disk.id
    await disk.register()
    assert disk.id == first
    secret, disk.secret = disk.secret, "wrong"
    with pytest.raises(Unauthenticated) as caught:
        await disk.register()
    assert "identity file" in caught.value.todo
    with pytest.raises(Unauthenticated):
        await disk.beat()
    disk.secret = ""  # it has shown its secret before, so it must show it again
    with pytest.raises(Unauthenticated):
        await disk.register()
    disk.secret = secret
    await cluster.lead()
    await disk.register()
    assert disk.id == first


async def test_a_lost_first_answer_can_be_asked_for_again(cluster: Cluster) -> None:
    wish = Registration(uuid="u", secret="", address="h:1", server="s", zone="z")
    first = await cluster.term.topology.register(wish)
    assert (await cluster.term.topology.register(wish)) == first
    with pytest.raises(Unauthenticated, match="does not know the uuid"):
        await cluster.term.topology.register(replace(wish, uuid="other", secret="x"))


async def test_addresses_move_with_their_chunkservers(pooled: Cluster) -> None:
    one, two, _ = pooled.disks
    one.address, two.address = two.address, "10.0.9.9:8200"
    await one.beat()
    assert pooled.term.core.tables.address_of(two.id) == ""  # its old one belongs to another now
    await two.beat()
    answer = await one.beat()
    assert answer.addresses[two.id] == "10.0.9.9:8200"
    assert answer.addresses[one.id] == one.address
    await pooled.lead()
    assert pooled.term.core.tables.address_of(two.id) == "10.0.9.9:8200"


async def test_places_are_checked(cluster: Cluster) -> None:
    register = cluster.term.topology.register
    await register(Registration(uuid="a", secret="", address="h:1", server="s", zone="z1"))
    with pytest.raises(FailedPrecondition, match="server s is in zone z1"):
        await register(Registration(uuid="b", secret="", address="h:2", server="s", zone="z2"))
    with pytest.raises(FailedPrecondition, match="belongs to poolset default"):
        await register(Registration(uuid="c", secret="", address="h:3", server="t", zone="z2", poolset="fast"))


# ---- pools


async def test_pool_creation_names_what_is_missing_and_is_idempotent(cluster: Cluster) -> None:
    topology = cluster.term.topology
    await cluster.add_disks(2)
    with pytest.raises(FailedPrecondition, match="3 zones"):
        await topology.create_pool("p")
    assert not cluster.term.core.tables.pools
    await cluster.add_disks(1)
    made = await topology.create_pool("p", copysets=5)
    assert (await topology.create_pool("p", copysets=5)) == made
    assert (await topology.create_pool("p")) == made
    with pytest.raises(AlreadyExists, match="copysets 5, not 6"):
        await topology.create_pool("p", copysets=6)
    assert len(cluster.term.core.tables.copysets) == 5


async def test_a_creation_cut_short_is_taken_up(cluster: Cluster) -> None:
    await cluster.add_disks(3)
    await cluster.term.topology.create_pool("p", copysets=250)
    # As if the MDS had died after the first transaction of copysets.
    for key in [k for k in cluster.pairs if k.startswith("state/copyset/")][100:]:
        del cluster.pairs[key]
    (pool_key,) = [k for k in cluster.pairs if k.startswith("state/pool/")]
    pool = decode(pool_key, cluster.pairs[pool_key])
    assert isinstance(pool, PoolRecord)
    await cluster.lead()
    await cluster.term.core.state.commit(msgspec_replace(pool, complete=False))
    await cluster.beats(2)
    assert "pool_incomplete" in words(cluster)[1]
    with pytest.raises(FailedPrecondition):
        await cluster.term.namespace.create_volume("/a", 1 << 30)
    again = await cluster.term.topology.create_pool("p", copysets=250)
    assert again.id == pool.id and again.complete
    assert len(cluster.term.core.tables.copysets) == 250


def msgspec_replace(record: Any, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(record, **changes)


# ---- orders


async def test_create_is_ordered_until_it_is_reported(cluster: Cluster) -> None:
    await cluster.add_disks(3)
    await cluster.term.topology.create_pool("p", copysets=4)
    disk = cluster.disks[0]
    for _ in range(2):
        answer = await disk.beat(obey=False)
        assert [order.kind for order in answer.orders] == [OrderKind.CREATE] * 4
        assert all(set(order.members) == {1, 2, 3} for order in answer.orders)
    assert words(cluster)[0] == "degraded"
    await cluster.beats(2)
    assert not (await disk.beat(obey=False)).orders
    assert words(cluster) == ("healthy", [])


async def test_an_established_copyset_is_never_made_again(pooled: Cluster) -> None:
    """A replica that vanished must not come back with a vote and an empty log."""
    key = min(pooled.groups)
    victim = next(d for d in pooled.disks if d.id != pooled.groups[key][2])
    pooled.holders[key].discard(victim.id)
    pooled.sync()
    answer = await victim.beat(obey=False)
    assert not [order for order in answer.orders if order.kind is OrderKind.CREATE]
    assert "replica_lost" not in words(pooled)[1]  # it may still be loading
    await pooled.beats(11)
    assert "replica_lost" in words(pooled)[1]
    await drive(pooled)
    # It left, was made anew as an empty replica, and was added: two changes of configuration.
    assert pooled.groups[key][:2] == (3, (1, 2, 3))
    assert pooled.term.core.tables.copysets[key].epoch == 3
    assert words(pooled) == ("healthy", [])


async def test_membership_is_believed_only_from_a_newer_epoch(pooled: Cluster) -> None:
    await pooled.add_disks(1)
    key = min(pooled.groups)
    _, members, leader = pooled.groups[key]
    before = pooled.term.core.tables.copysets[key].members
    disk = next(d for d in pooled.disks if d.id == leader)
    disk.replicas[key] = Replica(leader=True, term=9, epoch=1, voters=(1, 2, 4))
    await disk.beat(obey=False)
    assert pooled.term.core.tables.copysets[key].members == before
    other = next(d for d in pooled.disks if d.id in members and d.id != leader)
    other.replicas[key] = Replica(leader=False, term=9, epoch=2, voters=(1, 2, 4))
    await other.beat(obey=False)  # not from the leader
    assert pooled.term.core.tables.copysets[key].members == before
    disk.replicas[key] = Replica(leader=True, term=9, epoch=2, voters=(1, 2, 4))
    await disk.beat(obey=False)
    assert pooled.term.core.tables.copysets[key].members == (1, 2, 4)


async def test_the_higher_term_is_the_leader(pooled: Cluster) -> None:
    key = min(pooled.groups)
    monitor = pooled.term.core.monitor
    leader = monitor.leaders[key].leader
    new, stale = next(d for d in pooled.disks if d.id != leader), next(d for d in pooled.disks if d.id == leader)
    new.replicas[key] = Replica(leader=True, term=5, epoch=1, voters=(1, 2, 3))
    await new.beat(full=False, obey=False)
    await stale.beat(obey=False)  # still thinks that it leads, in term 1
    assert monitor.leaders[key].leader == new.id
    assert key not in monitor.servers[stale.id].leads


async def test_ghosts_are_removed_only_when_the_leader_says_so(pooled: Cluster) -> None:
    await pooled.add_disks(1)
    key = min(pooled.groups)
    ghost = pooled.disks[3]
    ghost.replicas[key] = Replica(leader=False, term=1, epoch=1, voters=(1, 2, 3))
    ghost.replicas[7, 7] = Replica(leader=False, term=1, epoch=1, voters=(1, 2, 4))  # of no known pool
    answer = await ghost.beat(obey=False)
    assert [(o.kind, o.copyset) for o in answer.orders] == [(OrderKind.REMOVE_REPLICA, key)]

    await pooled.lead()  # a new leader has not heard this copyset's leader yet
    ghost.replicas[key] = Replica(leader=False, term=1, epoch=1, voters=(1, 2, 3))
    assert not (await ghost.beat(obey=False)).orders
    leader = next(d for d in pooled.disks if d.id == pooled.groups[key][2])
    leader.replicas[key] = Replica(
        leader=True, term=1, epoch=1, voters=(1, 2, 3), learners=(4,), change=Change.RUNNING
    )  # a change that the last MDS ordered is under way, and this is its new member
    await leader.beat(obey=False)
    assert not (await ghost.beat(obey=False)).orders
    leader.replicas[key] = Replica(leader=True, term=1, epoch=1, voters=(1, 2, 3))
    await leader.beat(obey=False)
    assert [o.kind for o in (await ghost.beat(obey=False)).orders] == [OrderKind.REMOVE_REPLICA]


# ---- recovery, draining, failover


async def test_an_offline_chunkserver_is_replaced(cluster: Cluster) -> None:
    await cluster.with_pool(disks=6, copysets=12)
    lost = cluster.disks[0]
    held = {key for key, (_, members, _) in cluster.groups.items() if lost.id in members}
    lost.up = False
    for key in held:
        epoch, members, leader = cluster.groups[key]
        if leader == lost.id:
            cluster.groups[key] = (epoch, members, next(m for m in members if m != lost.id))
    cluster.sync()
    for _ in range(6):
        await cluster.beats()
    assert words(cluster) == ("degraded", ["chunkserver_unstable"])
    assert not cluster.term.scheduling.round()  # it may come back
    cluster.clock.advance(cluster.config.heartbeat.offline_after - 3)
    await cluster.beats(5)
    assert "chunkserver_offline" in words(cluster)[1]
    await drive(cluster, 80)
    assert not any(lost.id in members for _, members, _ in cluster.groups.values())
    assert not cluster.term.core.tables.copysets_of[lost.id]
    lost.up = True
    answer = await lost.beat(obey=False)
    assert {o.copyset for o in answer.orders if o.kind is OrderKind.REMOVE_REPLICA} == held
    await drive(cluster)
    await cluster.lead()
    zones = {d.id: d.zone for d in cluster.disks}
    for record in cluster.term.core.tables.copysets.values():
        assert len({zones[m] for m in record.members}) == 3


async def test_one_copy_at_a_time_to_a_chunkserver(cluster: Cluster) -> None:
    await cluster.with_pool(disks=6, copysets=12)
    lost = cluster.disks[0]
    lost.up = False
    for key, (epoch, members, leader) in list(cluster.groups.items()):
        if leader == lost.id:
            cluster.groups[key] = (epoch, members, next(m for m in members if m != lost.id))
    cluster.sync()
    await cluster.beats(6)
    cluster.clock.advance(cluster.config.heartbeat.offline_after)
    await cluster.beats(1)
    steps = cluster.term.scheduling.round()
    targets = [s.target for s in steps if s.kind is StepKind.CHANGE_PEER]
    assert targets and len(targets) == len(set(targets))
    assert not [s for s in cluster.term.scheduling.round() if s.kind is StepKind.CHANGE_PEER]


async def test_draining_empties_and_retires(cluster: Cluster) -> None:
    await cluster.with_pool(disks=6, copysets=12)
    await cluster.term.topology.set_state(1, PENDING)
    with pytest.raises(FailedPrecondition, match="still holds"):
        await cluster.term.topology.set_state(1, RETIRED)
    await drive(cluster, 80)
    assert await cluster.term.topology.retire_drained() == [1]
    for _ in range(3):  # told that it is retired, it is still told to delete what it has left
        assert (await cluster.disks[0].beat()).retired
    assert not cluster.disks[0].replicas
    with pytest.raises(FailedPrecondition, match="retired"):
        await cluster.disks[0].register()
    with pytest.raises(FailedPrecondition, match="for good"):
        await cluster.term.topology.set_state(1, 0)
    with pytest.raises(NotFound):
        await cluster.term.topology.set_state(99, 0)


async def test_after_a_change_of_leader_nothing_is_rash(pooled: Cluster) -> None:
    await pooled.lead()
    assert words(pooled)[1] == ["collecting_reports"]
    assert not pooled.term.scheduling.round()
    pooled.clock.advance(6)  # longer than unhealthy_after, still within the grace period
    assert words(pooled)[1] == ["collecting_reports"]
    answer = await pooled.disks[0].beat(full=False)
    assert answer.want_full
    assert not (await pooled.disks[0].beat(full=True)).want_full
    await pooled.beats(2)
    assert words(pooled) == ("healthy", [])


async def test_what_does_not_report_after_the_grace_is_said(pooled: Cluster) -> None:
    pooled.disks[2].up = False
    await pooled.lead()
    await pooled.beats(11)
    word, codes = words(pooled)
    assert word == "unavailable" or "chunkserver_unstable" in codes
    assert pooled.term.core.monitor.online(3, pooled.clock.monotonic()) is Online.UNSTABLE


async def test_health_words(pooled: Cluster) -> None:
    assert words(pooled) == ("healthy", [])
    for disk in pooled.disks[:2]:
        disk.up = False
    await pooled.beats(6)
    word, codes = words(pooled)
    assert word == "unavailable" and codes[0] == "copyset_unavailable"
    for reason in health.judge(pooled.term.core):
        assert len(reason.message) > 20
    for disk in pooled.disks:
        disk.up = True
    await pooled.beats(1)
    pooled.disks[0].used = 99 << 30
    pooled.disks[1].used = pooled.disks[2].used = 90 << 30
    await pooled.beats(1)
    assert words(pooled) == ("degraded", ["pool_nearly_full"])


async def test_a_handover_is_no_outage(pooled: Cluster) -> None:
    """The old leader reports first; the copyset is not called unavailable before the new one had time to."""
    key = min(pooled.groups)
    _, members, leader = pooled.groups[key]
    old = next(d for d in pooled.disks if d.id == leader)
    old.replicas[key] = Replica(leader=False, term=2, epoch=1, voters=members)
    await old.beat(obey=False)
    assert words(pooled) == ("healthy", [])
    record = pooled.term.core.tables.copysets[key]
    assert not pooled.term.core.monitor.available(record, pooled.clock.monotonic())  # no new chunks go there
    for _ in range(6):
        pooled.clock.advance(1.0)
        for disk in pooled.disks:
            await disk.beat(full=False, obey=False)
    assert words(pooled)[0] == "unavailable"


async def test_no_pool_is_a_reason(cluster: Cluster) -> None:
    await cluster.add_disks(3)
    assert words(cluster) == ("degraded", ["no_pool"])


async def test_rapid_leader_and_switches(cluster: Cluster) -> None:
    await cluster.with_pool(disks=3, copysets=12)
    for key, (epoch, members, _) in list(cluster.groups.items()):
        cluster.groups[key] = (epoch, members, 1)
    cluster.sync()
    await cluster.term.scheduling.switch("leader", False)
    await cluster.beats(12)
    assert not cluster.term.scheduling.round()
    await cluster.lead()  # the switch is remembered
    await cluster.beats(12)
    assert not cluster.term.scheduling.enabled("leader")
    assert not cluster.term.scheduling.round()
    assert cluster.term.scheduling.rapid_leader(0) == 8
    await cluster.beats(2)
    led = [leader for _, _, leader in cluster.groups.values()]
    assert [led.count(n) for n in (1, 2, 3)] == [4, 4, 4]
    with pytest.raises(NotFound):
        await cluster.term.scheduling.switch("nonsense", True)


# ---- pure judgements


def test_online_states() -> None:
    monitor = Monitor(Limits(unhealthy_after=5, offline_after=60, grace=10), started=100)
    assert monitor.online(1, 109) is Online.ONLINE  # not heard of, but within the grace
    assert monitor.online(1, 111) is Online.UNSTABLE
    assert monitor.online(1, 161) is Online.OFFLINE
    monitor.beat(1, Beat(), 200, 0)
    assert [monitor.online(1, t) for t in (204, 206, 261)] == [Online.ONLINE, Online.UNSTABLE, Online.OFFLINE]


def test_a_lost_replica_needs_a_full_report() -> None:
    monitor = Monitor(Limits(), started=0)
    monitor.beat(1, Beat(), 1, 0)
    record = CopysetRecord(pool=1, id=1, members=(1, 2, 3), established=True)
    assert not monitor.lost(record, 1)
    monitor.full_report(1, set(), {(1, 1)}, 1)
    assert not monitor.lost(record, 5)
    assert monitor.lost(record, 11) == {1}
    assert not monitor.lost(msgspec_replace(record, established=False), 11)
    monitor.report(1, (1, 1), Replica(leader=False, term=1, epoch=1, voters=(1, 2, 3)))
    assert not monitor.lost(record, 11)
    monitor.report(1, (1, 1), Replica(leader=False, term=1, epoch=1, voters=(1, 2, 3), corrupt=True))
    assert monitor.lost(record, 11) == {1}


def report(
    leader: int = 1, epoch: int = 1, voters: tuple[int, ...] = (1, 2, 3), change: Change = Change.NONE
) -> LeaderReport:
    return LeaderReport(leader, 1, epoch, voters, change=change, change_error="no quorum")


CHANGE = Step((1, 1), StepKind.CHANGE_PEER, 4, 3)
TRANSFER = Step((1, 1), StepKind.TRANSFER_LEADER, 2)


@pytest.mark.parametrize(
    ("step", "said", "verdict"),
    [
        (CHANGE, report(), Verdict.ORDER),
        (CHANGE, report(change=Change.RUNNING), Verdict.WAIT),
        (CHANGE, report(epoch=2, voters=(1, 2, 4)), Verdict.DONE),
        (CHANGE, report(epoch=2, voters=(1, 2, 5)), Verdict.FAILED),
        (TRANSFER, report(), Verdict.ORDER),
        (TRANSFER, report(leader=2), Verdict.DONE),
        (TRANSFER, report(epoch=2, voters=(1, 3, 4)), Verdict.FAILED),
        (Step((1, 1), StepKind.ADD_PEER, 4), report(epoch=2, voters=(1, 2, 3, 4)), Verdict.DONE),
        (Step((1, 1), StepKind.REMOVE_PEER, 3), report(epoch=2, voters=(1, 2)), Verdict.DONE),
    ],
)
def test_verdicts(step: Step, said: LeaderReport, verdict: Verdict) -> None:
    operators = Operators(10, 100)
    assert operators.add(step, 1, now=0, wall=0)
    assert not operators.add(TRANSFER, 1, now=0, wall=0)  # one per copyset
    assert judge(operators.running[1, 1], said)[0] is verdict


def test_an_old_failure_is_not_the_operators() -> None:
    """The leader's FAILED may be about an earlier change: it counts only after this one was seen running."""
    operators = Operators(10, 100)
    operators.add(CHANGE, 1, now=0, wall=0)
    assert operators.on_report((1, 1), report(change=Change.FAILED), 1)[0] is not None
    assert operators.on_report((1, 1), report(change=Change.RUNNING), 2) == (None, None)
    _, finished = operators.on_report((1, 1), report(change=Change.FAILED), 3)
    assert finished is not None and finished.why == "no quorum"
    assert not operators.add(CHANGE, 1, now=4, wall=0)  # cooling down
    assert operators.add(CHANGE, 1, now=60, wall=0)


def test_a_change_that_is_refused_again_and_again_is_given_up() -> None:
    operators = Operators(10, 100)
    operators.add(CHANGE, 1, now=0, wall=0)
    outcomes = [operators.on_report((1, 1), report(change=Change.FAILED), n) for n in range(6)]
    assert all(order is not None for order, _ in outcomes[:5])
    assert outcomes[5][1] is not None and outcomes[5][1].why == "no quorum"


def test_operators_time_out() -> None:
    operators = Operators(10, 100)
    operators.add(TRANSFER, 1, now=0, wall=0)
    operators.add(Step((1, 2), StepKind.CHANGE_PEER, 4, 3), 1, now=0, wall=0)
    assert [f.operator.step for f in operators.expire(11)] == [TRANSFER]
    assert len(operators.expire(101)) == 1 and not operators.running
