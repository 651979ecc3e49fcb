"""Requests over `packet` sockets on the event loop: to the keeper and to data processes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curve_storage.errors import CurveError, DeadlineExceeded, Internal, NotFound, Unavailable, all_errors
from curve_storage.volumehost import packet


async def request(
    path: Path, message: dict[str, Any], descriptors: Sequence[int] = (), *, timeout: float
) -> tuple[dict[str, Any], list[int]]:
    """One request on a connection of its own: the reply and its descriptors, which are the caller's to close.

    Raises Unavailable when nobody listens or the peer ends, DeadlineExceeded after `timeout` seconds, and the
    peer's own error for a refusal.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        try:
            connection.connect(str(path))
            packet.send(connection, {"version": packet.VERSION, **message}, descriptors)
            await _readable(connection, timeout, path)
            received = packet.receive(connection)
        except (OSError, ValueError) as error:
            raise Unavailable(f"no answer: {error}", where=str(path)) from error
        if received is None:
            raise Unavailable("the connection was closed without an answer", where=str(path))
        reply, found = received
        if not reply.get("ok"):
            for descriptor in found:
                os.close(descriptor)
            raise _refusal(reply, path)
        return reply, found
    finally:
        connection.close()


async def _readable(connection: socket.socket, timeout: float, path: Path) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection.fileno(), _fulfil, ready)
    try:
        async with asyncio.timeout(timeout):
            await ready
    except TimeoutError as error:
        raise DeadlineExceeded(f"no answer within {timeout:g} s", where=str(path)) from error
    finally:
        loop.remove_reader(connection.fileno())


def _fulfil(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _refusal(reply: dict[str, Any], path: Path) -> CurveError:
    error = reply.get("error")
    if isinstance(error, dict):
        return decode_error(error)
    return Internal(str(error), where=str(path))


def encode_error(error: CurveError) -> dict[str, str]:
    return {"code": error.code, "what": error.what, "where": error.where, "todo": error.todo}


def decode_error(data: dict[str, str]) -> CurveError:
    cls = all_errors().get(data.get("code", ""), Internal)
    return cls(data.get("what", "failed"), where=data.get("where", ""), todo=data.get("todo", ""))


class KeeperClient:
    """The keeper from the host's side. All calls raise Unavailable or DeadlineExceeded when it does not answer."""

    def __init__(self, path: Path, *, timeout: float = 5.0) -> None:
        self.path = path
        self._timeout = timeout

    async def _call(
        self, operation: str, descriptors: Sequence[int] = (), **fields: Any
    ) -> tuple[dict[str, Any], list[int]]:
        try:
            return await request(self.path, {"op": operation, **fields}, descriptors, timeout=self._timeout)
        except Unavailable as error:
            raise Unavailable(
                f"the keeper is not running: {error.what}", where=str(self.path), todo="Start curve-keeper"
            ) from error

    async def ping(self) -> int:
        """Its pid."""
        reply, _ = await self._call("ping")
        return int(reply["pid"])

    async def store(self, name: str, blob: Any, descriptor: int | None = None) -> None:
        await self._call("store", () if descriptor is None else (descriptor,), name=name, blob=blob)

    async def names(self) -> dict[str, Any]:
        reply, _ = await self._call("list")
        names = reply["names"]
        assert isinstance(names, dict)
        return names

    async def get(self, name: str) -> tuple[int, Any]:
        """The descriptor, the caller's to close, and the blob. NotFound when nothing is kept under the name."""
        try:
            reply, descriptors = await self._call("get", name=name)
        except Internal as error:
            raise NotFound(error.what, where=name) from error
        return descriptors[0], reply["blob"]

    async def delete(self, name: str) -> bool:
        reply, _ = await self._call("delete", name=name)
        return bool(reply["found"])
