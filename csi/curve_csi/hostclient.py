"""The node service's view of the volume host of its node, over the host's unix socket."""

from __future__ import annotations

from curve_storage.errors import NotFound
from curve_storage.proto import volumehost_pb2 as host
from curve_storage.rpc.unix import VolumeHostClient

ATTACH_DEADLINE = 60.0
DEADLINE = 20.0


class VolumeHost:
    def __init__(self, client: VolumeHostClient) -> None:
        self._client = client

    async def attach(self, number: int, epoch: int, read_only: bool) -> host.Attachment:
        request = host.AttachRequest(volume_id=number, epoch=epoch, read_only=read_only, backend=host.BACKEND_LOOP)
        reply = await self._client.stub.Attach(request, timeout=ATTACH_DEADLINE)
        return reply.attachment

    async def detach(self, number: int) -> None:
        try:
            await self._client.stub.Detach(host.DetachRequest(volume_id=number), timeout=ATTACH_DEADLINE)
        except NotFound:
            return

    async def find(self, number: int) -> host.Attachment | None:
        reply = await self._client.stub.List(host.ListRequest(), timeout=DEADLINE)
        for attachment in reply.attachments:
            if attachment.volume_id == number:
                return attachment
        return None

    async def resize(self, number: int, size: int) -> host.Attachment:
        reply = await self._client.stub.Resize(host.ResizeRequest(volume_id=number, size=size), timeout=ATTACH_DEADLINE)
        return reply.attachment

    async def info(self, timeout: float) -> host.InfoReply:
        return await self._client.stub.Info(host.InfoRequest(), timeout=timeout)
