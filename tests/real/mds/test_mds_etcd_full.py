"""etcd's quota is used up: nothing dies, what needs no new record goes on, and everything returns with the space."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_cluster import EtcdCluster

from curve_storage.coordination.etcd import EtcdClient
from curve_storage.errors import CurveError, NoSpace
from curve_storage.proto import mds_pb2 as pb
from curve_storage.units import GiB

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]

QUOTA = 16 << 20
TTL = 5


@pytest.fixture
def small_etcd(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd", extra=("--quota-backend-bytes", str(QUOTA))) as cluster:
        yield cluster


def ask(etcd: EtcdCluster, path: str, **body: Any) -> dict[str, Any]:
    """What an administrator does with etcdctl."""
    request = urllib.request.Request(f"http://{etcd.endpoints[0]}/v3/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def free(etcd: EtcdCluster) -> None:
    revision = ask(etcd, "maintenance/status")["header"]["revision"]
    ask(etcd, "kv/compaction", revision=revision, physical=True)
    ask(etcd, "maintenance/defragment")
    for alarm in ask(etcd, "maintenance/alarm", action="GET")["alarms"]:
        ask(etcd, "maintenance/alarm", action="DEACTIVATE", alarm="NOSPACE", memberID=alarm["memberID"])


async def test_the_quota_is_used_up_and_freed(make_trio: Any, small_etcd: EtcdCluster) -> None:
    trio = make_trio(small_etcd.endpoints, 2, election_ttl=TTL)
    trio.start()
    mds = trio.client()
    junk = EtcdClient(small_etcd.config("junk/"))
    try:
        await trio.leader(mds)
        await mds.namespace.CreateDirectory(pb.CreateDirectoryRequest(path="/before"), timeout=20)
        with pytest.raises(NoSpace):
            for _ in range(4 * QUOTA >> 20):
                await junk.put(b"filler", bytes(1 << 20))
        with pytest.raises(CurveError) as refused:
            await mds.namespace.CreateDirectory(pb.CreateDirectoryRequest(path="/during"), timeout=20)
        assert refused.value.code == "no_space"
        assert "etcd" in str(refused.value) and "disarm" in refused.value.todo

        async def listed() -> list[str]:
            reply = await mds.namespace.ListDirectory(pb.ListDirectoryRequest(path="/"), timeout=20)
            return sorted(entry.path.strip("/") for entry in reply.entries)

        leader = await trio.leader(mds)
        end = time.monotonic() + 2 * TTL  # several lives of a lease: being full costs no leadership
        while time.monotonic() < end:
            assert await listed() == ["before"]
            await asyncio.sleep(0.1)
        assert (await trio.leader(mds)).name == leader.name
        # The other one has its lease already and may follow; one that starts now needs a record, waits, and says so.
        leader.end()
        leader.start()
        end = time.monotonic() + 60
        while "database is full" not in leader.log.read_text():
            assert time.monotonic() < end, leader.log.read_text()[-2000:]
            await asyncio.sleep(0.2)
        await trio.leader(mds, timeout=60)
        assert await listed() == ["before"]
        await asyncio.to_thread(free, small_etcd)
        await trio.leader(mds, timeout=90)
        assert all(one.process is not None and one.process.poll() is None for one in trio.members)
        assert await listed() == ["before"]
        await mds.namespace.CreateDirectory(pb.CreateDirectoryRequest(path="/during"), timeout=20)
        assert await listed() == ["before", "during"]
    finally:
        await junk.close()
        await mds.close()


async def test_a_pool_is_promised_out_until_it_is_extended(client: Any, storage: Any) -> None:
    """Sizes of volumes are checked against the pool; deleting gives the room back at once, without a restart."""
    status = await client.admin.GetStatus(pb.Empty(), timeout=20)
    assert status.health == "healthy", status
    made = 0
    with pytest.raises(CurveError) as refused:
        while made < 200:
            await client.namespace.CreateVolume(
                pb.CreateVolumeRequest(path=f"/v{made}", size=64 * GiB, owner="a"), timeout=20
            )
            made += 1
    assert 0 < made < 200 and refused.value.code == "no_space", refused.value
    assert refused.value.todo
    volume = pb.VolumeRef(path="/v0")
    await client.namespace.DeleteVolume(pb.DeleteVolumeRequest(volume=volume, force=True), timeout=20)
    await client.namespace.CreateVolume(pb.CreateVolumeRequest(path="/again", size=64 * GiB), timeout=20)
