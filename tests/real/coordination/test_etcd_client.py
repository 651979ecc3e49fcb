"""EtcdClient, Election and GuardedStore against a real etcd of one member."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from etcd_cluster import EtcdCluster, free_ports

from curve_storage.clock import SystemClock
from curve_storage.config import EtcdConfig
from curve_storage.coordination.election import Election
from curve_storage.coordination.etcd import EtcdClient
from curve_storage.coordination.guarded import MAX_COMMIT_OPERATIONS, GuardedStore
from curve_storage.coordination.model import Compare
from curve_storage.coordination.watch import watch
from curve_storage.errors import Aborted, InvalidArgument, NotFound, NotLeader, Unavailable

pytestmark = pytest.mark.etcd


@pytest.fixture
async def client(etcd: EtcdCluster) -> AsyncIterator[EtcdClient]:
    made = EtcdClient(etcd.config(f"/{uuid.uuid4().hex}/"), deadline=20, attempt=10)
    yield made
    await made.close()


async def test_keys(client: EtcdClient) -> None:
    assert await client.get(b"a") is None
    revision = await client.put(b"a", b"1")
    kv = await client.get(b"a")
    assert kv is not None
    assert (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version) == (b"a", b"1", revision, revision, 1)
    for number in range(25):
        await client.put(b"p/%02d" % number, b"%d" % number)
    await client.put(b"q", b"")
    kvs, at = await client.get_prefix(b"p/", page=7)
    assert [kv.key for kv in kvs] == [b"p/%02d" % number for number in range(25)]
    assert at > revision
    await client.delete(b"a")
    assert await client.get(b"a") is None


async def test_transactions(client: EtcdClient) -> None:
    first = await client.txn([Compare.absent(b"k")], {b"k": b"1"}, otherwise_get=[b"k"])
    assert first.succeeded and first.found == []
    second = await client.txn([Compare.absent(b"k")], {b"k": b"2"}, otherwise_get=[b"k", b"none"])
    assert not second.succeeded
    assert second.found[0] is not None and second.found[0].value == b"1" and second.found[1] is None
    assert (await client.txn([Compare.created(b"k", first.revision)], {b"k": b"3", b"l": b"4"})).succeeded
    assert (await client.txn([Compare.equals(b"k", b"3")], deletes=[b"k"], delete_prefixes=[b"l"])).succeeded
    assert (await client.get_prefix(b""))[0] == []
    with pytest.raises(InvalidArgument, match="129 operations"):
        await client.txn(puts={b"%d" % number: b"" for number in range(129)})


async def test_leases(client: EtcdClient) -> None:
    lease = await client.grant(3)
    assert lease.ttl >= 3
    await client.put(b"leased", b"x", lease=lease.id)
    assert 0 < await client.renew(lease.id) <= lease.ttl
    await client.revoke(lease.id)
    assert await client.get(b"leased") is None
    assert await client.renew(lease.id) == 0
    with pytest.raises(NotFound):
        await client.revoke(lease.id)
    with pytest.raises(NotFound):
        await client.put(b"leased", b"x", lease=lease.id)


async def test_watch(client: EtcdClient) -> None:
    revision = await client.put(b"w/1", b"a")
    await client.put(b"w/2", b"b")
    await client.delete(b"w/1")
    seen = []
    async with aclosing(watch(client, b"w/", prefix=True, start_revision=revision)) as changes:
        async with asyncio.timeout(30):
            async for events in changes:
                seen += [(event.kind, event.kv.key, event.kv.value) for event in events]
                if len(seen) == 3:
                    break
    assert seen == [("put", b"w/1", b"a"), ("put", b"w/2", b"b"), ("delete", b"w/1", b"")]


async def test_nobody_there() -> None:
    client = EtcdClient(EtcdConfig(endpoints=[f"127.0.0.1:{free_ports(1)[0]}"]), deadline=0.5)
    with pytest.raises(Unavailable, match="etcd did not answer within") as caught:
        await client.get(b"a")
    assert "majority" in caught.value.todo
    await client.close()


async def test_bad_endpoint() -> None:
    with pytest.raises(InvalidArgument, match="not an etcd endpoint"):
        EtcdClient(EtcdConfig(endpoints=["ftp://x:1"]))


def candidate(client: EtcdClient, name: str, ttl: float = 20) -> Election:
    return Election(client, b"leader", name, f"{name}:6700", ttl, SystemClock())


async def test_election_in_turn(client: EtcdClient) -> None:
    one, two = candidate(client, "one"), candidate(client, "two")
    await one.campaign()
    assert one.is_leader() and one.term > 0
    waiting = asyncio.create_task(two.campaign())
    async with asyncio.timeout(30):
        while len(await two.candidates()) < 2:
            await asyncio.sleep(0.05)
    assert [found.name for found in await one.candidates()] == ["one", "two"]
    leader = await two.leader()
    assert leader is not None and (leader.value, leader.term) == ("one:6700", one.term)
    assert not two.is_leader() and not waiting.done()
    with pytest.raises(NotLeader):
        _ = two.guard
    term = one.term
    await one.resign()
    assert not one.is_leader()
    async with asyncio.timeout(30):
        await waiting
    assert two.is_leader() and two.term > term
    await two.resign()
    assert await two.candidates() == []


async def test_observe(client: EtcdClient) -> None:
    one = candidate(client, "one")
    async with aclosing(one.observe()) as leaders, asyncio.timeout(60):
        assert await anext(leaders) is None
        await one.campaign()
        seen = await anext(leaders)
        assert seen is not None and seen.name == "one"
        await one.resign()
        assert await anext(leaders) is None


async def test_deleted_key_ends_leadership(client: EtcdClient) -> None:
    one = candidate(client, "one", ttl=3)
    await one.campaign()
    await client.delete(one.key)
    async with asyncio.timeout(30):
        assert await one.wait_lost() == "the leader key was deleted"
    assert not one.is_leader()
    async with asyncio.timeout(30):
        await one.campaign()
    assert one.is_leader()
    await one.resign()


async def test_winner_whose_lease_is_gone_campaigns_again(client: EtcdClient) -> None:
    one, two = candidate(client, "one"), candidate(client, "two")
    await one.campaign()
    waiting = asyncio.create_task(two.campaign())
    async with asyncio.timeout(30):
        while len(await two.candidates()) < 2:
            await asyncio.sleep(0.05)
    stale = two.key
    for lease in (two.lease_id, one.lease_id):  # both leases end: the watch fires although nothing was won
        await client.revoke(lease)
    async with asyncio.timeout(60):
        await waiting
    assert two.is_leader() and two.key != stale
    found = await client.get(two.key)
    assert found is not None and found.create_revision == two.term
    for election in (one, two):
        await election.resign()


async def test_guarded_commits(client: EtcdClient) -> None:
    one = candidate(client, "one")
    store = GuardedStore(client, one)
    with pytest.raises(NotLeader):
        await store.commit({b"x": b"1"})
    await one.campaign()
    revisions = await asyncio.gather(*[store.commit({b"n/%d" % number: b"v"}) for number in range(200)])
    assert len(set(revisions)) == 200
    assert len((await client.get_prefix(b"n/"))[0]) == 200
    await store.commit({b"x": b"1"}, [b"n/1"], delete_prefixes=[b"n/2"])
    assert len((await client.get_prefix(b"n/"))[0]) == 200 - 1 - 11
    await store.commit({b"%d" % number: b"" for number in range(MAX_COMMIT_OPERATIONS)})
    with pytest.raises(InvalidArgument):
        await store.commit({b"%d" % number: b"" for number in range(MAX_COMMIT_OPERATIONS + 1)})
    with pytest.raises(Aborted):
        await store.commit({b"x": b"2"}, compares=[Compare.equals(b"x", b"other")])
    assert one.is_leader(), "a failed condition of the caller's is not a lost leadership"
    assert [found.name for found in await one.candidates()] == ["one"]
    await client.delete(one.key)
    with pytest.raises(NotLeader):
        await store.commit({b"x": b"3"})
    assert not one.is_leader()
    kept = await client.get(b"x")
    assert kept is not None and kept.value == b"1"
    await one.resign()
    assert (await client.get_prefix(b"leader"))[0] == [], "commit marks vanish with the lease"


async def test_commit_sent_twice_takes_effect_once(client: EtcdClient, monkeypatch: pytest.MonkeyPatch) -> None:
    one = candidate(client, "one")
    store = GuardedStore(client, one)
    await one.campaign()
    await store.commit({b"k": b"0"})
    genuine = EtcdClient.submit
    delayed = []

    async def answer_lost(self: EtcdClient, *args: object, **kwargs: object) -> object:
        delayed.append((args, kwargs))
        await genuine(self, *args, **kwargs)  # type: ignore[arg-type]
        return await genuine(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(EtcdClient, "submit", answer_lost)
    revision = await store.commit({b"k": b"1"})
    monkeypatch.undo()
    kept = await client.get(b"k")
    assert kept is not None and kept.value == b"1" and kept.mod_revision == revision
    for _ in range(70):  # every slot is used again
        await store.commit({b"k": b"2"})
    args, kwargs = delayed[0]
    assert not (await client.submit(*args, **kwargs)).succeeded  # type: ignore[arg-type]
    kept = await client.get(b"k")
    assert kept is not None and kept.value == b"2", "a late duplicate must not undo later commits"
    await one.resign()
