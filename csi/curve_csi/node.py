"""The node service: stage (attach, format, mount), publish (bind), statistics, health, growth. It keeps no state:
everything is found again from mountinfo and the volume host, so the plugin may be restarted at any moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from curve_csi import capabilities, filesystem, mounts, volume_id
from curve_csi.controller import EPOCH, topology_key
from curve_csi.health import HEALTHY, Condition, attachment_condition, volume_health
from curve_csi.hostclient import VolumeHost
from curve_csi.locks import OperationLocks
from curve_csi.nodes import NodeDirectory
from curve_csi.proto import csi_pb2 as csi
from curve_csi.proto import csi_pb2_grpc
from curve_csi.usage import usage_of
from curve_storage import mountinfo
from curve_storage.errors import CurveError, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from curve_storage.proto import volumehost_pb2 as host

Mode = csi.VolumeCapability.AccessMode
USAGE_DEADLINE = 5.0


def require(value: str, name: str) -> str:
    if not value:
        raise InvalidArgument(f"{name} is empty", where=name, todo="The container orchestrator has to pass it")
    return value


class NodeService(csi_pb2_grpc.NodeServicer):
    def __init__(self, volumes: VolumeHost, nodes: NodeDirectory, node: str, driver: str) -> None:
        self._host = volumes
        self._nodes = nodes
        self._node = node
        self._zone_key = topology_key(driver)
        self._locks = OperationLocks()

    async def NodeStageVolume(self, request: csi.NodeStageVolumeRequest, context: Any) -> csi.NodeStageVolumeResponse:
        require(request.volume_id, "volume_id")
        staging = require(request.staging_target_path, "staging_target_path")
        capability = capabilities.one(request.volume_capability)
        number = volume_id.parse(request.volume_id).number
        epoch = request.publish_context.get(EPOCH, "")
        if not epoch.isdigit():
            raise FailedPrecondition(
                "the publish context has no epoch", where=request.volume_id, todo="Attach the volume to this node first"
            )
        read_only = request.publish_context.get("readOnly") == "true"
        with self._locks.hold(request.volume_id, "NodeStageVolume"):
            attachment = await self._host.attach(number, int(epoch), read_only)
            if capability.WhichOneof("access_type") == "mount":
                try:
                    await self._stage(attachment, staging, capability, request.volume_context, read_only)
                except CurveError:
                    # what is mounted already (an earlier call's work) keeps its device
                    if mounts.at(staging) is None:
                        await self._host.detach(number)
                    raise
        return csi.NodeStageVolumeResponse()

    async def _stage(
        self, attachment: host.Attachment, staging: str, capability: csi.VolumeCapability, facts: Any, read_only: bool
    ) -> None:
        kind = capabilities.filesystem(capability, facts.get("fsType", ""))
        device = attachment.device
        present = mounts.at(staging)
        if present is not None and present.number == mounts.device_number(device):
            return
        if present is not None:
            await mounts.unmount(staging)  # of a device that is gone: the node has been rebooted or fenced since
        Path(staging).mkdir(parents=True, exist_ok=True)
        await filesystem.prepare(device, kind, facts.get("mkfsOptions", ""), read_only=read_only)
        options = list(capability.mount.mount_flags)
        if kind == "xfs":
            options.append("nouuid")  # so that copies of a volume mount on one node
        if read_only:
            options.append("ro")
        await mounts.mount(device, staging, kind, options)
        if not read_only:
            await filesystem.grow(device, staging, kind)

    async def NodeUnstageVolume(
        self, request: csi.NodeUnstageVolumeRequest, context: Any
    ) -> csi.NodeUnstageVolumeResponse:
        require(request.volume_id, "volume_id")
        staging = require(request.staging_target_path, "staging_target_path")
        with self._locks.hold(request.volume_id, "NodeUnstageVolume"):
            await mounts.unmount(staging)
            try:
                number = volume_id.parse(request.volume_id).number
            except NotFound:
                return csi.NodeUnstageVolumeResponse()
            await self._host.detach(number)
        return csi.NodeUnstageVolumeResponse()

    async def NodePublishVolume(
        self, request: csi.NodePublishVolumeRequest, context: Any
    ) -> csi.NodePublishVolumeResponse:
        require(request.volume_id, "volume_id")
        target = require(request.target_path, "target_path")
        capability = capabilities.one(request.volume_capability)
        staging = require(request.staging_target_path, "staging_target_path")
        number = volume_id.parse(request.volume_id).number
        with self._locks.hold(request.volume_id, "NodePublishVolume"):
            attachment = await self._host.find(number)
            if attachment is None or not attachment.device:
                raise FailedPrecondition(
                    "the volume is not staged on this node", where=request.volume_id, todo="Call NodeStageVolume first"
                )
            block = capability.WhichOneof("access_type") == "block"
            if not block:
                staged = mounts.at(staging)
                if staged is None or staged.number != mounts.device_number(attachment.device):
                    raise FailedPrecondition(
                        "the volume's file system is not mounted at the staging path",
                        where=staging,
                        todo="Call NodeStageVolume first",
                    )
            source = attachment.device if block else staging
            self._check_single(capability, attachment, staging, target, block)
            read_only = request.readonly or capability.access_mode.mode in capabilities.READER_MODES
            await self._publish(source, target, block, read_only)
        return csi.NodePublishVolumeResponse()

    def _check_single(
        self, capability: csi.VolumeCapability, attachment: host.Attachment, staging: str, target: str, block: bool
    ) -> None:
        if capability.access_mode.mode != Mode.SINGLE_NODE_SINGLE_WRITER:
            return
        for other in self._targets(attachment, staging, block):
            if other != os.path.normpath(target):
                raise FailedPrecondition(
                    f"the volume is in use by one pod already, at {other}",
                    where=target,
                    todo="ReadWriteOncePod allows one pod at a time: wait for that one to end",
                )

    def _targets(self, attachment: host.Attachment, staging: str, block: bool) -> list[str]:
        table = mountinfo.mounts()
        if block:
            name = f"/{os.path.basename(attachment.device)}"
            found = [str(mount.target) for mount in table if mount.filesystem == "devtmpfs" and mount.root == name]
            found += [
                target
                for target, root in ((str(mount.target), mount.root) for mount in table)
                if root.endswith(name) and target not in found and mounts.is_block(target)
            ]
            return [target for target in found if target != attachment.device]
        staged = mountinfo.visible(staging, table)
        if staged is None:
            return []
        others = {str(mount.target) for mount in mounts.same_source(staged, table)}
        return sorted(others - {os.path.normpath(staging)})

    async def _publish(self, source: str, target: str, block: bool, read_only: bool) -> None:
        present = mounts.at(target)
        if present is not None:
            if block and mounts.is_block(target):
                right = mounts.device_number(target) == mounts.device_number(source)
            else:
                staged = mounts.at(source)
                right = staged is not None and staged.device == present.device
            if right:
                return
            await mounts.unmount(target)
        if block:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(target):
                Path(target).touch()
        else:
            Path(target).mkdir(parents=True, exist_ok=True)
        await mounts.bind(source, target, read_only)

    async def NodeUnpublishVolume(
        self, request: csi.NodeUnpublishVolumeRequest, context: Any
    ) -> csi.NodeUnpublishVolumeResponse:
        require(request.volume_id, "volume_id")
        target = require(request.target_path, "target_path")
        with self._locks.hold(request.volume_id, "NodeUnpublishVolume"):
            await mounts.unmount(target)
            path = Path(target)
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif os.path.lexists(target):
                path.unlink()
        return csi.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: csi.NodeGetVolumeStatsRequest, context: Any
    ) -> csi.NodeGetVolumeStatsResponse:
        require(request.volume_id, "volume_id")
        path = require(request.volume_path, "volume_path")
        attachment = await self._attached(request.volume_id)
        self._check_published(path, attachment)
        condition = attachment_condition(attachment)
        reply = csi.NodeGetVolumeStatsResponse()
        if mounts.is_block(path):
            reply.usage.add(total=attachment.size, unit=csi.VolumeUsage.BYTES)
        else:
            try:
                reply.usage.extend(await usage_of(path, USAGE_DEADLINE))
            except DeadlineExceeded as error:
                condition = Condition(True, f"The file system does not answer: {error}", csi.INACCESSIBLE)
        reply.volume_condition.abnormal = condition.abnormal
        reply.volume_condition.message = condition.message
        return reply

    async def _attached(self, text: str) -> host.Attachment:
        attachment = await self._host.find(volume_id.parse(text).number)
        if attachment is None:
            raise NotFound("the volume is not attached to this node", where=text, todo="Stage it first")
        return attachment

    def _check_published(self, path: str, attachment: host.Attachment) -> None:
        mount = mounts.at(path)
        if mount is None:
            raise NotFound("nothing is mounted there", where=path, todo="Publish the volume first")
        number = mounts.device_number(path) if mounts.is_block(path) else mount.number
        if number != mounts.device_number(attachment.device):
            raise NotFound("another volume is mounted there", where=path, todo="Pass the path of this volume")

    async def NodeGetVolumeHealth(
        self, request: csi.NodeGetVolumeHealthRequest, context: Any
    ) -> csi.NodeGetVolumeHealthResponse:
        require(request.volume_id, "volume_id")
        attachment = await self._attached(request.volume_id)
        path = request.volume_publish_path
        if path:
            self._check_published(path, attachment)
        condition = attachment_condition(attachment)
        if path and condition == HEALTHY and not mounts.is_block(path):
            try:
                await usage_of(path, USAGE_DEADLINE)
            except DeadlineExceeded as error:
                condition = Condition(True, f"The file system does not answer: {error}", csi.INACCESSIBLE)
        return csi.NodeGetVolumeHealthResponse(volume_health=volume_health(request.volume_id, condition))

    async def NodeExpandVolume(
        self, request: csi.NodeExpandVolumeRequest, context: Any
    ) -> csi.NodeExpandVolumeResponse:
        require(request.volume_id, "volume_id")
        path = require(request.volume_path, "volume_path")
        with self._locks.hold(request.volume_id, "NodeExpandVolume"):
            attachment = await self._attached(request.volume_id)
            if not os.path.exists(path):
                raise NotFound("there is no such path", where=path, todo="Pass the path of the published volume")
            wanted = request.capacity_range.required_bytes
            attachment = await self._host.resize(attachment.volume_id, wanted)
            mount = mounts.at(path) or mounts.at(request.staging_target_path or path)
            if not mounts.is_block(path) and mount is not None:
                if mount.number != mounts.device_number(attachment.device):
                    raise NotFound("another volume is mounted there", where=path, todo="Pass the path of this volume")
                if not mount.read_only:
                    await filesystem.grow(attachment.device, str(mount.target), mount.filesystem)
        return csi.NodeExpandVolumeResponse(capacity_bytes=attachment.size)

    async def NodeGetCapabilities(
        self, request: csi.NodeGetCapabilitiesRequest, context: Any
    ) -> csi.NodeGetCapabilitiesResponse:
        make = csi.NodeServiceCapability
        return csi.NodeGetCapabilitiesResponse(
            capabilities=[make(rpc=make.RPC(type=kind)) for kind in capabilities.NODE]
        )

    async def NodeGetInfo(self, request: csi.NodeGetInfoRequest, context: Any) -> csi.NodeGetInfoResponse:
        reply = csi.NodeGetInfoResponse(node_id=self._node)
        zone = await self._nodes.zone(self._node)
        if zone:
            reply.accessible_topology.segments[self._zone_key] = zone
        return reply
