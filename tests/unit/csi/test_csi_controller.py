"""The controller and the request log against real gRPC servers: a small MDS of the test behind the driver."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from curve_csi.backend import BlockBackend
from curve_csi.controller import ControllerService
from curve_csi.identity import IdentityService
from curve_csi.nodes import FixedNodes
from curve_csi.proto import csi_pb2 as csi
from curve_csi.proto import csi_pb2_grpc
from curve_csi.requestlog import RequestLog, printable
from curve_storage.errors import AlreadyExists, InUse, NotFound
from curve_storage.proto import mds_pb2 as mds
from curve_storage.proto import mds_pb2_grpc
from curve_storage.rpc.channel import unix_channel
from curve_storage.rpc.leader import MdsClient
from curve_storage.rpc.server import listen, make_server
from curve_storage.units import GiB

DRIVER = "block.csi.curve.io"
Mode = csi.VolumeCapability.AccessMode


class SmallMds(mds_pb2_grpc.NamespaceServicer, mds_pb2_grpc.TopologyServicer, mds_pb2_grpc.AdminServicer):
    """Volumes in a dictionary, with the rules of the real one that the driver relies on."""

    def __init__(self) -> None:
        self.volumes: dict[str, mds.Volume] = {}
        self.health = "healthy"

    def _find(self, ref: mds.VolumeRef) -> mds.Volume:
        for volume in self.volumes.values():
            if (ref.id and volume.id == ref.id) or (ref.path and volume.path == ref.path):
                return volume
        raise NotFound("no such volume", where=ref.path or str(ref.id))

    async def CreateVolume(self, request: mds.CreateVolumeRequest, context: Any) -> mds.VolumeReply:
        found = self.volumes.get(request.path)
        if found is not None and found.size != request.size:
            raise AlreadyExists("exists", where=request.path)
        if found is None:
            found = mds.Volume(
                id=len(self.volumes) + 1, path=request.path, size=request.size, owner=request.owner,
                poolset=request.poolset or "default", epoch=1, labels=request.labels,
            )  # fmt: skip
            self.volumes[request.path] = found
        return mds.VolumeReply(volume=found)

    async def GetVolume(self, request: mds.GetVolumeRequest, context: Any) -> mds.VolumeReply:
        return mds.VolumeReply(volume=self._find(request.volume))

    async def DeleteVolume(self, request: mds.DeleteVolumeRequest, context: Any) -> mds.Empty:
        volume = self._find(request.volume)
        if volume.attached_node:
            raise InUse(f"attached to {volume.attached_node}", where=volume.path)
        del self.volumes[volume.path]
        return mds.Empty()

    async def ExtendVolume(self, request: mds.ExtendVolumeRequest, context: Any) -> mds.VolumeReply:
        volume = self._find(request.volume)
        volume.size = max(volume.size, request.size)
        return mds.VolumeReply(volume=volume)

    async def AttachVolume(self, request: mds.AttachVolumeRequest, context: Any) -> mds.AttachVolumeReply:
        volume = self._find(request.volume)
        if volume.attached_node not in ("", request.node):
            raise InUse(f"attached to {volume.attached_node}", where=volume.path)
        if not volume.attached_node:
            volume.epoch += 1
        volume.attached_node, volume.read_only_attach = request.node, request.read_only
        return mds.AttachVolumeReply(volume=volume, epoch=volume.epoch)

    async def ReleaseVolume(self, request: mds.ReleaseVolumeRequest, context: Any) -> mds.VolumeReply:
        volume = self._find(request.volume)
        if request.node in ("", volume.attached_node):
            volume.attached_node = ""
        return mds.VolumeReply(volume=volume)

    async def ListDirectory(self, request: mds.ListDirectoryRequest, context: Any) -> mds.ListDirectoryReply:
        entries = [self.volumes[path] for path in sorted(self.volumes) if path > request.start_after]
        limit = request.limit or len(entries)
        return mds.ListDirectoryReply(entries=entries[:limit], more=len(entries) > limit)

    async def ListPools(self, request: mds.Empty, context: Any) -> mds.ListPoolsReply:
        return mds.ListPoolsReply(pools=[mds.Pool(id=1, name="p", poolset="default", capacity=100, allocated=30)])

    async def GetStatus(self, request: mds.Empty, context: Any) -> mds.StatusReply:
        return mds.StatusReply(cluster_id="test", health=self.health)


class World:
    def __init__(self, small: SmallMds, channel: aio.Channel) -> None:
        self.mds = small
        self.controller: csi_pb2_grpc.ControllerAsyncStub = csi_pb2_grpc.ControllerStub(channel)
        self.identity: csi_pb2_grpc.IdentityAsyncStub = csi_pb2_grpc.IdentityStub(channel)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    small = SmallMds()
    back = make_server()
    mds_pb2_grpc.add_NamespaceServicer_to_server(small, back)
    mds_pb2_grpc.add_TopologyServicer_to_server(small, back)
    mds_pb2_grpc.add_AdminServicer_to_server(small, back)
    port = listen(back, "127.0.0.1:0")
    await back.start()
    client = MdsClient([f"127.0.0.1:{port}"])
    backend = BlockBackend(client, DRIVER)
    front = make_server(interceptors=[RequestLog()])
    controller = ControllerService(backend, FixedNodes({"n1": "z1", "n2": "z2"}), DRIVER)
    csi_pb2_grpc.add_ControllerServicer_to_server(controller, front)
    csi_pb2_grpc.add_IdentityServicer_to_server(IdentityService(DRIVER, lambda: backend.reachable(1)), front)
    listen(front, f"unix:{tmp_path / 'csi.sock'}")
    await front.start()
    channel = unix_channel(tmp_path / "csi.sock")
    try:
        yield World(small, channel)
    finally:
        await channel.close()
        await front.stop(None)
        await client.close()
        await back.stop(None)


def mountable() -> csi.VolumeCapability:
    made = csi.VolumeCapability(access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER))
    made.mount.fs_type = "ext4"
    return made


def creation(name: str = "pvc-1", size: int = GiB, **more: Any) -> csi.CreateVolumeRequest:
    return csi.CreateVolumeRequest(
        name=name,
        capacity_range=csi.CapacityRange(required_bytes=size),
        volume_capabilities=[mountable()],
        **more,
    )


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_create_is_idempotent_and_refuses_another_size(world: World) -> None:
    one = (await world.controller.CreateVolume(creation())).volume
    assert (await world.controller.CreateVolume(creation())).volume == one
    assert one.capacity_bytes == GiB
    assert await code_of(world.controller.CreateVolume(creation(size=5 * GiB))) == grpc.StatusCode.ALREADY_EXISTS
    assert await code_of(world.controller.CreateVolume(creation(name=""))) == grpc.StatusCode.INVALID_ARGUMENT


async def test_publish_carries_the_epoch_and_holds_one_node(world: World) -> None:
    volume = (await world.controller.CreateVolume(creation())).volume
    request = csi.ControllerPublishVolumeRequest(
        volume_id=volume.volume_id, node_id="n1", volume_capability=mountable()
    )
    first = await world.controller.ControllerPublishVolume(request)
    assert first.publish_context["epoch"] == "2"
    assert await world.controller.ControllerPublishVolume(request) == first
    request.readonly = True
    assert await code_of(world.controller.ControllerPublishVolume(request)) == grpc.StatusCode.ALREADY_EXISTS
    request.readonly, request.node_id = False, "n2"
    assert await code_of(world.controller.ControllerPublishVolume(request)) == grpc.StatusCode.FAILED_PRECONDITION
    request.node_id = "n9"
    assert await code_of(world.controller.ControllerPublishVolume(request)) == grpc.StatusCode.NOT_FOUND
    delete = csi.DeleteVolumeRequest(volume_id=volume.volume_id)
    assert await code_of(world.controller.DeleteVolume(delete)) == grpc.StatusCode.FAILED_PRECONDITION
    release = csi.ControllerUnpublishVolumeRequest(volume_id=volume.volume_id, node_id="n1")
    await world.controller.ControllerUnpublishVolume(release)
    await world.controller.ControllerUnpublishVolume(release)
    request.node_id = "n2"
    second = await world.controller.ControllerPublishVolume(request)
    assert int(second.publish_context["epoch"]) > int(first.publish_context["epoch"])


async def test_unknown_ids(world: World) -> None:
    for unknown in ("nonsense", "1.other.default.1", "1.test.default.77"):
        await world.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=unknown))
        await world.controller.ControllerUnpublishVolume(csi.ControllerUnpublishVolumeRequest(volume_id=unknown))
        request = csi.ControllerExpandVolumeRequest(
            volume_id=unknown, capacity_range=csi.CapacityRange(required_bytes=GiB)
        )
        assert await code_of(world.controller.ControllerExpandVolume(request)) == grpc.StatusCode.NOT_FOUND


async def test_pages_and_their_token(world: World) -> None:
    for number in range(5):
        await world.controller.CreateVolume(creation(f"pvc-{number}"))
    seen: list[str] = []
    token = ""
    while True:
        page = await world.controller.ListVolumes(csi.ListVolumesRequest(max_entries=2, starting_token=token))
        seen += [entry.volume.volume_context["path"] for entry in page.entries]
        token = page.next_token
        if not token:
            break
    assert seen == [f"/csi/pvc-{number}" for number in range(5)]
    bad = csi.ListVolumesRequest(starting_token="invalid-token")
    assert await code_of(world.controller.ListVolumes(bad)) == grpc.StatusCode.ABORTED


async def test_expand_and_capacity_and_health(world: World) -> None:
    volume = (await world.controller.CreateVolume(creation())).volume
    request = csi.ControllerExpandVolumeRequest(
        volume_id=volume.volume_id, capacity_range=csi.CapacityRange(required_bytes=2 * GiB + 1)
    )
    reply = await world.controller.ControllerExpandVolume(request)
    assert (reply.capacity_bytes, reply.node_expansion_required) == (3 * GiB, True)
    capacity = await world.controller.GetCapacity(csi.GetCapacityRequest())
    assert capacity.available_capacity == 70
    world.mds.health = "unavailable"
    health = await world.controller.ControllerGetVolumeHealth(
        csi.ControllerGetVolumeHealthRequest(volume_id=volume.volume_id)
    )
    assert health.volume_health.health_statuses[0].status == csi.INACCESSIBLE
    listed = await world.controller.ListVolumes(csi.ListVolumesRequest())
    assert listed.entries[0].status.volume_condition.abnormal


async def test_zone_topology_only_when_asked(world: World) -> None:
    key = f"topology.{DRIVER}/zone"
    wanted = csi.TopologyRequirement(requisite=[csi.Topology(segments={key: "z1"}), csi.Topology(segments={key: "z2"})])
    free = (await world.controller.CreateVolume(creation("a", accessibility_requirements=wanted))).volume
    assert not free.accessible_topology
    bound = (
        await world.controller.CreateVolume(
            creation("b", accessibility_requirements=wanted, parameters={"accessibility": "zone"})
        )
    ).volume
    assert [topology.segments[key] for topology in bound.accessible_topology] == ["z1", "z2"]


async def test_identity(world: World) -> None:
    assert (await world.identity.GetPluginInfo(csi.GetPluginInfoRequest())).name == DRIVER
    assert (await world.identity.Probe(csi.ProbeRequest())).ready.value


async def test_secrets_are_never_logged(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    request = creation("s", secrets={"key": "hunter2"})
    await world.controller.CreateVolume(request)
    assert "hunter2" not in json.dumps(printable(request))
    captured = capsys.readouterr()
    assert "hunter2" not in captured.out + captured.err
    assert "1 hidden" in captured.out + captured.err
