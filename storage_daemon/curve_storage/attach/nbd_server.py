"""An NBD server for one device on a unix socket.

Large payloads are received straight into the buffer that is written to the device; what was read is sent without being
joined to its header. Replies of one turn of the event loop leave together.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from curve_storage.attach import nbd_protocol as nbd
from curve_storage.attach.device import BlockDevice, Buffer
from curve_storage.clock import Clock
from curve_storage.errors import InvalidArgument, NoSpace, OutOfRange, PermissionDenied
from curve_storage.fuse.statistics import Statistics
from curve_storage.telemetry import logs
from curve_storage.units import KiB, MiB

_STAGE = 256 * KiB  # where requests arrive
_WINDOW = 128 * KiB  # least room offered to the socket
_MAX_REQUESTS = 256  # in hand per connection; the peer waits beyond
_MAX_BYTES = 64 * MiB
_JOIN_BELOW = 64 * KiB
_POOLED = 16  # large buffers kept for reuse

_READ, _WRITE, _DISC = int(nbd.Command.READ), int(nbd.Command.WRITE), int(nbd.Command.DISC)
_KNOWN = {int(command) for command in nbd.Command}
_CHANGING = {_WRITE, int(nbd.Command.TRIM), int(nbd.Command.WRITE_ZEROES)}


class NbdServer:
    """path: of the socket, mode 0600; an old socket file there is replaced. name: of the export."""

    def __init__(self, path: Path, device: BlockDevice, *, name: str, description: str, clock: Clock) -> None:
        self.path = path
        self.device = device
        self.clock = clock
        self.statistics = Statistics()
        self._name = name
        self._description = description
        self._server: asyncio.AbstractServer | None = None
        self._connections: set[_Connection] = set()
        self._pool: list[bytearray] = []
        self.log = logs.get("nbd")

    def export(self) -> nbd.Export:
        return nbd.Export(self._name, self._description, self.device.size, self.device.read_only)

    async def start(self) -> None:
        with suppress(FileNotFoundError):
            self.path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(self.path))
        finally:
            os.umask(mask)
        listener.listen(64)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), sock=listener)

    async def stop(self, patience: float = 1.0) -> None:
        """Take no more requests, answer those in hand for `patience` seconds, hang up."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.stop_reading()
        deadline = self.clock.monotonic() + patience
        while self.inflight and self.clock.monotonic() < deadline:
            await asyncio.sleep(0.005)
        for connection in list(self._connections):
            connection.hang_up()

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def inflight(self) -> int:
        return sum(len(connection.inflight) for connection in self._connections)

    def oldest(self) -> float:
        """Age in seconds of the oldest request in hand; 0 without any."""
        started = [start for connection in self._connections for start in list(connection.inflight.values())[:1]]
        return self.clock.monotonic() - min(started) if started else 0.0

    def large_buffer(self, size: int) -> bytearray:
        for index, buffer in enumerate(self._pool):
            if size <= len(buffer) <= 4 * size:
                return self._pool.pop(index)
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        if len(self._pool) < _POOLED:
            self._pool.append(buffer)

    def add(self, connection: _Connection) -> None:
        self._connections.add(connection)

    def remove(self, connection: _Connection) -> None:
        self._connections.discard(connection)


