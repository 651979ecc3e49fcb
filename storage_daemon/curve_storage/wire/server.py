"""The data port: handlers by message type behind checks of token, scope, size and load.

A handler runs synchronously on the event loop with one Request and answers it there or later, exactly once. What is in
flight is bounded in number and bytes over all connections; beyond that a request is answered `overloaded` before memory
for its payload is taken.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from curve_storage.clock import SystemClock
from curve_storage.config import TlsFiles
from curve_storage.errors import (
    CurveError,
    Internal,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from curve_storage.telemetry import logs
from curve_storage.units import MiB
from curve_storage.wire import metrics
from curve_storage.wire.frame import KNOWN_LIMITS, ONEWAY, REPLY, Buffer, limits
from curve_storage.wire.hello import Hello
from curve_storage.wire.messages import ONE_WAY, MessageType
from curve_storage.wire.receiver import FrameConnection, _printable
from curve_storage.wire.status import encode_error, status_of
from curve_storage.wire.tls import TlsContexts
from curve_storage.wire.token import Identity, TokenVerifier

Scope = Literal["any", "volume", "cluster"]
_HELLO = int(MessageType.HELLO)
_PING = int(MessageType.PING)
_OPEN_TO_ALL = (_HELLO, _PING)
_SWEEP_INTERVAL = 1.0
_JUDGE_AGAIN = 1.0
"""Seconds after which a refused token is looked at once more, at most."""

log = logs.get("wire.server")


class Request:
    """One request. `payload` stays valid as long as it, or a view of it, is referenced."""

    __slots__ = ("_answered", "_connection", "_id", "_oneway", "identity", "meta", "payload", "type")

    def __init__(
        self,
        connection: ServerConnection,
        request_id: int,
        kind: int,
        meta: Buffer,
        payload: memoryview,
        oneway: int,
    ) -> None:
        self._connection = connection
        self._answered = False
        self._id = request_id
        self._oneway = oneway
        self.type = kind
        self.meta = meta
        self.payload = payload
        self.identity: Identity | None = connection.identity

    @property
    def peer(self) -> str:
        return self._connection.peer

    @property
    def answered(self) -> bool:
        return self._answered

    def reply(self, meta: Buffer = b"", payload: Buffer = b"") -> None:
        if self._answered:
            raise Internal(f"request {self._id} of type {self.type} answered twice")
        self._answered = True
        if self._oneway:
            return
        connection = self._connection
        server = connection.server
        server.inflight -= 1
        server.inflight_bytes -= len(self.payload)
        if connection.transport is not None:
            try:
                connection.send(self.type, REPLY, 0, self._id, meta, payload)
            except InvalidArgument as error:
                connection.refuse(self.type, self._id, Internal(f"the reply is too large: {error.what}"))

    def fail(self, error: CurveError) -> None:
        if self._answered:
            raise Internal(f"request {self._id} of type {self.type} answered twice")
        self._answered = True
        if not self._oneway:
            self._connection.server.release(len(self.payload))
            self._connection.refuse(self.type, self._id, error)


Handler = Callable[[Request], None]


@dataclass(slots=True)
class _Route:
    handler: Handler
    scope: Scope
    count: int = 0


class ServerConnection(FrameConnection):
    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.server = server
        self.limits = server.limits
        self.identity: Identity | None = None
        self.expires = 0.0
        self.client = ""
        self.peer = ""
        self.opened = 0.0
        self.closing_since = 0.0
        self.stalled_since = 0.0
        self.received_before = 0
        self._refusal: CurveError | None = None
        self._token: bytes = b""
        self._judge_at = 0.0
        self._open = server.verifier is None
        self._reserved = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = _printable(transport.get_extra_info("peername"))
        self.opened = self.server.clock.monotonic()
        self.server.connected(self)

    def closed(self, error: Exception | None) -> None:
        self._release_reserved()
        self.server.disconnected(self)

    def pause_writing(self) -> None:
        # The peer does not read its replies: take no more of its requests.
        super().pause_writing()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def may_allocate(self, kind: int) -> bool:
        return self._open

    def admit(self, kind: int, flags: int, request_id: int, meta_length: int, payload_length: int) -> bool:
        server = self.server
        if flags & ~ONEWAY:
            self.bad(InvalidArgument(f"a request with flags {flags:#x}", todo="Upgrade the client"), request_id, kind)
            return False
        if kind in _OPEN_TO_ALL:
            return True
        oneway = flags & ONEWAY
        error: CurveError
        if not self._open and not self._reopened():
            error = self._refusal or Unauthenticated(
                "no capability token presented on this connection", todo="Say HELLO with a token first"
            )
        else:
            route = server.routes.get(kind)
            if route is None:
                if server.not_ready:
                    error = Unavailable(server.not_ready, todo="Retry, or ask another replica")
                else:
                    error = Unimplemented(f"this server does not serve message type {kind}", todo="Ask another daemon")
            elif self.identity is not None and route.scope == "cluster" and not self.identity.cluster:
                error = PermissionDenied(
                    f"message type {kind} needs a cluster token", todo="Only daemons of the cluster may send it"
                )
            elif oneway:
                return True
            elif kind in ONE_WAY:
                error = InvalidArgument(f"message type {kind} is one-way", todo="Post it instead of calling")
            elif server.inflight >= server.max_inflight or (
                server.inflight_bytes + payload_length > server.max_inflight_bytes and server.inflight
            ):
                server.refused += 1
                error = Overloaded(
                    f"{server.inflight} requests with {server.inflight_bytes} bytes in flight", todo="Retry in a moment"
                )
            else:
                server.inflight += 1
                server.inflight_bytes += payload_length
                self._reserved = payload_length + 1
                return True
        if not oneway:
            self.refuse(kind, request_id, error)
        return False

    def deliver(self, kind: int, flags: int, status: int, request_id: int, meta: Buffer, payload: memoryview) -> None:
        oneway = flags & ONEWAY
        self._reserved = 0  # from here on the Request gives it back
        if kind == _HELLO:
            self._hello(request_id, meta)
            return
        if kind == _PING:
            self.send(_PING, REPLY, 0, request_id, b"", b"")
            return
        request = Request(self, request_id, kind, meta, payload, oneway)
        try:
            route = self.server.routes[kind]
            route.count += 1
            route.handler(request)
        except CurveError as error:
            if not request.answered:
                request.fail(error)
        except STRUCTURE_ERRORS as error:
            if not request.answered:
                request.fail(InvalidArgument(f"malformed meta of message type {kind}: {error}"))
        except Exception as error:
            log.exception("handler failed", type=kind, peer=self.peer)
            if not request.answered:
                request.fail(Internal(f"{type(error).__name__}: {error}", todo="See this daemon's log"))

    def buffer_updated(self, nbytes: int) -> None:
        if self.expires and self.server.clock.wall() >= self.expires:
            self._close_door(Unauthenticated("the token has expired", todo="Refresh the session for a new one"))
        super().buffer_updated(nbytes)

    def refuse(self, kind: int, request_id: int, error: CurveError) -> None:
        if self.transport is not None:
            self.send(kind, REPLY, status_of(error), request_id, encode_error(error), b"")

    def violated(self, error: CurveError, request_id: int, kind: int) -> None:
        self.server.complain("protocol violation", self, error)
        self.server.violations += 1
        self.refuse(kind, request_id, error)
        self.close()

    def close(self) -> None:
        self.broken = True
        self._release_reserved()
        if self.transport is not None:
            self.flush()
            self.closing_since = self.closing_since or self.server.clock.monotonic()
            self.transport.close()

    def _hello(self, request_id: int, meta: Buffer) -> None:
        try:
            hello = _decode_hello(meta)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.refuse(_HELLO, request_id, InvalidArgument("malformed HELLO", todo="Upgrade the client"))
            self.close()
            return
        self.client = hello.client[:256]
        verifier = self.server.verifier
        if verifier is not None:
            self._token = bytes(hello.token)
            try:
                self.identity = verifier.verify(self._token)
            except CurveError as error:
                self.server.complain("token refused", self, error)
                self._close_door(error)
                self.refuse(_HELLO, request_id, error)
                return
            self._open = True
            self.expires = self.identity.expires
        self.send(_HELLO, REPLY, 0, request_id, b"", b"")

    def _reopened(self) -> bool:
        """The token was refused while this clock was wrong, or before its key was in the keyring, and is good now.

        The peer sees nothing wrong with it and would present another one only when it renews it.
        """
        verifier, now = self.server.verifier, self.server.clock.monotonic()
        if verifier is None or not self._token or now < self._judge_at:
            return False
        self._judge_at = now + _JUDGE_AGAIN
        try:
            self.identity = verifier.verify(self._token)
        except CurveError:
            return False
        self._open = True
        self.expires = self.identity.expires
        return True

    def _close_door(self, why: CurveError) -> None:
        self._open = False
        self.identity = None
        self.expires = 0.0
        self._refusal = why

    def _release_reserved(self) -> None:
        if self._reserved:
            self.server.release(self._reserved - 1)
            self._reserved = 0


_decode_hello = msgspec.msgpack.Decoder(Hello).decode
STRUCTURE_ERRORS: tuple[type[Exception], ...] = (msgspec.MsgspecError, struct.error)


class Server:
    """verifier None: no token needed (tests, private networks). Timeouts in seconds."""

    def __init__(
        self,
        *,
        verifier: TokenVerifier | None,
        tls: TlsFiles | None = None,
        max_inflight: int = 1024,
        max_inflight_bytes: int = 256 * MiB,
        max_connections: int = 4096,
        hello_timeout: float = 10.0,
        stall_timeout: float = 60.0,
    ) -> None:
        self.verifier = verifier
        self.clock = verifier.clock if verifier is not None else SystemClock()
        self.max_inflight = max_inflight
        self.max_inflight_bytes = max_inflight_bytes
        self.inflight = 0
        self.inflight_bytes = 0
        self.refused = 0
        self.violations = 0
        self.routes: dict[int, _Route] = {}
        self.not_ready = ""
        """Why handlers are still missing: their requests may be repeated, here or elsewhere. Empty: there are all."""
        self.limits: dict[int, tuple[int, int]] = dict(KNOWN_LIMITS)
        self._logged = 0.0
        self._unlogged = 0
        self._tls = tls
        self._max_connections = max_connections
        self._hello_timeout = hello_timeout
        self._stall_timeout = stall_timeout
        self._connections: set[ServerConnection] = set()
        self._server: asyncio.AbstractServer | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def requests(self) -> dict[int, int]:
        """Requests handled so far, by message type."""
        return {kind: route.count for kind, route in self.routes.items()}

    @property
    def connections(self) -> int:
        return len(self._connections)

    def handle(self, type: int, handler: Handler, *, scope: Scope) -> None:
        """scope: "cluster" needs a cluster token; "volume" a volume's (or the cluster's): the handler then checks
        `request.identity.check_volume`; "any" any valid token."""
        if type in (_HELLO, _PING):
            raise InvalidArgument("HELLO and PING are answered by the server itself")
        self.routes[int(type)] = _Route(handler, scope)
        self.limits[int(type)] = limits(type)

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the bound port. Raises Unavailable when the address cannot be used."""
        loop = asyncio.get_running_loop()
        context: ssl.SSLContext | None = TlsContexts(self._tls, "server").listening() if self._tls else None
        listening: Any  # uvloop's, whose `sockets` is not the tuple of the standard library
        try:
            listening = await loop.create_server(
                lambda: ServerConnection(self, loop), host, port, ssl=context, backlog=512
            )
        except OSError as error:
            raise Unavailable(
                f"cannot listen: {error.strerror or error}", where=f"{host}:{port}", todo="Choose another `listen`"
            ) from error
        self._sweeper = loop.call_later(_SWEEP_INTERVAL, self._sweep)
        metrics.collector.add(self)
        self._server = listening
        return int(listening.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stops listening and closes all connections; unanswered requests are dropped."""
        metrics.collector.remove(self)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
            if connection.transport is not None:
                connection.transport.abort()
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def release(self, cost: int) -> None:
        self.inflight -= 1
        self.inflight_bytes -= cost

    def connected(self, connection: ServerConnection) -> None:
        self._connections.add(connection)
        if len(self._connections) > self._max_connections:
            connection.refuse(_HELLO, 0, Overloaded("too many connections", todo="Close unused clients"))
            connection.close()

    def complain(self, event: str, connection: ServerConnection, error: CurveError) -> None:
        """Logs what a peer did wrong, at most once a second: peers must not be able to fill the log."""
        now = self.clock.monotonic()
        self._unlogged += 1
        if now - self._logged >= 1.0:
            log.warning(event, peer=connection.peer, client=connection.client, error=str(error), count=self._unlogged)
            self._logged, self._unlogged = now, 0

    def disconnected(self, connection: ServerConnection) -> None:
        self._connections.discard(connection)

    def _sweep(self) -> None:
        """Ends connections that say nothing before HELLO, stop in the middle of a frame, or never finish closing."""
        now = self.clock.monotonic()
        for connection in list(self._connections):
            transport = connection.transport
            if transport is None:
                continue
            if connection.closing_since:
                if now - connection.closing_since > 5:
                    transport.abort()
            elif not connection._open and now - connection.opened > self._hello_timeout and not connection.client:
                connection.refuse(_HELLO, 0, Unauthenticated("no HELLO in time", todo="Present a token"))
                connection.close()
            elif connection.mid_frame() and connection.received == connection.received_before:
                connection.stalled_since = connection.stalled_since or now
                if now - connection.stalled_since > self._stall_timeout:
                    connection.close()
            else:
                connection.received_before = connection.received
                connection.stalled_since = 0.0
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_INTERVAL, self._sweep)
