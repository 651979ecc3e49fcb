"""Every CSI call logged with its duration and outcome, secrets left out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from grpc import aio

from curve_storage.errors import CurveError
from curve_storage.telemetry import logs

log = logs.get("curve_csi.call")
HIDDEN = "secrets"
QUIET = ("/Probe", "/NodeGetCapabilities", "/ControllerGetCapabilities", "/GetPluginCapabilities", "/GetPluginInfo")


def printable(request: Any) -> dict[str, Any]:
    """The request as a mapping, without its secrets: no level of logging ever shows them."""
    shown: dict[str, Any] = MessageToDict(request, preserving_proto_field_name=True)
    if shown.get(HIDDEN):
        shown[HIDDEN] = f"({len(shown[HIDDEN])} hidden)"
    return shown


class RequestLog(aio.ServerInterceptor):
    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = handler_call_details.method
        behaviour = handler.unary_unary
        quiet = method.endswith(QUIET)

        async def call(request: Any, context: Any) -> Any:
            started = perf_counter()
            outcome = "ok"
            try:
                return await behaviour(request, context)
            except CurveError as error:
                outcome = error.code
                raise
            except BaseException as error:
                outcome = type(error).__name__
                raise
            finally:
                write = log.debug if quiet and outcome == "ok" else log.info
                write(
                    method.rsplit("/", 1)[-1],
                    outcome=outcome,
                    seconds=round(perf_counter() - started, 3),
                    request=printable(request),
                )

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)
