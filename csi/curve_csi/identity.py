"""The identity service: who the driver is, what it can do, and whether it is ready."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.wrappers_pb2 import BoolValue

import curve_storage
from curve_csi.proto import csi_pb2 as csi
from curve_csi.proto import csi_pb2_grpc


class IdentityService(csi_pb2_grpc.IdentityServicer):
    """`ready` answers whether the backend can be reached; not ready is an answer, never an error, because
    a failing probe restarts pods, which helps nobody when the MDS is away."""

    def __init__(self, driver: str, ready: Callable[[], Awaitable[bool]]) -> None:
        self._driver = driver
        self._ready = ready

    async def GetPluginInfo(self, request: csi.GetPluginInfoRequest, context: Any) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name=self._driver, vendor_version=curve_storage.__version__)

    async def GetPluginCapabilities(
        self, request: csi.GetPluginCapabilitiesRequest, context: Any
    ) -> csi.GetPluginCapabilitiesResponse:
        service, expansion = csi.PluginCapability.Service, csi.PluginCapability.VolumeExpansion
        return csi.GetPluginCapabilitiesResponse(
            capabilities=[
                csi.PluginCapability(service=service(type=service.CONTROLLER_SERVICE)),
                csi.PluginCapability(service=service(type=service.VOLUME_ACCESSIBILITY_CONSTRAINTS)),
                csi.PluginCapability(volume_expansion=expansion(type=expansion.ONLINE)),
            ]
        )

    async def Probe(self, request: csi.ProbeRequest, context: Any) -> csi.ProbeResponse:
        return csi.ProbeResponse(ready=BoolValue(value=await self._ready()))
