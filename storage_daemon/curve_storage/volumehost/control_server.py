"""The control socket of a data process: requests of its host, answered on the event loop (see `packet`)."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from curve_storage.errors import CurveError
from curve_storage.telemetry import logs
from curve_storage.volumehost import packet
from curve_storage.volumehost.packet_client import encode_error

Reply = tuple[dict[str, Any], list[int]]
Handler = Callable[[dict[str, Any]], Awaitable[Reply]]

_log = logs.get("control")


class ControlServer:
    """handler: the reply's fields and descriptors, which stay the handler's. CurveErrors are sent back."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        self._listener = packet.listen(str(self._path))
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def stop(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._loop.add_reader(connection.fileno(), self._readable, connection)

    def _readable(self, connection: socket.socket) -> None:
        try:
            received = packet.receive(connection)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            received = None
        if received is None:
            self._loop.remove_reader(connection.fileno())
            connection.close()
            return
        message, descriptors = received
        for descriptor in descriptors:
            os.close(descriptor)
        # One request per connection: nothing more is read from it.
        self._loop.remove_reader(connection.fileno())
        task = self._loop.create_task(self._answer(connection, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, connection: socket.socket, message: dict[str, Any]) -> None:
        try:
            try:
                reply, descriptors = await self._handler(message)
                packet.send(connection, {"ok": True, **reply}, descriptors)
            except CurveError as error:
                packet.send(connection, {"ok": False, "error": encode_error(error)})
        except OSError as error:
            _log.warning("the host did not take an answer", operation=message.get("op"), reason=str(error))
        finally:
            connection.close()
