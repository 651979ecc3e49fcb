"""gRPC servers: CurveErrors become statuses at this one edge; every call is timed and logged with its request id."""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
from grpc import aio

from curve_storage.config import TlsFiles
from curve_storage.errors import ConfigError, CurveError, Internal, Unavailable
from curve_storage.rpc.channel import SERVER_OPTIONS, read_pem, tls_stamp
from curve_storage.rpc.errors import abort, grpc_code
from curve_storage.telemetry import logs, metrics

REQUEST_ID_KEY = "curve-request-id"
_SLOW = 1.0

log = logs.get("rpc.server")
_Context = Any  # aio.ServicerContext, whose stub's type parameters say nothing here
_Handler = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class ErrorInterceptor(aio.ServerInterceptor):
    """Runs every method with its request id in the log context and turns what it raises into a status."""

    def __init__(self) -> None:
        self._seconds = metrics.histogram(
            "curve_rpc_server_seconds", "Duration of gRPC calls served", ("method", "code")
        )

    async def intercept_service(self, continuation: _Handler, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        request_id = _request_id(handler_call_details)
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrap_stream = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return wrap_stream(
                self._streaming(behaviour, method, request_id),
                handler.request_deserializer,
                handler.response_serializer,
            )
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        wrap = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return wrap(
            self._unary(behaviour, method, request_id), handler.request_deserializer, handler.response_serializer
        )

    def _unary(self, behaviour: Any, method: str, request_id: str) -> Callable[[Any, _Context], Awaitable[Any]]:
        async def call(request: Any, context: _Context) -> Any:
            with logs.request_context(request_id):
                started = perf_counter()
                code = "ok"
                try:
                    result = behaviour(request, context)
                    if not inspect.isawaitable(result):
                        return result
                    # Once begun, a call runs to its end even if the client goes away: handlers change state in steps.
                    return await asyncio.shield(_keep(result))
                except (aio.AbortError, asyncio.CancelledError):
                    code = "cancelled"
                    raise
                except Exception as raised:
                    error = _as_curve_error(raised, method)
                    code = grpc_code(error).name.lower()
                    await abort(context, error)
                finally:
                    self._observe(method, code, perf_counter() - started)

        return call

    def _streaming(self, behaviour: Any, method: str, request_id: str) -> Callable[[Any, _Context], AsyncIterator[Any]]:
        async def stream(request: Any, context: _Context) -> AsyncIterator[Any]:
            with logs.request_context(request_id):
                started = perf_counter()
                code = "ok"
                try:
                    async for item in behaviour(request, context):
                        yield item
                except (aio.AbortError, asyncio.CancelledError, GeneratorExit):
                    code = "cancelled"
                    raise
                except Exception as raised:
                    error = _as_curve_error(raised, method)
                    code = grpc_code(error).name.lower()
                    await abort(context, error)
                finally:
                    self._observe(method, code, perf_counter() - started)

        return stream

    def _observe(self, method: str, code: str, seconds: float) -> None:
        self._seconds.labels(method, code).observe(seconds)
        if seconds > _SLOW:
            log.warning("slow call", method=method, code=code, seconds=round(seconds, 3))
        else:
            log.debug("call", method=method, code=code, seconds=round(seconds, 6))


def make_server(*, interceptors: Sequence[aio.ServerInterceptor] = ()) -> aio.Server:
    """A server without ports: add servicers, `listen`, then `await server.start()`.

    `interceptors` run inside the error mapping, so they may raise CurveErrors too."""
    return aio.server(interceptors=(ErrorInterceptor(), *interceptors), options=SERVER_OPTIONS)


def listen(server: aio.Server, address: str, tls: TlsFiles | None = None) -> int:
    """Adds host:port (with mutual TLS when `tls` is given; rotated files are picked up) or unix:/path, before start.

    Returns the bound port (0 for a Unix socket). Raises Unavailable when the address cannot be used."""
    if address.startswith("unix:"):
        _prepare_socket(Path(address[len("unix:") :]))
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _server_credentials(tls))
    except (RuntimeError, ValueError) as error:
        raise Unavailable("cannot listen", where=address, todo="Choose another `listen` address") from error
    if address.startswith("unix:"):
        os.chmod(address[len("unix:") :], 0o600)
        return 0
    if port == 0:
        raise Unavailable("cannot listen", where=address, todo="Choose another `listen` address")
    return port


def _prepare_socket(path: Path) -> None:
    """A socket file left by a process that was killed would be in the way; any other file is not ours to remove."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError("a file that is not a socket is in the way", where=str(path), todo="Remove it")
    path.unlink()


def _server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    stamp = tls_stamp(tls)

    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(read_pem(tls.key), read_pem(tls.cert))], root_certificates=read_pem(tls.ca)
        )

    def changed() -> Any:  # a configuration, or None for no change
        nonlocal stamp
        now = tls_stamp(tls)
        if now == stamp:
            return None
        try:
            fresh = configuration()
        except ConfigError:
            return None  # half-replaced: keep the old one for this handshake
        stamp = now
        return fresh

    return grpc.dynamic_ssl_server_credentials(configuration(), changed, require_client_authentication=True)


_running: set[asyncio.Future[Any]] = set()


def _keep(result: Awaitable[Any]) -> asyncio.Future[Any]:
    task = asyncio.ensure_future(result)
    _running.add(task)
    task.add_done_callback(_finished)
    return task


def _finished(task: asyncio.Future[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and task.exception() is not None:
        pass  # seen by the waiting call, or by nobody when the client has gone


def _request_id(details: grpc.HandlerCallDetails) -> str:
    for key, value in details.invocation_metadata or ():
        if key == REQUEST_ID_KEY:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return secrets.token_hex(8)


def _as_curve_error(error: Exception, method: str) -> CurveError:
    if isinstance(error, CurveError):
        log.info("call refused", method=method, code=error.code, error=str(error))
        return error
    log.error("call failed", method=method, exc_info=error)
    return Internal(f"{type(error).__name__}: {error}", where=method, todo="See this daemon's log")
