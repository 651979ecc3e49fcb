"""The gRPC services: translation only. Every call runs on the present term of leadership or fails with NotLeader."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import grpc.aio

from curve_storage.mds import health, messages
from curve_storage.mds.attachment import Opened
from curve_storage.mds.records import Entry
from curve_storage.mds.scheduling import NAMES
from curve_storage.mds.term import Term
from curve_storage.mds.topology import Registration
from curve_storage.proto import mds_pb2 as pb
from curve_storage.proto import mds_pb2_grpc as rpc

T = TypeVar("T")
Context = grpc.aio.ServicerContext
REPLY_MARGIN = 0.3
"""Seconds kept for the answer to travel, of the time that the caller gives."""
NO_DEADLINE = 60.0


class Leadership(Protocol):
    """Who leads, as far as this process knows."""

    def term(self) -> Term:
        """The present term; raises NotLeader with the leader's address."""
        ...

    def leader(self) -> tuple[str, str]:
        """(name, address) of the leader, empty when unknown."""
        ...

    async def members(self) -> list[tuple[str, str]]:
        """(name, address) of every MDS that runs."""
        ...


def time_left(context: Context[Any, Any]) -> float:
    remaining = context.time_remaining()
    return NO_DEADLINE if remaining is None else max(0.1, remaining - REPLY_MARGIN)


class _Service:
    def __init__(self, leadership: Leadership) -> None:
        self._leadership = leadership

    async def _run(self, work: Callable[[Term], Coroutine[Any, Any, T]]) -> T:
        term = self._leadership.term()
        return await term.run(work(term))


