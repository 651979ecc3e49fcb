"""The controller service: volumes created, attached with an epoch, grown, listed and deleted through the MDS."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from google.protobuf.wrappers_pb2 import Int64Value

from curve_csi import capabilities, parameters, sizes, volume_id
from curve_csi.backend import FILESYSTEM_LABEL, BlockBackend
from curve_csi.health import Condition, volume_condition, volume_health
from curve_csi.locks import OperationLocks
from curve_csi.nodes import NodeDirectory
from curve_csi.proto import csi_pb2 as csi
from curve_csi.proto import csi_pb2_grpc
from curve_storage.errors import Aborted, AlreadyExists, InvalidArgument, NotFound
from curve_storage.proto import mds_pb2 as mds

EPOCH = "epoch"
PATH = "path"


def topology_key(driver: str) -> str:
    return f"topology.{driver}/zone"


class ControllerService(csi_pb2_grpc.ControllerServicer):
    def __init__(self, backend: BlockBackend, nodes: NodeDirectory, driver: str) -> None:
        self._backend = backend
        self._nodes = nodes
        self._zone_key = topology_key(driver)
        self._locks = OperationLocks()

    async def CreateVolume(self, request: csi.CreateVolumeRequest, context: Any) -> csi.CreateVolumeResponse:
        volume_id.path_for(request.name)
        capabilities.check(request.volume_capabilities)
        if request.HasField("volume_content_source"):
            raise InvalidArgument(
                "volumes cannot be created from a snapshot or another volume",
                where="volume_content_source",
                todo="Create an empty volume and copy the data",
            )
        if request.mutable_parameters:
            raise InvalidArgument(
                "mutable parameters are not supported",
                where="mutable_parameters",
                todo="Remove the VolumeAttributesClass from the claim",
            )
        chosen = parameters.parse(request.parameters)
        size = sizes.choose(request.capacity_range)
        labels = {parameters.PURGE_LABEL: chosen.on_delete}
        if chosen.filesystem:
            labels[FILESYSTEM_LABEL] = chosen.filesystem
        with self._locks.hold(f"name {request.name}", "CreateVolume"):
            volume = await self._backend.create(
                request.name,
                size,
                request.capacity_range.limit_bytes,
                poolset=chosen.poolset,
                owner=chosen.owner,
                labels=labels,
            )
        made = await self._to_csi(volume)
        made.volume_context.update(chosen.context())
        if chosen.accessibility == "zone":
            made.accessible_topology.extend(self._zones(request.accessibility_requirements))
        return csi.CreateVolumeResponse(volume=made)

    def _zones(self, wanted: csi.TopologyRequirement) -> list[csi.Topology]:
        zones = {
            topology.segments[self._zone_key]
            for topology in (*wanted.requisite, *wanted.preferred)
            if self._zone_key in topology.segments
        }
        return [csi.Topology(segments={self._zone_key: zone}) for zone in sorted(zones)]

    async def DeleteVolume(self, request: csi.DeleteVolumeRequest, context: Any) -> csi.DeleteVolumeResponse:
        if not request.volume_id:
            raise InvalidArgument("the volume id is empty", where="volume_id", todo="Pass the volume's id")
        with self._locks.hold(request.volume_id, "DeleteVolume"):
            try:
                volume = await self._backend.get(request.volume_id)
            except NotFound:
                return csi.DeleteVolumeResponse()
            purge = volume.labels.get(parameters.PURGE_LABEL) == "purge"
            await self._backend.delete(volume, purge=purge)
        return csi.DeleteVolumeResponse()

    async def ControllerPublishVolume(
        self, request: csi.ControllerPublishVolumeRequest, context: Any
    ) -> csi.ControllerPublishVolumeResponse:
        if not request.volume_id:
            raise InvalidArgument("the volume id is empty", where="volume_id", todo="Pass the volume's id")
        if not request.node_id:
            raise InvalidArgument("the node id is empty", where="node_id", todo="Pass the node's name")
        capability = capabilities.one(request.volume_capability)
        read_only = request.readonly or capability.access_mode.mode in capabilities.READER_MODES
        with self._locks.hold(request.volume_id, "ControllerPublishVolume"):
            volume = await self._backend.get(request.volume_id)
            if not await self._nodes.exists(request.node_id):
                raise NotFound("there is no such node", where=request.node_id, todo="Check the node's name")
            if volume.attached_node == request.node_id and volume.read_only_attach != read_only:
                raise AlreadyExists(
                    f"the volume is attached to node {request.node_id} "
                    f"{'read-only' if volume.read_only_attach else 'for writing'} already",
                    where=request.volume_id,
                    todo="Detach it first",
                )
            reply = await self._backend.attach(volume, request.node_id, read_only)
        return csi.ControllerPublishVolumeResponse(
            publish_context={EPOCH: str(reply.epoch), PATH: volume.path, "readOnly": "true" if read_only else "false"}
        )

    async def ControllerUnpublishVolume(
        self, request: csi.ControllerUnpublishVolumeRequest, context: Any
    ) -> csi.ControllerUnpublishVolumeResponse:
        if not request.volume_id:
            raise InvalidArgument("the volume id is empty", where="volume_id", todo="Pass the volume's id")
        with self._locks.hold(request.volume_id, "ControllerUnpublishVolume"):
            await self._backend.release(request.volume_id, request.node_id)
        return csi.ControllerUnpublishVolumeResponse()

    async def ValidateVolumeCapabilities(
        self, request: csi.ValidateVolumeCapabilitiesRequest, context: Any
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        if not request.volume_id:
            raise InvalidArgument("the volume id is empty", where="volume_id", todo="Pass the volume's id")
        if not request.volume_capabilities:
            raise InvalidArgument(
                "no volume capability given", where="volume_capabilities", todo="Name those to be validated"
            )
        await self._backend.get(request.volume_id)
        for capability in request.volume_capabilities:
            reason = capabilities.problem(capability)
            if reason is not None:
                return csi.ValidateVolumeCapabilitiesResponse(message=reason)
        confirmed = csi.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
        )
        return csi.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    async def ListVolumes(self, request: csi.ListVolumesRequest, context: Any) -> csi.ListVolumesResponse:
        volumes, token = await self._page(request.max_entries, request.starting_token)
        condition = await self._condition_of_cluster() if volumes else Condition(False, "")
        reply = csi.ListVolumesResponse(next_token=token)
        for volume in volumes:
            status = csi.ListVolumesResponse.VolumeStatus(
                published_node_ids=[volume.attached_node] if volume.attached_node else [],
                volume_condition=csi.VolumeCondition(abnormal=condition.abnormal, message=condition.message),
            )
            reply.entries.append(csi.ListVolumesResponse.Entry(volume=await self._to_csi(volume), status=status))
        return reply

    async def _page(self, limit: int, token: str) -> tuple[list[mds.Volume], str]:
        if limit < 0:
            raise InvalidArgument("max_entries is negative", where="max_entries", todo="Pass 0 or more")
        after = ""
        if token:
            try:
                after = base64.urlsafe_b64decode(token.encode()).decode()
            except (binascii.Error, UnicodeError, ValueError):
                after = ""
            if not after.startswith(f"{volume_id.FOLDER}/"):
                raise Aborted(
                    "the page token is not one of ours", where="starting_token", todo="Start again without a token"
                )
        volumes, last = await self._backend.page(limit, after)
        return volumes, base64.urlsafe_b64encode(last.encode()).decode() if last else ""

    async def _condition_of_cluster(self) -> Condition:
        return volume_condition(await self._backend.health())

    async def ControllerGetVolume(
        self, request: csi.ControllerGetVolumeRequest, context: Any
    ) -> csi.ControllerGetVolumeResponse:
        volume = await self._backend.get(request.volume_id)
        condition = await self._condition_of_cluster()
        return csi.ControllerGetVolumeResponse(
            volume=await self._to_csi(volume),
            status=csi.ControllerGetVolumeResponse.VolumeStatus(
                published_node_ids=[volume.attached_node] if volume.attached_node else [],
                volume_condition=csi.VolumeCondition(abnormal=condition.abnormal, message=condition.message),
            ),
        )

    async def ControllerGetVolumeHealth(
        self, request: csi.ControllerGetVolumeHealthRequest, context: Any
    ) -> csi.ControllerGetVolumeHealthResponse:
        await self._backend.get(request.volume_id)
        condition = await self._condition_of_cluster()
        return csi.ControllerGetVolumeHealthResponse(volume_health=volume_health(request.volume_id, condition))

    async def ControllerListVolumeHealth(
        self, request: csi.ControllerListVolumeHealthRequest, context: Any
    ) -> csi.ControllerListVolumeHealthResponse:
        volumes, token = await self._page(request.max_entries, request.starting_token)
        reply = csi.ControllerListVolumeHealthResponse(next_token=token)
        condition = await self._condition_of_cluster() if volumes else Condition(False, "")
        for volume in volumes:
            reply.entries.append(volume_health(str(await self._backend.id_of(volume)), condition))
        return reply

    async def GetCapacity(self, request: csi.GetCapacityRequest, context: Any) -> csi.GetCapacityResponse:
        poolset = parameters.parse(request.parameters).poolset
        capacity = await self._backend.capacity(poolset)
        if any(capabilities.problem(capability) for capability in request.volume_capabilities):
            return csi.GetCapacityResponse(available_capacity=0)
        return csi.GetCapacityResponse(
            available_capacity=capacity.available,
            maximum_volume_size=Int64Value(value=capacity.maximum),
            minimum_volume_size=Int64Value(value=capacity.minimum),
        )

    async def ControllerGetCapabilities(
        self, request: csi.ControllerGetCapabilitiesRequest, context: Any
    ) -> csi.ControllerGetCapabilitiesResponse:
        make = csi.ControllerServiceCapability
        return csi.ControllerGetCapabilitiesResponse(
            capabilities=[make(rpc=make.RPC(type=kind)) for kind in capabilities.CONTROLLER]
        )

    async def ControllerExpandVolume(
        self, request: csi.ControllerExpandVolumeRequest, context: Any
    ) -> csi.ControllerExpandVolumeResponse:
        if not request.volume_id:
            raise InvalidArgument("the volume id is empty", where="volume_id", todo="Pass the volume's id")
        if not request.HasField("capacity_range"):
            raise InvalidArgument("no capacity range given", where="capacity_range", todo="Name the size wanted")
        size = sizes.choose(request.capacity_range)
        with self._locks.hold(request.volume_id, "ControllerExpandVolume"):
            volume = await self._backend.get(request.volume_id)
            if volume.size < size:
                volume = await self._backend.extend(volume, size)
        return csi.ControllerExpandVolumeResponse(capacity_bytes=volume.size, node_expansion_required=True)

    async def _to_csi(self, volume: mds.Volume) -> csi.Volume:
        made = csi.Volume(
            capacity_bytes=volume.size,
            volume_id=str(await self._backend.id_of(volume)),
            volume_context={PATH: volume.path},
        )
        return made
