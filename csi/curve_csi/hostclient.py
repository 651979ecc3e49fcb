"""The node service's view of the volume host of its node, over the host's unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from grpc import aio

from curve_storage.errors import NotFound, Unavailable
from curve_storage.proto import volumehost_pb2 as host
from curve_storage.proto import volumehost_pb2_grpc
from curve_storage.rpc.channel import unix_channel
from curve_storage.rpc.errors import from_rpc_error

ATTACH_DEADLINE = 60.0
DEADLINE = 20.0
RETRY = 0.2

RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")


class VolumeHost:
    """Calls wait for a host that is being restarted until their deadline; then Unavailable."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._channel = unix_channel(socket)
        self._stub: volumehost_pb2_grpc.VolumeHostAsyncStub = volumehost_pb2_grpc.VolumeHostStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def _call(self, method: Callable[..., Awaitable[ReplyT]], request: object, deadline: float) -> ReplyT:
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        while True:
            try:
                return await method(request, timeout=max(0.1, end - loop.time()))
            except aio.AioRpcError as raised:
                error = from_rpc_error(raised, where=f"volume host {self._socket}")
                if not isinstance(error, Unavailable) or loop.time() + RETRY >= end:
                    raise error from None
            await asyncio.sleep(RETRY)

    async def attach(self, number: int, epoch: int, read_only: bool) -> host.Attachment:
        request = host.AttachRequest(volume_id=number, epoch=epoch, read_only=read_only, backend=host.BACKEND_LOOP)
        reply = await self._call(self._stub.Attach, request, ATTACH_DEADLINE)
        return reply.attachment

    async def detach(self, number: int) -> None:
        try:
            await self._call(self._stub.Detach, host.DetachRequest(volume_id=number), ATTACH_DEADLINE)
        except NotFound:
            return

    async def find(self, number: int) -> host.Attachment | None:
        reply = await self._call(self._stub.List, host.ListRequest(), DEADLINE)
        for attachment in reply.attachments:
            if attachment.volume_id == number:
                return attachment
        return None

    async def resize(self, number: int, size: int) -> host.Attachment:
        request = host.ResizeRequest(volume_id=number, size=size)
        reply = await self._call(self._stub.Resize, request, ATTACH_DEADLINE)
        return reply.attachment

    async def info(self, deadline: float) -> host.InfoReply:
        return await self._call(self._stub.Info, host.InfoRequest(), deadline)
