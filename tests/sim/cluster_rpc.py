"""gRPC over the simulated network: channels for the real stubs, a server for the real servicers.

A call reaches its server unless the link is cut (then perhaps later), is refused while nobody listens, and fails when
the server dies before it has answered: whether it took effect is then unknown, as in reality.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from cluster_loop import Process, ProcessLoop
from grpc import aio

from curve_storage.errors import CurveError
from curve_storage.rpc.errors import grpc_code, to_metadata

Answer = Callable[[grpc.StatusCode, bytes, str, Any], None]
"""status, reply, details, trailing metadata"""


def failure(code: grpc.StatusCode, details: str, trailing: Any = ()) -> aio.AioRpcError:
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*trailing), details)


class Rpc:
    """What listens at an address: `serve(method, request, timeout, answer)`, in whatever process that is."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.servers: dict[str, tuple[Process, Callable[[str, bytes, float, Answer], None]]] = {}
        self.streams: dict[str, Callable[[SimStream, bytes], None]] = {}

    def call(
        self, loop: ProcessLoop, address: str, method: str, request: bytes, timeout: float
    ) -> asyncio.Future[tuple[Any, ...]]:
        network = self.world.network
        source, target = loop.process.name, address.partition(":")[0]
        future: asyncio.Future[tuple[Any, ...]] = loop.create_future()

        def finish(*result: Any) -> None:
            if loop.alive and not future.done():
                loop.call_soon(lambda: None if future.done() else future.set_result(result))

        def answer(code: grpc.StatusCode, reply: bytes, details: str, trailing: Any) -> None:
            network.send(target, source, lambda: finish(code, reply, details, trailing))

        def arrive() -> None:
            found = self.servers.get(address)
            if found is None or not found[0].alive:
                answer(grpc.StatusCode.UNAVAILABLE, b"", "failed to connect to all addresses", ())
                return
            process = found[0]
            life = process.loop
            if future.done():
                return  # the call was cancelled by its deadline before it left
            found[1](method, request, timeout, answer)

            def died() -> None:
                answer(grpc.StatusCode.UNAVAILABLE, b"", "Socket closed", ())

            def watch() -> None:
                if future.done() or not loop.alive:
                    return
                if process.loop is not life:
                    died()
                else:
                    self.world.scheduler.later(0.2, watch)

            self.world.scheduler.later(0.2, watch)

        network.send(source, target, arrive)
        loop.later(
            timeout / loop.process.rate,
            lambda: (
                None
                if future.done()
                else future.set_result((grpc.StatusCode.DEADLINE_EXCEEDED, b"", "Deadline Exceeded", ()))
            ),
        )
        return future


class SimChannel:
    """Of the process that makes it."""

    def __init__(self, address: str, *_: Any, **__: Any) -> None:
        assert Process.running is not None and Process.running.loop is not None
        self._loop = Process.running.loop
        self._rpc: Rpc = Process.running.world.rpc
        self._address = address

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Callable[..., Any]:
        async def call(request: Any, *, timeout: float | None = None, metadata: Any = None, **_: Any) -> Any:
            code, reply, details, trailing = await self._rpc.call(
                self._loop, self._address, method, request_serializer(request), 60.0 if timeout is None else timeout
            )
            if code is not grpc.StatusCode.OK:
                raise failure(code, details, trailing)
            return response_deserializer(reply)

        return call

    def stream_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Callable[..., Any]:
        def open_(*, timeout: float | None = None, metadata: Any = None, **_: Any) -> SimStream:
            return SimStream(
                self._rpc, self._loop, self._address, method, request_serializer, response_deserializer, timeout
            )

        return open_

    unary_stream = stream_unary = unary_unary

    async def close(self, grace: float | None = None) -> None:
        pass