class NamespaceService(_Service, rpc.NamespaceServicer):
    async def _entry(self, work: Callable[[Term], Coroutine[Any, Any, Entry]]) -> pb.VolumeReply:
        term = self._leadership.term()
        return pb.VolumeReply(volume=messages.volume(term.core, term.sessions, await term.run(work(term))))

    async def CreateVolume(self, request: pb.CreateVolumeRequest, context: Context[Any, Any]) -> pb.VolumeReply:
        return await self._entry(
            lambda term: term.namespace.create_volume(
                request.path,
                request.size,
                owner=request.owner,
                poolset=request.poolset,
                labels=dict(request.labels),
                iops=request.throttle.iops,
                bytes_per_second=request.throttle.bytes_per_second,
                create_parents=request.create_parents,
            )
        )

    async def CreateDirectory(self, request: pb.CreateDirectoryRequest, context: Context[Any, Any]) -> pb.VolumeReply:
        return await self._entry(
            lambda term: term.namespace.create_directory(
                request.path, owner=request.owner, create_parents=request.create_parents
            )
        )

    async def GetVolume(self, request: pb.GetVolumeRequest, context: Context[Any, Any]) -> pb.VolumeReply:
        term = self._leadership.term()
        entry = term.namespace.find(request.volume.path, request.volume.id)
        return pb.VolumeReply(volume=messages.volume(term.core, term.sessions, entry))

    async def ListDirectory(
        self, request: pb.ListDirectoryRequest, context: Context[Any, Any]
    ) -> pb.ListDirectoryReply:
        term = self._leadership.term()
        entries, more = term.namespace.list_directory(
            request.path or "/", recursive=request.recursive, limit=request.limit, start_after=request.start_after
        )
        return pb.ListDirectoryReply(
            entries=[messages.volume(term.core, term.sessions, entry) for entry in entries], more=more
        )

    async def DeleteVolume(self, request: pb.DeleteVolumeRequest, context: Context[Any, Any]) -> pb.Empty:
        await self._run(lambda term: term.namespace.delete(request.volume.path, request.volume.id, force=request.force))
        return pb.Empty()

    async def RecoverVolume(self, request: pb.RecoverVolumeRequest, context: Context[Any, Any]) -> pb.VolumeReply:
        return await self._entry(
            lambda term: term.namespace.recover(request.volume.path, request.volume.id, target_path=request.target_path)
        )

    async def RenameVolume(self, request: pb.RenameVolumeRequest, context: Context[Any, Any]) -> pb.VolumeReply:
        return await self._entry(
            lambda term: term.namespace.rename(request.volume.path, request.volume.id, request.target_path)
        )

    async def ExtendVolume(self, request: pb.ExtendVolumeRequest, context: Context[Any, Any]) -> pb.VolumeReply:
        return await self._entry(
            lambda term: term.namespace.extend(request.volume.path, request.volume.id, request.size)
        )

    async def UpdateVolume(self, request: pb.UpdateVolumeRequest, context: Context[Any, Any]) -> pb.VolumeReply:
        throttle = None
        if request.HasField("throttle"):
            throttle = (request.throttle.iops, request.throttle.bytes_per_second)
        return await self._entry(
            lambda term: term.namespace.update(
                request.volume.path, request.volume.id, throttle=throttle, labels=dict(request.labels)
            )
        )

    async def ListRecycleBin(
        self, request: pb.ListRecycleBinRequest, context: Context[Any, Any]
    ) -> pb.ListDirectoryReply:
        term = self._leadership.term()
        entries = sorted(term.core.tables.recycled(), key=lambda entry: (entry.deleted_ms, entry.id))
        return pb.ListDirectoryReply(entries=[messages.volume(term.core, term.sessions, e) for e in entries])

    async def PurgeRecycleBin(
        self, request: pb.PurgeRecycleBinRequest, context: Context[Any, Any]
    ) -> pb.PurgeRecycleBinReply:
        return pb.PurgeRecycleBinReply(purged=await self._run(lambda term: term.namespace.purge(request.older_than_ms)))

    async def AttachVolume(self, request: pb.AttachVolumeRequest, context: Context[Any, Any]) -> pb.AttachVolumeReply:
        limit = time_left(context)
        reply = await self._entry(
            lambda term: term.attachments.attach(
                request.volume.path,
                request.volume.id,
                node=request.node,
                read_only=request.read_only,
                force=request.force,
                timeout=limit,
            )
        )
        return pb.AttachVolumeReply(volume=reply.volume, epoch=reply.volume.epoch)

    async def ReleaseVolume(self, request: pb.ReleaseVolumeRequest, context: Context[Any, Any]) -> pb.VolumeReply:
        return await self._entry(
            lambda term: term.attachments.release(request.volume.path, request.volume.id, node=request.node)
        )

    async def OpenVolume(self, request: pb.OpenVolumeRequest, context: Context[Any, Any]) -> pb.OpenVolumeReply:
        limit = time_left(context)
        term = self._leadership.term()
        opened: Opened = await term.run(
            term.attachments.open(
                request.volume.path,
                request.volume.id,
                epoch=request.epoch,
                write=request.rights == pb.RIGHTS_READ_WRITE,
                client=request.client,
                timeout=limit,
            )
        )
        return pb.OpenVolumeReply(
            volume=messages.volume(term.core, term.sessions, opened.entry),
            session=opened.session.id,
            session_ttl_ms=int(term.core.config.session_ttl * 1000),
            epoch=opened.session.epoch,
            generation=opened.session.generation,
            token=opened.token,
            token_expires_ms=opened.token_expires_ms,
        )

    async def RefreshSession(
        self, request: pb.RefreshSessionRequest, context: Context[Any, Any]
    ) -> pb.RefreshSessionReply:
        term = self._leadership.term()
        opened = await term.run(term.attachments.refresh(request.volume_id, request.session))
        return pb.RefreshSessionReply(
            volume=messages.volume(term.core, term.sessions, opened.entry),
            token=opened.token,
            token_expires_ms=opened.token_expires_ms,
        )

    async def CloseVolume(self, request: pb.CloseVolumeRequest, context: Context[Any, Any]) -> pb.Empty:
        await self._run(lambda term: term.attachments.close(request.volume_id, request.session))
        return pb.Empty()

    async def GetSegment(self, request: pb.GetSegmentRequest, context: Context[Any, Any]) -> pb.GetSegmentReply:
        term = self._leadership.term()
        found = term.segments.get(request.volume_id, request.offset)
        if found is None and request.allocate:
            found = await term.run(
                term.segments.allocate(
                    request.volume_id,
                    request.offset,
                    session=request.session,
                    epoch=request.epoch,
                    timeout=time_left(context),
                )
            )
        if found is None:
            return pb.GetSegmentReply(allocated=False)
        return pb.GetSegmentReply(allocated=True, segment=messages.segment(found))

    async def DeallocateSegment(self, request: pb.DeallocateSegmentRequest, context: Context[Any, Any]) -> pb.Empty:
        await self._run(
            lambda term: term.segments.deallocate(
                request.volume_id, request.offset, session=request.session, epoch=request.epoch
            )
        )
        return pb.Empty()


