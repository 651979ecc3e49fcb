"""Links between machines, and TCP over them: ordered streams that stall while a link is cut and may be reset.

A link is directed: (a, b) cut means that nothing of a reaches b. What was sent meanwhile arrives after the cut, as TCP
sends again. Frames of the data port may be delivered a second time, later, between two others.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from cluster_loop import ProcessLoop

from curve_storage.wire.frame import HEADER, HEADER_SIZE

_HIGH = 8 << 20


class Network:
    """loss of whole connections, duplicates and delays are set by the faults; processes are named by host."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.rng: random.Random = world.rng
        self.listeners: dict[str, tuple[ProcessLoop, Callable[[], Any]]] = {}
        self.connections: dict[Connection, None] = {}
        self.cut: set[tuple[str, str]] = set()
        self.jitter = 0.0
        self.duplicates = 0.0
        self._waiting: dict[tuple[str, str], list[Callable[[], None]]] = {}

    def delay(self) -> float:
        rng = self.rng
        base = rng.uniform(0.0001, 0.002)
        return base + (rng.uniform(0.0, 0.4) if self.jitter and rng.random() < self.jitter else 0.0)

    def reach(self, source: str, target: str, action: Callable[[], None]) -> None:
        """Now, or when the link works again."""
        if (source, target) in self.cut:
            self._waiting.setdefault((source, target), []).append(action)
        else:
            action()

    def send(self, source: str, target: str, action: Callable[[], None]) -> None:
        """One message, in no order with others."""
        self.world.scheduler.later(self.delay(), lambda: self.reach(source, target, action))

    def set_cut(self, links: set[tuple[str, str]]) -> None:
        self.cut = links
        for link in [link for link in self._waiting if link not in links]:
            for action in self._waiting.pop(link):
                self.world.scheduler.later(self.delay(), lambda link=link, action=action: self.reach(*link, action))

    # --- TCP ---------------------------------------------------------------------------------------------------------

    def listen(self, loop: ProcessLoop, factory: Callable[[], Any], host: str, port: int) -> SimServer:
        address = f"{host}:{port}"
        self.listeners[address] = (loop, factory)
        loop.process.on_kill.append(lambda: self.listeners.pop(address, None) and None)
        return SimServer(self, address)

    async def connect(self, loop: ProcessLoop, factory: Callable[[], Any], address: str) -> tuple[Any, Any]:
        source, target = loop.process.name, address.partition(":")[0]
        answer: asyncio.Future[Any] = loop.create_future()

        def settle(error: OSError | None, transport: Any = None) -> None:
            if not loop.alive or answer.done():
                return
            loop.call_soon(lambda: None if answer.done() else _settle(answer, error, transport))

        def arrive() -> None:
            found = self.listeners.get(address)
            if found is None or not found[0].alive:
                self.send(target, source, lambda: settle(ConnectionRefusedError(111, "Connection refused")))
                return
            if not loop.alive or answer.done():
                return
            connection = Connection(self, loop, factory(), found[0], found[1](), address)
            self.connections[connection] = None
            server, client = connection.ends[1], connection.ends[0]
            found[0].call_soon(server.made)
            self.send(target, source, lambda: settle(None, client))

        self.send(source, target, arrive)
        transport = await answer
        transport.made()
        return transport, transport.protocol

    def reset(self, connection: Connection) -> None:
        """Both ends see the connection break."""
        for end in connection.ends:
            end.break_(ConnectionResetError(104, "Connection reset by peer"))

    def process_died(self, name: str, *, silent: float) -> None:
        """Its peers learn of it after `silent` seconds (a kernel that lives on tells at once)."""
        for connection in list(self.connections):
            for end in connection.ends:
                if end.loop.process.name == name:
                    other = end.other
                    end.dead = True
                    self.world.scheduler.later(
                        silent + self.delay(),
                        lambda other=other, name=name: self.reach(
                            name, other.loop.process.name, lambda: other.break_(ConnectionResetError(104, "reset"))
                        ),
                    )


def _settle(answer: asyncio.Future[Any], error: OSError | None, transport: Any) -> None:
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(transport)


class SimServer:
    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address
        self.sockets = (self,)

    def getsockname(self) -> tuple[str, int]:
        host, _, port = self._address.partition(":")
        return host, int(port)

    def close(self) -> None:
        self._network.listeners.pop(self._address, None)

    async def wait_closed(self) -> None:
        pass


class Connection:
    def __init__(
        self, network: Network, loop: ProcessLoop, client: Any, server_loop: ProcessLoop, server: Any, address: str
    ) -> None:
        near = SimTransport(network, self, loop, client, address)
        far = SimTransport(network, self, server_loop, server, f"{loop.process.name}:1")
        near.other, far.other = far, near
        self.ends = (near, far)