class SimStream:
    """The client's end of a bidirectional stream; servers call `push` and `fail`."""

    def __init__(
        self, rpc: Rpc, loop: ProcessLoop, address: str, method: str, encode: Any, decode: Any, timeout: float | None
    ) -> None:
        self._rpc = rpc
        self._loop = loop
        self._encode = encode
        self._decode = decode
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self.source, self.target = loop.process.name, address.partition(":")[0]
        self.address = address
        self.method = method
        self.cancelled = False
        self._last = 0.0
        self._error: Exception | None = None
        if timeout is not None:
            loop.later(timeout / loop.process.rate, lambda: self._end(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline"))

    async def write(self, request: Any) -> None:
        if self._error is not None:
            raise self._error
        data = self._encode(request)

        def arrive() -> None:
            found = self._rpc.servers.get(self.address)
            if found is None or not found[0].alive:
                self.fail(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses")
                return
            self._rpc.streams[self.address](self, data)

        self._rpc.world.network.send(self.source, self.target, arrive)

    async def read(self) -> Any:
        if self._error is not None and self._queue.empty():
            raise self._error
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return self._decode(item)

    def cancel(self) -> bool:
        self.cancelled = True
        return True

    def push(self, reply: bytes) -> None:
        self._to_client(lambda: self._queue.put_nowait(reply))

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        self._to_client(lambda: self._end(code, details))

    def _end(self, code: grpc.StatusCode, details: str) -> None:
        if self._error is None and not self.cancelled:
            self._error = failure(code, details)
            self._queue.put_nowait(self._error)

    def _to_client(self, action: Callable[[], None]) -> None:
        def arrive() -> None:
            if self._loop.alive and not self.cancelled:
                self._loop.call_soon(action)

        network, scheduler = self._rpc.world.network, self._rpc.world.scheduler
        self._last = max(self._last, scheduler.time + network.delay())
        scheduler.at(self._last, lambda: network.reach(self.target, self.source, arrive))


class _Aborted(Exception):
    def __init__(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        super().__init__(details)
        self.code, self.details, self.trailing = code, details, trailing


class SimContext:
    """As much of a ServicerContext as servicers use."""

    def __init__(self, deadline: float, loop: ProcessLoop) -> None:
        self._deadline = deadline
        self._loop = loop

    def time_remaining(self) -> float:
        return max(0.0, self._deadline - self._loop.time())

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        raise _Aborted(code, details, trailing_metadata)


class SimGrpcServer:
    """grpc.aio.Server for the generated add_…Servicer_to_server functions; `listen` gives it an address."""

    def __init__(self) -> None:
        assert Process.running is not None and Process.running.loop is not None
        self._process = Process.running
        self._loop: ProcessLoop = Process.running.loop
        self._handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        pass

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self._handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def listen(self, address: str) -> None:
        self._process.world.rpc.servers[address] = (self._process, self.serve)

    async def start(self) -> None:
        pass

    async def stop(self, grace: float | None = None) -> None:
        pass

    def serve(self, method: str, request: bytes, timeout: float, answer: Answer) -> None:
        loop = self._loop
        loop.call_soon(lambda: loop.create_task(self._serve(self._handlers[method], request, timeout, answer)) and None)

    async def _serve(self, handler: Any, request: bytes, timeout: float, answer: Answer) -> None:
        context = SimContext(self._loop.time() + timeout, self._loop)
        try:
            reply = await handler.unary_unary(handler.request_deserializer(request), context)
        except CurveError as error:
            answer(grpc_code(error), b"", str(error), to_metadata(error))
        except _Aborted as aborted:
            answer(aborted.code, b"", aborted.details, aborted.trailing)
        except asyncio.CancelledError:
            answer(grpc.StatusCode.CANCELLED, b"", "cancelled", ())
        except Exception as error:
            self._process.world.unforeseen(self._process, "a request failed", error)
            answer(grpc.StatusCode.INTERNAL, b"", repr(error), ())
        else:
            answer(grpc.StatusCode.OK, handler.response_serializer(reply), "", ())
