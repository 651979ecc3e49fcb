"""A loopback port that leads to an address inside a network namespace.

A socket belongs to the namespace in which it was made, whoever uses it: one thread enters the namespace and makes the
outgoing sockets.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from concurrent.futures import ThreadPoolExecutor

from e2e.box.launch import enter_netns

CONNECT_TIMEOUT = 10.0
CHUNK = 1 << 16


def _enter(netns: str) -> None:
    import ctypes

    enter_netns(ctypes.CDLL(None, use_errno=True), netns)


class Forwarder:
    def __init__(self, netns: str, address: tuple[str, int]) -> None:
        self._address = address
        self._inside = ThreadPoolExecutor(1, "netns", _enter, (netns,))
        self._server: asyncio.Server | None = None

    async def start(self, port: int) -> int:
        """Listens on 127.0.0.1:`port`, or on any free port when that one is taken; returns the port."""
        try:
            self._server = await asyncio.start_server(self._connection, "127.0.0.1", port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, away = await asyncio.wait_for(self._connect(), CONNECT_TIMEOUT)
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        try:
            await asyncio.gather(_copy(reader, away), _copy(there, writer))
        finally:
            for end in (writer, away):
                end.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._inside, socket.socket, socket.AF_INET, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            await loop.sock_connect(made, self._address)
            return await asyncio.open_connection(sock=made)
        except BaseException:
            made.close()
            raise


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Until the source's end, which is passed on; a broken connection ends it too."""
    try:
        while data := await source.read(CHUNK):
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()
    except (OSError, ConnectionError):
        target.transport.abort()
