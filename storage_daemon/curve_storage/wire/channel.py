"""The client's end: channels that connect when first used, reconnect by themselves and give every call a deadline.

A channel fails what was in flight when its connection breaks (the outcome is then unknown to the caller) and refuses
at once while the address is known not to answer; whether and where to try again is the caller's decision.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import msgspec

from curve_storage.config import TlsFiles
from curve_storage.errors import CurveError, DeadlineExceeded, InvalidArgument, Overloaded, Unavailable
from curve_storage.telemetry import logs
from curve_storage.units import MiB
from curve_storage.wire.frame import ONEWAY, Buffer
from curve_storage.wire.messages import MessageType
from curve_storage.wire.receiver import FrameConnection
from curve_storage.wire.status import decode_error
from curve_storage.wire.tls import SERVER_NAME, TlsContexts

_HELLO = int(MessageType.HELLO)
_CONNECT_TIMEOUT = 3.0
_FIRST_BACKOFF = 0.02
_LAST_BACKOFF = 0.5
_MAX_QUEUED = 64 * MiB

log = logs.get("wire.channel")
_encode = msgspec.msgpack.Encoder().encode


class Reply:
    """payload stays valid as long as it is referenced."""

    __slots__ = ("meta", "payload")

    def __init__(self, meta: Buffer, payload: memoryview) -> None:
        self.meta = meta
        self.payload = payload


_Pending = tuple["asyncio.Future[Reply]", float]


class _Link(FrameConnection):
    """One established connection of a channel."""

    def __init__(self, channel: _Connector, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._channel = channel
        self.error: CurveError | None = None

    def admit(self, kind: int, flags: int, request_id: int, meta_length: int, payload_length: int) -> bool:
        return True

    def deliver(self, kind: int, flags: int, status: int, request_id: int, meta: Buffer, payload: memoryview) -> None:
        found = self._channel.pending.pop(request_id, None)
        if found is None:
            if request_id == 0 and status:
                self.error = decode_error(status, meta)
            return  # the caller gave up on it, or a HELLO was accepted
        future = found[0]
        if future.done():
            return
        if status:
            future.set_exception(decode_error(status, meta))
        else:
            future.set_result(Reply(meta, payload))

    def violated(self, error: CurveError, request_id: int, kind: int) -> None:
        log.warning("protocol violation by the server", address=self._channel.address, error=str(error))
        self.error = error if error.retryable else Unavailable(f"the server broke the protocol: {error.what}")
        if self.transport is not None:
            self.transport.abort()

    def closed(self, error: Exception | None) -> None:
        self._channel.lost(self, error)


class _Connector:
    """Keeps one connection to an address: connects on demand, queues calls meanwhile, expires them."""

    def __init__(
        self,
        address: str,
        token: Callable[[], bytes] | None,
        client: str,
        tls: TlsContexts | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.address = address
        self.pending: dict[int, _Pending] = {}
        self._token = token
        self._client = client
        self._tls = tls
        self._loop = loop
        self._link: _Link | None = None
        self._ids = 0
        self._sent_token: bytes | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: dict[int, tuple[int, Buffer, Buffer | Sequence[Buffer]]] = {}
        self._waiting_bytes = 0
        self._failures = 0
        self._not_before = 0.0
        self._last_error: CurveError | None = None
        self._sweep_at = float("inf")
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._link is not None

    def call(
        self, kind: int, meta: Buffer, payload: Buffer | Sequence[Buffer], timeout: float
    ) -> asyncio.Future[Reply]:
        loop = self._loop
        future: asyncio.Future[Reply] = loop.create_future()
        self._ids = request_id = self._ids + 1
        deadline = loop.time() + timeout
        link = self._link
        if link is not None:
            if link.paused and self._too_much_queued(link):
                future.set_exception(self._overloaded())
                return future
            if self._token is not None:
                token = self._token()
                if token is not self._sent_token and token != self._sent_token:
                    self._hello(link, token)
            try:
                link.send(kind, 0, 0, request_id, meta, payload)
            except InvalidArgument as error:
                future.set_exception(error)
                return future
        else:
            refusal = self._begin_connecting()
            size = len(meta) + _size(payload)
            if refusal is None and self._waiting_bytes + size > _MAX_QUEUED:
                refusal = self._overloaded()
            if refusal is not None:
                future.set_exception(refusal)
                return future
            self._waiting[request_id] = (kind, meta, payload)
            self._waiting_bytes += size
        self.pending[request_id] = (future, deadline)
        if deadline < self._sweep_at:
            self._arm(deadline)
        return future

    def post(self, kind: int, meta: Buffer, payload: Buffer | Sequence[Buffer]) -> bool:
        link = self._link
        if link is None:
            self._begin_connecting()
            return False
        if link.paused:
            return False
        if self._token is not None:
            token = self._token()
            if token is not self._sent_token and token != self._sent_token:
                self._hello(link, token)
        self._ids += 1
        link.send(kind, ONEWAY, 0, self._ids, meta, payload)
        return True

    async def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        link = self._link
        if link is not None and link.transport is not None:
            link.flush()
            link.transport.close()
            # Queued one-way messages get a moment to leave; a peer that does not read cannot hold us up.
            for _ in range(20):
                if self._link is None:
                    break
                await asyncio.sleep(0.01)
            if link.transport is not None:
                link.transport.abort()
        self._fail_all(Unavailable("the channel was closed", where=self.address))
        if self._sweeper is not None:
            self._sweeper.cancel()

    # ---- connecting

    def _begin_connecting(self) -> CurveError | None:
        """Starts an attempt unless one runs; the error to answer with when it is too early for another."""
        if self._closed:
            return Unavailable("the channel is closed", where=self.address)
        if self._connecting is not None:
            return None
        if self._failures and self._loop.time() < self._not_before:
            last = self._last_error
            assert last is not None
            return type(last)(last.what, where=last.where, todo=last.todo)
        self._connecting = self._loop.create_task(self._connect())
        return None

    async def _connect(self) -> None:
        link = _Link(self, self._loop)
        try:
            host, port = split_address(self.address)
            context = self._tls.current() if self._tls is not None else None
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await self._loop.create_connection(
                    lambda: link, host, port, ssl=context, server_hostname=SERVER_NAME if context else None
                )
            token = self._token() if self._token is not None else b""
        except asyncio.CancelledError:
            self._connecting = None
            raise
        except CurveError as error:
            self._attempt_failed(error, link)
        except TimeoutError:
            self._attempt_failed(self._unreachable("no answer to the connection attempt"), link)
        except OSError as error:  # ssl.SSLError is one
            reason = getattr(error, "reason", None) or error.strerror or str(error)
            self._attempt_failed(self._unreachable(str(reason)), link)
        except Exception as error:
            log.exception("cannot connect", address=self.address)
            self._attempt_failed(self._unreachable(f"{type(error).__name__}: {error}"), link)
        else:
            self._connecting = None
            self._established(link, token)

    def _established(self, link: _Link, token: bytes) -> None:
        if link.transport is None:  # lost again before this task ran
            self._attempt_failed(link.error or self._unreachable("connection closed at once"), link)
            return
        self._link = link
        self._hello(link, token)
        waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        for request_id, (kind, meta, payload) in waiting.items():
            if request_id in self.pending:
                try:
                    link.send(kind, 0, 0, request_id, meta, payload)
                except InvalidArgument as error:
                    future, _deadline = self.pending.pop(request_id)
                    if not future.done():
                        future.set_exception(error)

    def _hello(self, link: _Link, token: bytes) -> None:
        self._sent_token = token
        self._ids += 1
        link.send(_HELLO, 0, 0, self._ids, _encode({"token": token, "client": self._client}), b"")

    def _attempt_failed(self, error: CurveError, link: _Link) -> None:
        if link.transport is not None:
            link.transport.abort()
        self._connecting = None
        self._back_off(error)
        self._fail_all(error)

    def _back_off(self, error: CurveError) -> None:
        delay = min(_LAST_BACKOFF, _FIRST_BACKOFF * 2 ** min(self._failures, 10))
        self._failures += 1
        self._not_before = self._loop.time() + delay * random.uniform(0.5, 1.0)
        self._last_error = error

    def lost(self, link: _Link, error: Exception | None) -> None:
        if link is not self._link:
            return
        self._link = None
        self._sent_token = None
        if link.error is not None:
            # The server said why it closes (or this side found the stream unusable): do not hammer it.
            self._back_off(link.error)
            reason: CurveError = link.error
        else:
            # Connections that work and then break are re-made at once.
            self._failures = 0 if link.received else self._failures
            reason = Unavailable(
                f"connection lost{f': {error}' if error else ''}", where=self.address, todo="Retry the request"
            )
        self._fail_all(reason)

    # ---- ends of calls

    def _fail_all(self, error: CurveError) -> None:
        pending, self.pending = self.pending, {}
        self._waiting, self._waiting_bytes = {}, 0
        for future, _deadline in pending.values():
            if not future.done():
                future.set_exception(_copy(error))

    def _arm(self, at: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweep_at = at
        self._sweeper = self._loop.call_at(at, self._sweep)

    def _sweep(self) -> None:
        """Ends the calls whose time is up. One timer serves all: equal timeouts cost no timer per call."""
        now = self._loop.time() + 0.001
        nearest = float("inf")
        late: list[int] = []
        for request_id, (future, deadline) in self.pending.items():
            if future.done() or deadline <= now:
                late.append(request_id)
            elif deadline < nearest:
                nearest = deadline
        self._sweeper, self._sweep_at = None, float("inf")
        for request_id in late:
            future, _deadline = self.pending.pop(request_id)
            queued = self._waiting.pop(request_id, None)
            if queued is not None:
                self._waiting_bytes -= len(queued[1]) + _size(queued[2])
            if not future.done():
                future.set_exception(
                    DeadlineExceeded("no reply in time", where=self.address, todo="Retry, or ask another replica")
                )
        if nearest < self._sweep_at:
            self._arm(nearest)

    def _too_much_queued(self, link: _Link) -> bool:
        return link.transport is not None and link.transport.get_write_buffer_size() > _MAX_QUEUED

    def _overloaded(self) -> CurveError:
        return Overloaded(
            f"more than {_MAX_QUEUED // MiB} MiB wait to be sent", where=self.address, todo="Retry in a moment"
        )

    def _unreachable(self, reason: str) -> CurveError:
        return Unavailable(
            f"cannot connect: {reason}", where=self.address, todo="Check that the daemon there runs and is reachable"
        )


class Channel:
    """Calls to one address over one or more connections. Made by ChannelPool; never raises, futures fail instead."""

    def __init__(self, connectors: Sequence[_Connector]) -> None:
        self._connectors = connectors
        self._only = connectors[0] if len(connectors) == 1 else None
        self._next = 0
        self.address = connectors[0].address

    @property
    def connected(self) -> bool:
        return any(connector.connected for connector in self._connectors)

    def call(
        self, type: int, meta: Buffer, payload: Buffer | Sequence[Buffer] = b"", *, timeout: float
    ) -> asyncio.Future[Reply]:
        """Fails with the peer's CurveError, Unavailable, Overloaded or DeadlineExceeded (timeout in seconds).

        Buffers (of bytes: format "B") must stay unchanged until the future is done. A buffer may still wait in a
        send queue after DeadlineExceeded or a cancellation: requests must be safe to repeat.
        """
        connector = self._only
        if connector is None:
            connector = self._choose()
        return connector.call(type, meta, payload, timeout)

    def post(self, type: int, meta: Buffer, payload: Buffer | Sequence[Buffer] = b"") -> bool:
        """One-way. False when it was not sent: not connected (yet), or the peer reads too slowly.

        Raises InvalidArgument when it is over the size limit of its type.

        All one-way messages of a channel use its first connection: they arrive in order."""
        return self._connectors[0].post(type, meta, payload)

    async def close(self) -> None:
        for connector in self._connectors:
            await connector.close()

    def _choose(self) -> _Connector:
        self._next = (self._next + 1) % len(self._connectors)
        return self._connectors[self._next]


class ChannelPool:
    """Channels by address. token: called for the token to present, again before every request, so it must be cheap and
    return the same object while nothing changed. client: a name for the server's log."""

    def __init__(
        self,
        *,
        token: Callable[[], bytes] | None,
        client: str,
        tls: TlsFiles | None = None,
        connections: int = 1,
    ) -> None:
        if connections < 1:
            raise InvalidArgument("a channel needs at least one connection")
        self._token = token
        self._client = client
        self._tls = TlsContexts(tls, "client") if tls is not None else None
        self._connections = connections
        self._channels: dict[str, Channel] = {}

    def channel(self, address: str) -> Channel:
        """The channel to host:port. Must be called on the running event loop."""
        found = self._channels.get(address)
        if found is None:
            loop = asyncio.get_running_loop()
            found = Channel(
                [_Connector(address, self._token, self._client, self._tls, loop) for _ in range(self._connections)]
            )
            self._channels[address] = found
        return found

    async def drop(self, address: str) -> None:
        """Closes the channel to an address that is not needed any more."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close()

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()


def split_address(address: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port"; raises InvalidArgument."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not 0 <= int(port) < 65536 or not host:
        raise InvalidArgument(f"{address!r} is not an address", todo="Use host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _size(payload: Buffer | Sequence[Buffer]) -> int:
    return len(payload) if isinstance(payload, (bytes, bytearray, memoryview)) else sum(map(len, payload))


def _copy(error: CurveError) -> CurveError:
    """A separate instance for each future: a shared one would collect all their tracebacks."""
    copy = type(error)(error.what, where=error.where, todo=error.todo)
    return copy