class _Connection(asyncio.BufferedProtocol):
    def __init__(self, server: NbdServer) -> None:
        self.inflight: dict[asyncio.Task[None], float] = {}
        self._server = server
        self._device = server.device
        self._negotiation = nbd.Negotiation([server.export()])
        self._size = 0
        self._read_only = server.device.read_only
        self._stage = memoryview(bytearray(_STAGE))
        self._start = self._end = 0  # unparsed bytes of the stage
        self._large: memoryview | None = None  # what is missing of a large payload
        self._large_request: Callable[[], None] | None = None
        self._bytes = 0
        self._out: list[Buffer] = []
        self._out_size = 0
        self._stopped = False
        self._held = False  # the transport's reading is paused
        self._writable = True
        self._leaving = False
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()

    # -- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._transport.set_write_buffer_limits(high=_MAX_BYTES)
        self._transport.write(self._negotiation.greeting)
        self._server.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """What is in hand runs to its end: the device may not be left with a write of unknown outcome."""
        self._stopped = True
        self._server.remove(self)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._go_on()

    def eof_received(self) -> bool:
        return False

    def stop_reading(self) -> None:
        self._stopped = True
        self._hold()

    def hang_up(self) -> None:
        self._flush()
        self._transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._large is not None:
            return self._large
        if self._start == self._end:
            self._start = self._end = 0
        elif _STAGE - self._end < _WINDOW:
            rest = bytes(self._stage[self._start : self._end])
            self._stage[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._stage[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._large is not None:
            self._large = self._large[nbytes:]
            if len(self._large):
                return
            self._large = None
            begin, self._large_request = self._large_request, None
            assert begin is not None
            begin()
        else:
            self._end += nbytes
        self._parse()

    # -- requests

    def _parse(self) -> None:
        try:
            if self._negotiation.transmission is None and not self._negotiate():
                return
            while not self._stopped and self._large is None and not self._full():
                if not self._request():
                    break
        except InvalidArgument as error:
            self._server.log.warning("hung up on an NBD client", reason=str(error))
            self._stopped = True
            self._transport.close()
        if self._full():
            self._hold()

    def _negotiate(self) -> bool:
        """Whether requests may follow what has been read."""
        used, answer = self._negotiation.feed(self._stage[self._start : self._end])
        self._start += used
        if answer:
            self._transport.write(answer)
        export = self._negotiation.transmission
        if export is not None:
            self._size = export.size
        if self._negotiation.closed:
            self._stopped = True
            self._transport.close()
        elif self._end - self._start >= _STAGE - _WINDOW:
            raise InvalidArgument("an NBD option too large")
        return export is not None

    def _request(self) -> bool:
        """Begin the next request of the stage; False when it is not complete."""
        available = self._end - self._start
        if available < nbd.REQUEST.size:
            return False
        magic, flags, command, cookie, offset, length = nbd.REQUEST.unpack_from(self._stage, self._start)
        if magic != nbd.REQUEST_MAGIC:
            raise InvalidArgument("not an NBD request")
        body = self._start + nbd.REQUEST.size
        if command == _WRITE:
            return self._write_request(flags, cookie, offset, length, body)
        self._start = body
        if command == _DISC:
            self._leave()
            return False
        error = self._refusal(command, offset, length)
        if error:
            self._answer_error(command, cookie, error)
        else:
            self._begin(self._run(command, flags, cookie, offset, length), length if command == _READ else 0)
        return True

    def _write_request(self, flags: int, cookie: int, offset: int, length: int, body: int) -> bool:
        if length > nbd.MAX_PAYLOAD:
            raise InvalidArgument(f"a write of {length} bytes, {nbd.MAX_PAYLOAD} are allowed")
        error = self._refusal(_WRITE, offset, length)
        arrived = min(self._end - body, length)
        if length < _WINDOW // 2:
            if arrived < length:
                return False
            self._start = body + length
            if error:
                self._answer_error(_WRITE, cookie, error)
            else:
                data = memoryview(bytes(self._stage[body : body + length]))
                self._begin(self._write(flags, cookie, offset, data, None), length)
            return True
        buffer = self._server.large_buffer(length)
        view = memoryview(buffer)[:length]
        view[:arrived] = self._stage[body : body + arrived]
        self._start = body + arrived

        def begin() -> None:
            if error:
                self._answer_error(_WRITE, cookie, error)
            else:
                self._begin(self._write(flags, cookie, offset, view, buffer), length)

        if arrived == length:
            begin()
        else:
            self._large, self._large_request = view[arrived:], begin
        return True

    def _refusal(self, command: int, offset: int, length: int) -> int:
        """The error number for a request that must not be started; 0 for a good one."""
        if command not in _KNOWN:
            return int(nbd.ErrorNumber.EINVAL)
        if command in _CHANGING and self._read_only:
            return int(nbd.ErrorNumber.EPERM)
        if command == _READ and length > nbd.MAX_PAYLOAD:
            return int(nbd.ErrorNumber.EOVERFLOW)
        if command != nbd.Command.FLUSH and offset + length > self._size:
            return int(nbd.ErrorNumber.ENOSPC if command in _CHANGING else nbd.ErrorNumber.EINVAL)
        return 0

    def _begin(self, coroutine: object, size: int) -> None:
        task: asyncio.Task[None] = self._loop.create_task(coroutine)  # type: ignore[arg-type]
        self.inflight[task] = self._server.clock.monotonic()
        self._bytes += size
        task.add_done_callback(lambda done: self._ended(done, size))

    def _ended(self, task: asyncio.Task[None], size: int) -> None:
        self.inflight.pop(task, None)
        self._bytes -= size
        if not task.cancelled() and task.exception() is not None:
            self._server.log.error("an NBD request ended without an answer", reason=repr(task.exception()))
        if self._leaving and not self.inflight:
            self.hang_up()
        elif self._held:
            self._go_on()

    # -- running

    async def _write(self, flags: int, cookie: int, offset: int, data: memoryview, buffer: bytearray | None) -> None:
        clock, length = self._server.clock, len(data)
        started = clock.monotonic()
        try:
            await self._device.write(offset, data)
            if flags & nbd.CommandFlag.FUA:
                await self._device.flush()
            self._answer(cookie)
        except Exception as error:
            self._failed(_WRITE, cookie, error)
        finally:
            if buffer is not None:
                self._server.give_back(buffer)
            self._server.statistics.writes.observe(clock.monotonic() - started, length)

    async def _run(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        started = self._server.clock.monotonic()
        statistics = self._server.statistics
        try:
            if command == _READ:
                self._answer_data(cookie, offset, await self._device.read(offset, length))
                statistics.reads.observe(self._server.clock.monotonic() - started, length)
                return
            if command == nbd.Command.FLUSH:
                await self._device.flush()
            elif command != nbd.Command.CACHE:
                await self._device.discard(offset, length)
                if flags & nbd.CommandFlag.FUA:
                    await self._device.flush()
            self._answer(cookie)
            statistics.others.observe(self._server.clock.monotonic() - started, 0)
        except Exception as error:
            self._failed(command, cookie, error)

    def _failed(self, command: int, cookie: int, error: Exception) -> None:
        self._server.statistics.errors += 1
        self._server.log.warning("NBD request failed", reason=repr(error))
        self._answer_error(command, cookie, error_number(error))

    # -- answering

    def _answer(self, cookie: int) -> None:
        self._push(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, cookie))

    def _answer_data(self, cookie: int, offset: int, data: Buffer) -> None:
        if self._negotiation.structured:
            size = nbd.CHUNK_OFFSET.size + len(data)
            head = nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, nbd.CHUNK_DONE, nbd.CHUNK_OFFSET_DATA, cookie, size)
            self._push(head + nbd.CHUNK_OFFSET.pack(offset))
        else:
            self._push(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, cookie))
        self._push(data)

    def _answer_error(self, command: int, cookie: int, number: int) -> None:
        if self._negotiation.structured and command == _READ:
            body = nbd.CHUNK_ERROR.pack(number, 0)
            head = nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, nbd.CHUNK_DONE, nbd.CHUNK_ERROR_TYPE, cookie, len(body))
            self._push(head + body)
        else:
            self._push(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, number, cookie))

    def _push(self, piece: Buffer) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(piece)
        self._out_size += len(piece)

    def _flush(self) -> None:
        out, size = self._out, self._out_size
        self._out, self._out_size = [], 0
        if not out or self._transport.is_closing():
            return
        if size < _JOIN_BELOW:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)

    # -- flow

    def _full(self) -> bool:
        return len(self.inflight) >= _MAX_REQUESTS or self._bytes >= _MAX_BYTES or not self._writable

    def _hold(self) -> None:
        if not self._held and not self._transport.is_closing():
            self._held = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        if self._held and not self._full() and not self._stopped:
            self._held = False
            self._transport.resume_reading()
            if self._large is None:
                self._parse()

    def _leave(self) -> None:
        self._stopped = self._leaving = True
        if not self.inflight:
            self._loop.call_soon(self.hang_up)


def error_number(error: Exception) -> int:
    if isinstance(error, NoSpace) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return int(nbd.ErrorNumber.ENOSPC)
    if isinstance(error, PermissionDenied):
        return int(nbd.ErrorNumber.EPERM)
    if isinstance(error, OutOfRange):
        return int(nbd.ErrorNumber.EINVAL)
    return int(nbd.ErrorNumber.EIO)
