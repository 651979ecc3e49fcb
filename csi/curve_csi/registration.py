"""The node plugin makes itself known to the kubelet, so no registrar container is needed: it serves
pluginregistration.Registration on `<folder>/<driver>-reg.sock`, which the kubelet watches."""

from __future__ import annotations

from typing import Any

from curve_csi.proto import pluginregistration_pb2 as registration
from curve_csi.proto import pluginregistration_pb2_grpc
from curve_storage.telemetry import logs

VERSIONS = ("1.0.0",)
log = logs.get("curve_csi.registration")


class RegistrationService(pluginregistration_pb2_grpc.RegistrationServicer):
    """`endpoint`: path of the CSI socket as the kubelet sees it."""

    def __init__(self, driver: str, endpoint: str) -> None:
        self._driver = driver
        self._endpoint = endpoint
        self.registered = False
        self.error = ""

    async def GetInfo(self, request: registration.InfoRequest, context: Any) -> registration.PluginInfo:
        return registration.PluginInfo(
            type="CSIPlugin", name=self._driver, endpoint=self._endpoint, supported_versions=VERSIONS
        )

    async def NotifyRegistrationStatus(
        self, request: registration.RegistrationStatus, context: Any
    ) -> registration.RegistrationStatusResponse:
        self.registered = request.plugin_registered
        self.error = request.error
        if request.plugin_registered:
            log.info("registered", driver=self._driver)
        else:
            log.error("registration refused", driver=self._driver, error=request.error)
        return registration.RegistrationStatusResponse()