class TopologyService(_Service, rpc.TopologyServicer):
    async def RegisterChunkServer(
        self, request: pb.RegisterChunkServerRequest, context: Context[Any, Any]
    ) -> pb.RegisterChunkServerReply:
        wish = Registration(
            uuid=request.uuid,
            secret=request.secret,
            address=request.address,
            server=request.server,
            zone=request.zone,
            physical_pool=request.physical_pool,
            poolset=request.poolset,
            disk_type=request.disk_type,
            disk_path=request.disk_path,
            capacity=request.capacity,
            version=request.version,
        )
        term = self._leadership.term()
        record = await term.run(term.topology.register(wish))
        cluster = term.core.tables.cluster
        return pb.RegisterChunkServerReply(
            chunkserver_id=record.id, secret=record.secret, cluster_id=cluster.cluster_id if cluster else ""
        )

    async def CreatePool(self, request: pb.CreatePoolRequest, context: Context[Any, Any]) -> pb.PoolReply:
        term = self._leadership.term()
        pool = await term.run(
            term.topology.create_pool(
                request.name,
                physical_pool=request.physical_pool,
                poolset=request.poolset,
                replicas=request.replicas,
                copysets=request.copysets,
                scatter_width=request.scatter_width,
                zones=request.zones,
            )
        )
        await term.topology.wait_for_leaders(pool, min(term.core.config.pool_wait, time_left(context)))
        return pb.PoolReply(pool=messages.pool(term.core, pool))

    async def ListPools(self, request: pb.Empty, context: Context[Any, Any]) -> pb.ListPoolsReply:
        core = self._leadership.term().core
        return pb.ListPoolsReply(pools=messages.pools(core))

    async def ListServers(self, request: pb.Empty, context: Context[Any, Any]) -> pb.ListServersReply:
        return pb.ListServersReply(servers=messages.servers(self._leadership.term().core))

    async def ListChunkServers(
        self, request: pb.ListChunkServersRequest, context: Context[Any, Any]
    ) -> pb.ListChunkServersReply:
        core = self._leadership.term().core
        wanted = request.physical_pool
        return pb.ListChunkServersReply(
            chunkservers=[
                messages.chunkserver(core, record)
                for _, record in sorted(core.tables.chunkservers.items())
                if not wanted or record.physical_pool == wanted
            ]
        )

    async def SetChunkServerState(self, request: pb.SetChunkServerStateRequest, context: Context[Any, Any]) -> pb.Empty:
        await self._run(lambda term: term.topology.set_state(request.chunkserver_id, request.admin))
        return pb.Empty()

    async def GetCopysets(self, request: pb.GetCopysetsRequest, context: Context[Any, Any]) -> pb.GetCopysetsReply:
        core = self._leadership.term().core
        if request.copyset_ids:
            keys = [(request.pool_id, i) for i in request.copyset_ids if (request.pool_id, i) in core.tables.copysets]
        else:
            keys = sorted(key for key in core.tables.copysets if key[0] == request.pool_id)
        return pb.GetCopysetsReply(copysets=[messages.copyset(core, core.tables.copysets[key]) for key in keys])

    async def ListCopysets(self, request: pb.ListCopysetsRequest, context: Context[Any, Any]) -> pb.GetCopysetsReply:
        core = self._leadership.term().core
        found = []
        for key, record in sorted(core.tables.copysets.items()):
            if request.pool_id not in (0, key[0]) or (
                request.chunkserver_id and request.chunkserver_id not in record.members
            ):
                continue
            message = messages.copyset(core, record)
            if not (request.only_unhealthy and message.healthy):
                found.append(message)
        return pb.GetCopysetsReply(copysets=found)


