"""Real hosts, sockets, threads and files: three in one process on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import consensus_hosts
import pytest
from consensus_hosts import GROUP, SMALL, Cluster, until

from curve_storage.consensus.api import Membership, Role
from curve_storage.consensus.config import ConsensusConfig, LogConfig, RaftConfig
from curve_storage.errors import DiskFailed, NotLeader, Overloaded, Unavailable


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    await made.stop()


def texts(node: consensus_hosts.Node) -> list[str]:
    assert node.machine is not None
    return [text for _, text in node.machine.commands]


async def all_equal(cluster: Cluster, numbers: tuple[int, ...], last: str) -> None:
    await until(lambda: all(texts(cluster.nodes[n])[-1:] == [last] for n in numbers), f"{last} on all of {numbers}")
    assert len({tuple(texts(cluster.nodes[number])) for number in numbers}) == 1


async def test_commands_reach_all_members_and_their_results_come_back(cluster: Cluster) -> None:
    await cluster.start(1, 2, 3)
    first = await cluster.propose(b"one", b"x" * 5000)
    results = await asyncio.gather(*[cluster.propose(b"n%d" % number) for number in range(200)])
    assert sorted(results) == list(range(first + 1, first + 201))
    leader = await cluster.wait_leader()
    with pytest.raises(Overloaded, match="refused by the state machine"):
        await leader.live.propose(GROUP, b"refuse")
    await cluster.propose(b"end")
    await all_equal(cluster, (1, 2, 3), "end")
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    with pytest.raises(NotLeader) as refusal:
        await follower.live.propose(GROUP, b"no")
    assert refusal.value.leader == str(leader.number)


async def test_reads_by_lease_and_by_barrier(cluster: Cluster) -> None:
    await cluster.start(1, 2, 3)
    await cluster.propose(b"one")
    leader = await cluster.wait_leader()
    await until(lambda: leader.live.lease_valid(GROUP), "a lease")
    await asyncio.gather(*[leader.live.read_barrier(GROUP) for _ in range(50)])
    follower = next(node for node in cluster.nodes.values() if node is not leader)
    assert not follower.live.lease_valid(GROUP)
    with pytest.raises(NotLeader):
        await follower.live.read_barrier(GROUP)


async def test_killed_leader_is_replaced_and_comes_back(cluster: Cluster) -> None:
    await cluster.start(1, 2, 3)
    acknowledged = [text for number in range(50) if (text := f"a{number}") and await cluster.propose(text.encode())]
    old = await cluster.wait_leader()
    await old.kill()
    await cluster.propose(b"after the kill")
    assert (await cluster.wait_leader()).number != old.number
    await old.start()
    await cluster.propose(b"after the return")
    await all_equal(cluster, (1, 2, 3), "after the return")
    assert [text for text in texts(old) if text in acknowledged] == acknowledged


async def test_everything_survives_when_all_are_killed_at_once(cluster: Cluster) -> None:
    await cluster.start(1, 2, 3)
    for number in range(20):
        await cluster.propose(b"a%d" % number)
    for node in cluster.nodes.values():
        await node.kill()
    for node in cluster.nodes.values():
        await node.start()
    await cluster.propose(b"end")
    await all_equal(cluster, (1, 2, 3), "end")
    assert texts(cluster.nodes[1]) == [f"a{number}" for number in range(20)] + ["end"]


async def test_member_that_was_away_for_long_gets_a_snapshot(cluster: Cluster) -> None:
    await cluster.start(1, 2, 3)
    await cluster.propose(b"first")
    leader = await cluster.wait_leader()
    away = next(node for node in cluster.nodes.values() if node is not leader)
    await away.kill()
    for number in range(40):  # several times what the log may hold
        await asyncio.gather(*[cluster.propose(b"b%d-%d" % (number, part), b"y" * 8000) for part in range(10)])
    await until(lambda: all(n is away or n.status().first_index > 100 for n in cluster.nodes.values()), "released log")
    await away.start()
    await cluster.propose(b"end")
    await all_equal(cluster, (1, 2, 3), "end")
    assert away.machine is not None and away.machine.restores >= 1
    await away.kill()  # what was installed is durable
    await away.start()
    await all_equal(cluster, (1, 2, 3), "end")


async def test_snapshot_goes_on_after_the_connection_broke(cluster: Cluster) -> None:
    await cluster.start(1, 2, 3)
    leader = await cluster.wait_leader()
    away = next(node for node in cluster.nodes.values() if node is not leader)
    await away.kill()
    for number in range(40):
        await asyncio.gather(*[cluster.propose(b"b%d-%d" % (number, part), b"y" * 8000) for part in range(10)])
    await until(lambda: leader.status().first_index > 100, "released log")
    await away.start()

    def started() -> bool:
        return any(incoming.next > 2 for incoming in away.live._receiver._incoming.values())

    await until(lambda: started() or (away.machine is not None and away.machine.restores), "a transfer")
    address = cluster.address(away.number)
    assert address is not None
    for node in cluster.nodes.values():
        if node is not away:
            await node.pool.drop(address)
    await cluster.propose(b"end")
    await all_equal(cluster, (1, 2, 3), "end")


async def test_member_is_replaced_by_a_new_one(cluster: Cluster) -> None:
    await cluster.start(1, 2, 3)
    for number in range(30):
        await cluster.propose(b"c%d" % number, b"z" * 3000)
    leader = await cluster.wait_leader()
    gone = next(node for node in cluster.nodes.values() if node is not leader)
    await gone.kill()
    await cluster.add(4, Membership(voters=(1, 2, 3)))
    voters = tuple(sorted({1, 2, 3, 4} - {gone.number}))
    leader.live.change_members(GROUP, voters)
    await until(lambda: leader.status().change == "done", "the change")
    assert leader.status().membership == Membership(voters=voters, epoch=2)
    await cluster.propose(b"end")
    await all_equal(cluster, voters, "end")
    assert cluster.nodes[4].status().role is Role.FOLLOWER


async def test_leader_that_is_removed_hands_over(cluster: Cluster) -> None:
    await cluster.start(1, 2, 3)
    await cluster.propose(b"one")
    leader = await cluster.wait_leader()
    await cluster.add(4, Membership(voters=(1, 2, 3)))
    voters = tuple(sorted({1, 2, 3, 4} - {leader.number}))
    leader.live.change_members(GROUP, voters)
    successor = await cluster.wait_leader(other_than=leader.number)
    await until(lambda: successor.status().membership.voters == voters, "the new membership")
    await leader.live.remove_group(GROUP)
    assert GROUP not in leader.live.known_groups()
    await cluster.propose(b"end")
    await all_equal(cluster, voters, "end")


async def test_leadership_is_transferred(cluster: Cluster) -> None:
    await cluster.start(1, 2, 3)
    await cluster.propose(b"one")
    leader = await cluster.wait_leader()
    target = next(number for number in cluster.nodes if number != leader.number)
    leader.live.transfer_leader(GROUP, target)
    assert (await cluster.wait_leader(other_than=leader.number)).number == target


async def test_idle_group_sleeps_and_wakes(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ConsensusConfig(raft=RaftConfig(hibernate_after=0.3), log=SMALL.log))
    try:
        await cluster.start(1, 2, 3)
        await cluster.propose(b"one")
        await until(lambda: all(node.status().hibernating for node in cluster.nodes.values()), "sleep")
        await cluster.propose(b"two")
        await until(lambda: all(node.status().hibernating for node in cluster.nodes.values()), "sleep again")
        leader = await cluster.wait_leader()
        await leader.kill()  # nobody may need a proposal to notice
        await cluster.wait_leader(other_than=leader.number)
        await cluster.propose(b"three")
    finally:
        await cluster.stop()


async def test_full_log_names_the_group_and_goes_on_after_its_checkpoint(tmp_path: Path) -> None:
    config = ConsensusConfig(log=LogConfig(segment_size=1 << 18, max_size=3 << 18), raft=RaftConfig(window_bytes=0))
    cluster = Cluster(tmp_path, config)
    try:
        await cluster.start(1)
        await cluster.propose(b"one")
        node = cluster.nodes[1]
        assert node.machine is not None
        node.machine.blocked = True
        refused = False
        for number in range(400):
            try:
                await asyncio.wait_for(node.live.propose(GROUP, b"d%d" % number, b"y" * 8000), 2)
            except Overloaded as error:
                assert str(GROUP) in str(error)
                refused = True
                break
            except TimeoutError:
                continue
        assert refused
        node.machine.blocked = False
        await cluster.propose(b"end")
        assert texts(node)[-1] == "end"
    finally:
        await cluster.stop()


async def test_failed_sync_is_fatal(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    await cluster.start(1, 2, 3)
    await cluster.propose(b"one")
    leader = await cluster.wait_leader()

    def broken() -> None:
        raise DiskFailed("simulated EIO", where="log")

    for segment in leader.live.engine.log.segments:
        monkeypatch.setattr(segment.file, "sync", broken)
    with pytest.raises((DiskFailed, Unavailable)):
        await leader.live.propose(GROUP, b"two")
    assert [type(error) for error in leader.fatal] == [DiskFailed]
    with pytest.raises(Unavailable):
        await leader.live.propose(GROUP, b"three")
    await leader.stop()
    await cluster.propose(b"the others go on")


async def test_damaged_replica_is_named_and_rebuilt_from_its_peers(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.start(1, 2, 3)
    for number in range(30):
        await cluster.propose(b"e%d" % number, b"z" * 2000)
    leader = await cluster.wait_leader()
    damaged = next(node for node in cluster.nodes.values() if node is not leader)
    position = damaged.live.engine.groups[GROUP].log._positions[10] & 0xFFFFFFFF
    name = damaged.live.engine.log.segments[0].file.name
    await damaged.kill()
    path = tmp_path / f"node{damaged.number}" / "log" / name
    with path.open("r+b") as file:  # a bit flips in what had been synced, and was followed by more
        file.seek(position + 500)
        byte = file.read(1)
        file.seek(position + 500)
        file.write(bytes([byte[0] ^ 1]))
    await damaged.start()
    assert damaged.status().corrupt
    await cluster.propose(b"goes on without it")
    rest = tuple(sorted({1, 2, 3} - {damaged.number}))
    leader = await cluster.wait_leader()
    leader.live.change_members(GROUP, rest)
    await until(lambda: leader.status().change == "done", "its removal")
    await damaged.live.remove_group(GROUP)
    (tmp_path / f"node{damaged.number}" / "state" / "state.json").unlink(missing_ok=True)
    damaged.machine = consensus_hosts.Commands(tmp_path / f"node{damaged.number}" / "state")
    damaged.live.add_group(GROUP, damaged.machine, leader.status().membership)
    leader.live.change_members(GROUP, (1, 2, 3))
    await until(lambda: leader.status().membership == Membership(voters=(1, 2, 3), epoch=3), "its return")
    await cluster.propose(b"end")
    await all_equal(cluster, (1, 2, 3), "end")
