"""The gRPC service of the host: messages to calls and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curve_storage import __version__
from curve_storage.errors import InvalidArgument, Unavailable
from curve_storage.proto import volumehost_pb2 as pb
from curve_storage.proto import volumehost_pb2_grpc
from curve_storage.volumehost.attachment import Attachment, Condition, Upgraded
from curve_storage.volumehost.host import VolumeHost, kernel_resends
from curve_storage.volumehost.probe import probe
from curve_storage.volumehost.state import Backend

_STATFS = 5.0
_BACKENDS = {pb.BACKEND_LOOP: Backend.LOOP, pb.BACKEND_NBD: Backend.NBD}
_HEALTH = {
    Condition.HEALTHY: pb.HEALTH_HEALTHY,
    Condition.STALLED: pb.HEALTH_STALLED,
    Condition.FENCED: pb.HEALTH_FENCED,
    Condition.FAILED: pb.HEALTH_FAILED,
}


class VolumeHostService(volumehost_pb2_grpc.VolumeHostServicer):
    def __init__(self, host: VolumeHost) -> None:
        self._host = host

    async def Attach(self, request: pb.AttachRequest, context: Any) -> pb.AttachReply:
        backend = _BACKENDS.get(request.backend)
        if backend is None:
            raise InvalidArgument(f"no backend {request.backend}")
        attachment = await self._host.attach(
            request.volume_id, request.path, request.epoch, backend, read_only=request.read_only
        )
        return pb.AttachReply(attachment=await self._describe(attachment))

    async def Detach(self, request: pb.DetachRequest, context: Any) -> pb.Empty:
        await self._host.detach(request.volume_id, force=request.force)
        return pb.Empty()

    async def Resize(self, request: pb.ResizeRequest, context: Any) -> pb.AttachReply:
        attachment = await self._host.resize(request.volume_id, request.size)
        return pb.AttachReply(attachment=await self._describe(attachment))

    async def Upgrade(self, request: pb.UpgradeRequest, context: Any) -> pb.UpgradeReply:
        reply = pb.UpgradeReply()
        for volume_id, outcome in await self._host.upgrade(request.volume_id):
            one = reply.upgraded.add(volume_id=volume_id)
            if isinstance(outcome, Upgraded):
                one.old_pid, one.new_pid = outcome.old_pid, outcome.new_pid
                one.stall_ms = round(outcome.stall * 1000)
            else:
                one.error = str(outcome)
        return reply

    async def List(self, request: pb.ListRequest, context: Any) -> pb.ListReply:
        reply = pb.ListReply()
        for attachment in sorted(self._host.attachments.values(), key=lambda found: found.volume_id):
            reply.attachments.append(await self._describe(attachment))
        return reply

    async def Stats(self, request: pb.StatsRequest, context: Any) -> pb.StatsReply:
        attachment = self._host.get(request.volume_id)
        report = attachment.report
        if attachment.process is not None and attachment.process.alive:
            try:
                report = await attachment.process.ask("ping", timeout=_STATFS)
            except Unavailable:
                pass  # being replaced: the last known numbers
        statistics = report.get("statistics") or {}
        reads, writes = statistics.get("reads", {}), statistics.get("writes", {})
        return pb.StatsReply(
            attachment=await self._describe(attachment),
            reads=sum(reads.get("counts", ())),
            writes=sum(writes.get("counts", ())),
            read_bytes=reads.get("bytes", 0),
            write_bytes=writes.get("bytes", 0),
            inflight=report.get("inflight", 0),
            oldest_inflight_ms=round(report.get("oldest", 0.0) * 1000),
        )

    async def FilesystemStats(self, request: pb.FilesystemStatsRequest, context: Any) -> pb.FilesystemStatsReply:
        if not request.path.startswith("/"):
            raise InvalidArgument("an absolute path is needed", where=request.path)
        return pb.FilesystemStatsReply(**await probe("statfs", Path(request.path), deadline=_STATFS))

    async def Info(self, request: pb.InfoRequest, context: Any) -> pb.InfoReply:
        resend = kernel_resends()
        messages = list(self._host.problems)
        if self._host.keeper_problem is not None:
            messages.append(self._host.keeper_problem)
        if not resend:
            messages.append("this kernel (older than Linux 6.9) fails the requests in flight when a data process dies")
        return pb.InfoReply(
            node=self._host.config.node, version=__version__, resend=resend, message="; ".join(messages)
        )

    async def _describe(self, attachment: Attachment) -> pb.Attachment:
        state, report = attachment.state, attachment.report
        condition, message = attachment.condition()
        process = attachment.process
        described = pb.Attachment(
            volume_id=state.volume_id,
            path=state.path,
            epoch=state.epoch,
            backend=pb.BACKEND_NBD if state.backend is Backend.NBD else pb.BACKEND_LOOP,
            read_only=state.read_only,
            size=state.size,
            pid=process.pid if process is not None and process.alive else 0,
            takeovers=state.takeovers,
            version=str(report.get("version", "")),
            health=_HEALTH[condition],
            message=message,
            warnings=report.get("unprotected", ()),
        )
        if state.backend is Backend.NBD:
            described.nbd_socket = str(attachment.nbd_socket)
        else:
            described.backing_file = str(attachment.file)
            device = await attachment.loop_device()
            described.device = str(device.path) if device is not None else ""
        return described
