"""What the MDS expects of etcd: the store's contract, on a dict and on the real thing; damage, TLS, the cluster id."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from etcd_cluster import EtcdCluster

from curve_storage.clock import SystemClock
from curve_storage.coordination.election import Election
from curve_storage.coordination.etcd import EtcdClient
from curve_storage.coordination.guarded import GuardedStore
from curve_storage.errors import CurveError, NotLeader
from curve_storage.mds.etcd_store import EtcdStore
from curve_storage.mds.records import CopysetRecord, Entry, encode
from curve_storage.mds.state import ClusterState
from curve_storage.mds.store import MAX_CHANGES, MemoryStore, Store
from curve_storage.proto import mds_pb2 as pb
from curve_storage.rpc.leader import MdsClient

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(120)]


class Seat:
    """A store, and how to take its leadership away."""

    def __init__(self, store: Store, depose: Callable[[], Any]) -> None:
        self.store, self.depose = store, depose


@pytest.fixture(params=["memory", "etcd"])
async def seat(request: pytest.FixtureRequest, etcd: EtcdCluster) -> AsyncIterator[Seat]:
    if request.param == "memory":
        memory = MemoryStore()

        async def depose() -> None:
            memory.leader = False

        yield Seat(memory, depose)
        return
    client = EtcdClient(etcd.config(f"{uuid.uuid4().hex}/"))
    election = Election(client, b"mds/leader", "a", "a", 5.0, SystemClock())
    await election.campaign()

    async def delete_key() -> None:
        await client.delete(election.key)

    yield Seat(EtcdStore(client, GuardedStore(client, election)), delete_key)
    await election.resign()
    await client.close()


async def content(store: Store, prefix: str) -> list[tuple[str, bytes]]:
    return [pair async for pair in store.load(prefix)]


async def test_the_store_contract(seat: Seat) -> None:
    store = seat.store
    await store.commit({"state/b": b"2", "state/a": b"1", "other": b"x"}, [])
    assert await content(store, "state/") == [("state/a", b"1"), ("state/b", b"2")]
    await store.commit({"state/c": b"3"}, ["state/a", "state/never"])
    assert await content(store, "state/") == [("state/b", b"2"), ("state/c", b"3")]
    many = {f"state/m/{n:06}": b"v" * 300 for n in range(3000)}
    for start in range(0, len(many), MAX_CHANGES):
        await store.commit(dict(list(many.items())[start : start + MAX_CHANGES]), [])
    assert dict(await content(store, "state/m/")) == many
    await seat.depose()
    with pytest.raises(NotLeader):
        await store.commit({"state/late": b"x"}, ["state/b"])
    assert ("state/b", b"2") in await content(store, "state/")
    assert not await content(store, "state/late")


async def test_a_state_is_loaded_whole(seat: Seat) -> None:
    state = ClusterState(seat.store, lambda error: None)
    await state.load()
    for start in range(0, 1500, MAX_CHANGES):
        await state.commit(*(CopysetRecord(pool=1, id=n, members=(1, 2, 3)) for n in range(start, start + MAX_CHANGES)))
    again = ClusterState(seat.store, lambda error: None)
    assert await again.load() == 1500
    assert again.tables.copysets == state.tables.copysets


async def until(check: Callable[[], Any], timeout: float = 40) -> Any:
    deadline = time.monotonic() + timeout
    while True:
        try:
            found = await check()
        except (OSError, CurveError):
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.1)


async def test_a_damaged_value_is_named_and_not_served(make_trio: Any, etcd: EtcdCluster) -> None:
    lonely = make_trio(etcd.endpoints, 1)
    prefix = lonely.prefix
    entry = Entry(id=16, parent=1, name="a", size=1 << 30, poolset="default")
    client = EtcdClient(etcd.config(prefix))
    value = bytearray(encode(entry))
    value[-1] ^= 1
    await client.put(entry.key.encode(), bytes(value))
    lonely.start()
    member = lonely.members[0]

    async def named() -> bool:
        code, text = await asyncio.to_thread(member.page, "/readyz")
        return code == 503 and entry.key in text and "damaged" in text

    await until(named)
    await client.put(entry.key.encode(), encode(entry))  # restored: it goes on by itself
    mds = MdsClient([member.address])
    reply = await until(lambda: mds.namespace.GetVolume(pb.GetVolumeRequest(volume=pb.VolumeRef(path="/a")), timeout=5))
    assert reply.volume.id == 16
    await mds.close()
    await client.close()


async def test_another_clusters_etcd_is_refused(make_trio: Any, etcd: EtcdCluster) -> None:
    first = make_trio(etcd.endpoints, 1)
    first.start()
    client = MdsClient([first.members[0].address])
    await until(lambda: client.admin.GetStatus(pb.Empty(), timeout=5))
    await client.close()
    first.stop()
    second = make_trio(etcd.endpoints, 1, prefix=first.prefix, cluster_id="mine")
    second.start()

    async def refused() -> bool:
        code, text = await asyncio.to_thread(second.members[0].page, "/readyz")
        return code == 503 and "the configuration says mine" in text

    await until(refused)


async def test_mutual_tls(make_trio: Any, etcd: EtcdCluster, tmp_path: Path) -> None:
    authority = Authority()
    tls = authority.issue(tmp_path / "mds", "mds")
    lonely = make_trio(etcd.endpoints, 1, tls={name: str(getattr(tls, name)) for name in ("ca", "cert", "key")})
    lonely.start()
    address = lonely.members[0].address
    mine = MdsClient([address], tls=authority.issue(tmp_path / "client", "client"))
    status = await until(lambda: mine.admin.GetStatus(pb.Empty(), timeout=5))
    assert status.health == "degraded" and status.reasons[0].code == "no_pool"
    await mine.close()
    for stranger in (MdsClient([address]), MdsClient([address], tls=Authority().issue(tmp_path / "other", "other"))):
        with pytest.raises(CurveError):
            await stranger.admin.GetStatus(pb.Empty(), timeout=2)
        await stranger.close()