async def take_report(term: Term, request: pb.HeartbeatRequest) -> pb.HeartbeatReply:
    given = await term.run(
        term.heartbeats.report(
            request.chunkserver_id,
            request.secret,
            address=request.address,
            full=request.full,
            beat=messages.beat(request),
            replicas=messages.replicas(request, term.core.tables),
        )
    )
    return messages.answer(given, term.cleaner.removed)


class HeartbeatService(_Service, rpc.HeartbeatServicer):
    async def Report(self, request: pb.HeartbeatRequest, context: Context[Any, Any]) -> pb.HeartbeatReply:
        return await take_report(self._leadership.term(), request)


class ScheduleService(_Service, rpc.ScheduleServicer):
    async def GetStatus(self, request: pb.Empty, context: Context[Any, Any]) -> pb.ScheduleStatusReply:
        term = self._leadership.term()
        return pb.ScheduleStatusReply(
            schedulers=[pb.SchedulerStatus(name=name, enabled=term.scheduling.enabled(name)) for name in NAMES],
            operators=[
                pb.OperatorInfo(
                    pool_id=key[0],
                    copyset_id=key[1],
                    scheduler=operator.step.scheduler,
                    step=str(operator.step),
                    started_ms=int(operator.started_wall * 1000),
                )
                for key, operator in sorted(term.core.operators.running.items())
            ],
        )

    async def SetScheduler(self, request: pb.SetSchedulerRequest, context: Context[Any, Any]) -> pb.Empty:
        await self._run(lambda term: term.scheduling.switch(request.name, request.enabled))
        return pb.Empty()

    async def RapidLeader(self, request: pb.RapidLeaderRequest, context: Context[Any, Any]) -> pb.Empty:
        self._leadership.term().scheduling.rapid_leader(request.pool_id)
        return pb.Empty()


class AdminService(_Service, rpc.AdminServicer):
    async def GetLeader(self, request: pb.Empty, context: Context[Any, Any]) -> pb.LeaderReply:
        name, address = self._leadership.leader()
        return pb.LeaderReply(name=name, address=address)

    async def GetStatus(self, request: pb.Empty, context: Context[Any, Any]) -> pb.StatusReply:
        term = self._leadership.term()
        core = term.core
        members = await self._leadership.members()
        leader = self._leadership.leader()[1]
        reasons = health.judge(core)
        counts = health.counts(core)
        chunkservers = [messages.chunkserver(core, r) for r in core.tables.chunkservers.values()]
        in_use = [c for c in chunkservers if c.admin != pb.ADMIN_STATE_RETIRED]
        pools = messages.pools(core)
        volumes = [e for e in core.tables.entries.values() if not e.directory and not e.deleted_ms]
        return pb.StatusReply(
            cluster_id=core.tables.cluster.cluster_id if core.tables.cluster else "",
            health=health.word(reasons),
            reasons=[pb.Reason(code=r.code, message=r.message, critical=r.critical) for r in reasons],
            mds=[pb.MdsMember(name=n, address=a, leader=a == leader) for n, a in sorted(members)],
            pools=pools,
            chunkservers=len(in_use),
            chunkservers_online=sum(1 for c in in_use if c.online == pb.ONLINE_STATE_ONLINE),
            copysets=counts.total,
            copysets_healthy=counts.healthy,
            copysets_available=counts.available,
            volumes=len(volumes),
            capacity=sum(pool.capacity for pool in pools),
            used=sum(pool.used for pool in pools),
            versions=sorted({c.version for c in in_use if c.version}),
            operators_running=len(core.operators.running),
            volume_bytes=sum(core.tables.live_bytes.values()),
        )


def add_services(server: grpc.aio.Server, leadership: Leadership) -> None:
    rpc.add_NamespaceServicer_to_server(NamespaceService(leadership), server)
    rpc.add_TopologyServicer_to_server(TopologyService(leadership), server)
    rpc.add_HeartbeatServicer_to_server(HeartbeatService(leadership), server)
    rpc.add_ScheduleServicer_to_server(ScheduleService(leadership), server)
    rpc.add_AdminServicer_to_server(AdminService(leadership), server)
