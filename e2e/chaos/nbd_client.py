"""An NBD client that survives its server: a broken connection is made again, and the request repeated.

One request at a time; blocking. What is repeated is the same write of the same bytes, as qemu and the kernel do it.
"""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

from curve_storage.attach import nbd_protocol as nbd
from curve_storage.errors import Aborted

_CONNECT = 5.0
_PAUSE = 0.02
_GO_INFO = struct.Struct(">H")


class Disconnected(Exception):
    """The server hung up, or speaks nonsense."""


class NbdClient:
    """stop: ends the waiting of a request that nobody answers, which then raises Aborted."""

    def __init__(self, path: Path, export: str, stop: threading.Event) -> None:
        self.reconnects = -1
        self._path = path
        self._export = export.encode()
        self._stop = stop
        self._socket: socket.socket | None = None
        self._cookie = 0

    def read(self, offset: int, length: int) -> bytes:
        return self._request(nbd.Command.READ, offset, length, b"")

    def write(self, offset: int, data: bytes) -> None:
        self._request(nbd.Command.WRITE, offset, len(data), data)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _request(self, command: nbd.Command, offset: int, length: int, data: bytes) -> bytes:
        while True:
            try:
                if self._socket is None:
                    self._socket = self._connect()
                return self._exchange(self._socket, command, offset, length, data)
            except (OSError, Disconnected) as error:
                if isinstance(error, NbdError):
                    raise
                self.close()
                if self._stop.wait(_PAUSE):
                    raise Aborted("given up while no server answered", where=str(self._path)) from error

    def _exchange(
        self, connection: socket.socket, command: nbd.Command, offset: int, length: int, data: bytes
    ) -> bytes:
        self._cookie += 1
        connection.sendall(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, command, self._cookie, offset, length) + data)
        head = self._receive(connection, nbd.SIMPLE_REPLY.size)
        magic, number, cookie = nbd.SIMPLE_REPLY.unpack(head)
        if magic != nbd.SIMPLE_REPLY_MAGIC or cookie != self._cookie:
            raise Disconnected
        if number:
            raise NbdError(number, f"NBD {command.name} at {offset}: error {number}", str(self._path))
        return self._receive(connection, length) if command == nbd.Command.READ else b""

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_CONNECT)
            connection.connect(str(self._path))
            if self._receive(connection, 18)[:16] != nbd.INIT_MAGIC + nbd.OPTION_MAGIC:
                raise Disconnected
            name = struct.pack(">I", len(self._export)) + self._export + _GO_INFO.pack(0)
            connection.sendall(
                struct.pack(">I", 0b11) + nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.Option.GO, len(name)) + name
            )
            while True:
                magic, _, kind, length = nbd.OPTION_REPLY.unpack(self._receive(connection, nbd.OPTION_REPLY.size))
                self._receive(connection, length)
                if magic != nbd.OPTION_REPLY_MAGIC or kind & (1 << 31):
                    raise Disconnected
                if kind == nbd.OptionReply.ACK:
                    break
            connection.settimeout(1.0)
        except BaseException:
            connection.close()
            raise
        self.reconnects += 1
        return connection

    def _receive(self, connection: socket.socket, length: int) -> bytes:
        """Waits without end, except for `stop` and a peer that is gone."""
        got = bytearray()
        while len(got) < length:
            try:
                piece = connection.recv(length - len(got))
            except TimeoutError:
                if self._stop.is_set():
                    raise Disconnected from None
                continue
            if not piece:
                raise Disconnected
            got += piece
        return bytes(got)


class NbdError(OSError):
    """The server answered with an error."""
