"""A volume that moved to another node: late writes of the old node are refused by the chunkservers, and only the new
epoch makes the difference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from curve_storage.cli.playground import Playground
from curve_storage.client import BlockVolume, Cluster, load_client_config
from curve_storage.errors import Fenced, InUse
from curve_storage.proto import mds_pb2
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE, GiB

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(300)]
OLD, NEW, LATE = (bytes([value]) * BLOCK_SIZE for value in (1, 2, 3))
CHUNKS = 8
PATIENCE = 60.0


@pytest.fixture
async def cluster(playground: Playground) -> AsyncIterator[Cluster]:
    found = Cluster(load_client_config(playground.directory / "client.yaml"))
    yield found
    await found.close()


async def attach(cluster: Cluster, path: str, node: str, *, force: bool = False) -> int:
    reply = await cluster.mds.namespace.AttachVolume(
        mds_pb2.AttachVolumeRequest(volume=mds_pb2.VolumeRef(path=path), node=node, force=force), timeout=30
    )
    return reply.epoch


async def everywhere(volume: BlockVolume, data: bytes) -> None:
    """One block in each of the first chunks, so that several copysets are concerned."""
    await asyncio.gather(*(volume.write(n * CHUNK_SIZE, data) for n in range(CHUNKS)))


async def held(volume: BlockVolume) -> set[bytes]:
    return {bytes(await volume.read(n * CHUNK_SIZE, BLOCK_SIZE)) for n in range(CHUNKS)}


async def test_late_writes_of_the_old_node_are_refused(cluster: Cluster) -> None:
    path = "/moved"
    await cluster.mds.namespace.CreateVolume(mds_pb2.CreateVolumeRequest(path=path, size=GiB), timeout=30)
    first = await attach(cluster, path, "node-a")
    assert await attach(cluster, path, "node-a") == first
    with pytest.raises(InUse, match="node-a"):
        await attach(cluster, path, "node-b")
    old = await BlockVolume.open(cluster, path=path, epoch=first, patience=PATIENCE)
    await everywhere(old, OLD)

    # Without a new epoch the same late write lands: the old node is merely silent, not refused.
    await everywhere(old, LATE)
    assert await held(old) == {LATE}
    await everywhere(old, OLD)

    second = await attach(cluster, path, "node-b", force=True)
    assert second > first
    new = await BlockVolume.open(cluster, path=path, epoch=second, patience=PATIENCE)
    assert await held(new) == {OLD}

    fenced = asyncio.Event()
    old.on_fenced(fenced.set)
    outcomes = await asyncio.gather(*(old.write(n * CHUNK_SIZE, LATE) for n in range(CHUNKS)), return_exceptions=True)
    assert all(isinstance(outcome, Fenced) for outcome in outcomes), outcomes
    await asyncio.wait_for(fenced.wait(), 10)
    assert await held(new) == {OLD}

    await everywhere(new, NEW)
    assert await held(new) == {NEW}
    with pytest.raises(Fenced):
        await BlockVolume.open(cluster, path=path, epoch=first, patience=PATIENCE)
    await new.close()
    await old.close()
    await cluster.mds.namespace.ReleaseVolume(
        mds_pb2.ReleaseVolumeRequest(volume=mds_pb2.VolumeRef(path=path)), timeout=30
    )


async def test_a_first_write_to_a_new_segment_is_refused_too(cluster: Cluster) -> None:
    """The old node holds no segment yet: it may neither allocate one, nor write to the one its successor has."""
    path = "/moved-empty"
    await cluster.mds.namespace.CreateVolume(mds_pb2.CreateVolumeRequest(path=path, size=GiB), timeout=30)
    first = await attach(cluster, path, "node-a")
    old = await BlockVolume.open(cluster, path=path, epoch=first, patience=PATIENCE)
    second = await attach(cluster, path, "node-b", force=True)
    new = await BlockVolume.open(cluster, path=path, epoch=second, patience=PATIENCE)
    await everywhere(new, NEW)
    with pytest.raises(Fenced):
        await old.write(0, LATE)
    assert await held(new) == {NEW}
    await new.close()
    await old.close()