class SimTransport(asyncio.Transport):
    """One end of a connection."""

    other: SimTransport

    def __init__(self, network: Network, connection: Connection, loop: ProcessLoop, protocol: Any, peer: str) -> None:
        super().__init__()
        self.network = network
        self.connection = connection
        self.loop = loop
        self.protocol = protocol
        self.dead = False
        self.closing = False
        self._peer = peer
        self._made = False
        self._last = 0.0
        self._stuck: deque[bytes | None] = deque()
        self._inbox: deque[bytes | None] = deque()
        self._reading = True
        self._flying = 0
        self._high = _HIGH
        self._paused = False
        self._in_frame = 0

    def made(self) -> None:
        if not self._made and not self.dead:
            self._made = True
            self.protocol.connection_made(self)
            self._feed()

    # --- sending -----------------------------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self.dead or self.closing or not self.loop.alive or not len(data):
            return
        chunk = bytes(data)
        network = self.network
        whole = self._whole_frames(chunk)
        self._send(chunk)
        if whole and network.duplicates and network.rng.random() < network.duplicates:
            delay = network.rng.choice((0.01, 0.3, 3.0)) * network.rng.random()
            network.world.scheduler.later(delay, lambda: self._again(chunk))

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def _again(self, chunk: bytes) -> None:
        if not self.dead and not self.closing and not self._in_frame:
            self.network.world.counts["duplicates"] += 1
            self._send(chunk)

    def _whole_frames(self, chunk: bytes) -> bool:
        """Follows the frames of the stream; True when `chunk` begins and ends between two of them."""
        began = not self._in_frame
        position = self._in_frame
        while position < len(chunk):
            if len(chunk) - position < HEADER_SIZE:
                self._in_frame = 1 << 60  # never cut by this program's senders: no more duplicates here
                return False
            header = HEADER.unpack_from(chunk, position)
            position += HEADER_SIZE + header[6] + header[7]
        self._in_frame = position - len(chunk)
        return began and not self._in_frame

    def _send(self, chunk: bytes | None) -> None:
        network = self.network
        self._last = max(self._last, network.world.scheduler.time + network.delay())
        if chunk is not None:
            self._flying += len(chunk)
            if self._flying > self._high and not self._paused:
                self._paused = True
                self.protocol.pause_writing()
        network.world.scheduler.at(self._last, lambda: self._arrive(chunk))

    def _arrive(self, chunk: bytes | None) -> None:
        link = self.loop.process.name, self.other.loop.process.name
        if self._stuck or link in self.network.cut:
            if not self._stuck:
                self.network.reach(*link, self._unstick)
            self._stuck.append(chunk)
            return
        self._hand_over(chunk)

    def _unstick(self) -> None:
        stuck, self._stuck = self._stuck, deque()
        for chunk in stuck:
            self._hand_over(chunk)

    def _hand_over(self, chunk: bytes | None) -> None:
        other = self.other
        if chunk is not None:
            self._flying -= len(chunk)
            if self._paused and self._flying < self._high // 2:
                self._paused = False
                if self.loop.alive and not self.dead:
                    self.loop.call_soon(self.protocol.resume_writing)
        if other.dead or not other.loop.alive:
            return
        other._inbox.append(chunk)
        other.loop.call_soon(other._feed)

    # --- receiving -----------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        protocol = self.protocol
        while self._inbox and self._reading and self._made and not self.dead:
            chunk = self._inbox.popleft()
            if chunk is None:
                protocol.eof_received()
                self.break_(None)
                return
            view = memoryview(chunk)
            while view and not self.dead:
                buffer = protocol.get_buffer(-1)
                size = min(len(buffer), len(view))
                buffer[:size] = view[:size]
                view = view[size:]
                protocol.buffer_updated(size)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self.loop.call_soon(self._feed)

    def is_reading(self) -> bool:
        return self._reading

    # --- ends ----------------------------------------------------------------------------------------------------

    def break_(self, error: Exception | None) -> None:
        if self.dead:
            return
        self.dead = True
        self._inbox.clear()
        self.network.connections.pop(self.connection, None)
        if self.loop.alive:
            self.loop.call_soon(lambda: self.protocol.connection_lost(error) if self._made else None)

    def close(self) -> None:
        if not self.closing and not self.dead:
            self.closing = True
            self._send(None)
            self.break_(None)

    def abort(self) -> None:
        if not self.dead:
            source, target = self.loop.process.name, self.other.loop.process.name
            other = self.other
            self.network.send(source, target, lambda: other.break_(ConnectionResetError(104, "reset")))
            self.closing = True
            self.break_(None)

    def is_closing(self) -> bool:
        return self.closing or self.dead

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            host, _, port = self._peer.partition(":")
            return host, int(port)
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or _HIGH

    def get_write_buffer_size(self) -> int:
        return self._flying

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol
