"""The HTTP port of a daemon: /metrics, /healthz, /readyz, served on the event loop without threads.

Only GET and HEAD of these paths exist; requests are small, bounded in size and time, and every connection serves one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from curve_storage.errors import Unavailable
from curve_storage.telemetry import logs

_MAX_REQUEST = 16 * 1024
_TIMEOUT = 10.0
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TEXT_TYPE = "text/plain; charset=utf-8"

Probe = Callable[[], str | None]
Page = Callable[[], tuple[int, str, bytes]]

log = logs.get("telemetry.http")


class HttpEndpoint:
    """health, ready: None when all is well, else the reason in a sentence (answered with status 503)."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Probe, ready: Probe) -> None:
        self._host = host
        self._port = port
        self._registry = registry
        self._server: asyncio.Server | None = None
        self._pages: dict[str, Page] = {
            "/metrics": self._metrics,
            "/healthz": lambda: _probe(health),
            "/readyz": lambda: _probe(ready),
        }

    async def start(self) -> int:
        """Returns the bound port. Raises Unavailable when the address cannot be used."""
        try:
            self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=_MAX_REQUEST)
        except OSError as error:
            raise Unavailable(
                f"cannot listen: {error.strerror or error}",
                where=f"{self._host}:{self._port}",
                todo="Choose another `http` address",
            ) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                status, kind, body, head_only = await self._answer(reader)
                head = (
                    f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + (b"" if head_only else body))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side went away or is too slow to be served
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, str, bytes, bool]:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return 431, _TEXT_TYPE, b"request too large\n", False
        parts = request.split(b"\r\n", 1)[0].split()
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return 400, _TEXT_TYPE, b"not an HTTP/1 request\n", False
        method, target = parts[0], parts[1].decode("latin-1").split("?", 1)[0]
        if method not in (b"GET", b"HEAD"):
            return 405, _TEXT_TYPE, b"only GET\n", False
        page = self._pages.get(target)
        if page is None:
            text = "not found; there are " + ", ".join(self._pages) + "\n"
            return 404, _TEXT_TYPE, text.encode(), method == b"HEAD"
        try:
            status, kind, body = page()
        except Exception as error:
            log.exception("page failed", path=target)
            status, kind, body = 500, _TEXT_TYPE, f"{type(error).__name__}: {error}\n".encode()
        return status, kind, body, method == b"HEAD"

    def _metrics(self) -> tuple[int, str, bytes]:
        return 200, _METRICS_TYPE, generate_latest(self._registry)


def _probe(probe: Probe) -> tuple[int, str, bytes]:
    reason = probe()
    if reason is None:
        return 200, _TEXT_TYPE, b"ok\n"
    return 503, _TEXT_TYPE, f"{reason}\n".encode()
