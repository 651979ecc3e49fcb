"""Between the protobuf messages of proto/mds.proto and the MDS's own types."""

from __future__ import annotations

from collections import Counter as Tally
from typing import cast

from curve_storage.errors import InvalidArgument
from curve_storage.mds.core import Core
from curve_storage.mds.heartbeat import Answer
from curve_storage.mds.monitor import Beat, Disk, Replica
from curve_storage.mds.operators import Change
from curve_storage.mds.picture import RETIRED, attention
from curve_storage.mds.records import RECYCLE_ID, ChunkServerRecord, CopysetRecord, Entry, PoolRecord, Segment
from curve_storage.mds.sessions import Sessions
from curve_storage.mds.state import CopysetKey, Tables
from curve_storage.proto import mds_pb2 as pb
from curve_storage.units import CHUNK_SIZE, SEGMENT_SIZE


def volume(core: Core, sessions: Sessions, entry: Entry) -> pb.Volume:
    return pb.Volume(
        id=entry.id,
        path=core.tables.path(entry) or "/",
        owner=entry.owner,
        size=entry.size,
        status=cast("pb.VolumeStatus.ValueType", entry.status),
        epoch=0 if entry.directory else entry.epoch,
        generation=entry.generation,
        attached_node=entry.attached_node,
        directory=entry.directory,
        created_ms=entry.created_ms,
        segment_size=0 if entry.directory else SEGMENT_SIZE,
        chunk_size=0 if entry.directory else CHUNK_SIZE,
        poolset=entry.poolset,
        allocated=core.tables.allocated(entry.id),
        labels=entry.labels,
        throttle=pb.Throttle(iops=entry.iops, bytes_per_second=entry.bytes_per_second),
        original_path=entry.original_path if entry.parent == RECYCLE_ID else "",
        deleted_ms=entry.deleted_ms,
        read_only_attach=entry.read_only_attach,
        open_sessions=len(sessions.of(entry.id)),
    )


def segment(record: Segment) -> pb.Segment:
    return pb.Segment(
        volume_id=record.volume,
        offset=record.index * SEGMENT_SIZE,
        pool_id=record.pool,
        chunk_size=CHUNK_SIZE,
        chunks=[pb.Chunk(id=chunk, copyset_id=copyset) for chunk, copyset in record.chunks()],
    )


def chunkserver(core: Core, record: ChunkServerRecord) -> pb.ChunkServer:
    state = core.monitor.servers.get(record.id)
    capacity, used = core.reported(record.id)
    online = core.monitor.online(record.id, core.clock.monotonic())
    return pb.ChunkServer(
        id=record.id,
        uuid=record.uuid,
        address=record.address,
        server=record.server,
        zone=record.zone,
        physical_pool=record.physical_pool,
        online=cast("pb.OnlineState.ValueType", online.value),
        disk=cast("pb.DiskState.ValueType", state.beat.disk.value if state else 0),
        admin=cast("pb.AdminState.ValueType", record.admin),
        capacity=capacity,
        used=used,
        copysets=len(core.tables.copysets_of.get(record.id, ())),
        leaders=len(state.leads) if state else 0,
        version=record.version,
        last_heartbeat_ms=int(state.last_wall * 1000) if state else 0,
        format_percent=state.beat.format_percent if state else 0,
        disk_path=record.disk_path,
    )


def pool(core: Core, record: PoolRecord) -> pb.Pool:
    return _pool(core, record, _broken(core)[record.id])


def pools(core: Core) -> list[pb.Pool]:
    broken = _broken(core)
    return [_pool(core, record, broken[record.id]) for record in core.tables.pools.values()]


def _broken(core: Core) -> Tally[int]:
    """Copysets that are not healthy, by pool."""
    now = core.clock.monotonic()
    found: Tally[int] = Tally()
    for key in attention(core.tables, core.monitor, now):
        record = core.tables.copysets[key]
        if not core.monitor.healthy(record, now, core.tables.pools[record.pool].replicas):
            found[record.pool] += 1
    return found


def _pool(core: Core, record: PoolRecord, broken: int) -> pb.Pool:
    copysets = len(core.tables.pool_copysets.get(record.id, ()))
    used = sum(core.reported(member)[1] for member in core.members_of_pool(record))
    return pb.Pool(
        id=record.id,
        name=record.name,
        physical_pool=record.physical_pool,
        poolset=record.poolset,
        replicas=record.replicas,
        copysets=copysets,
        scatter_width=record.scatter_width,
        capacity=core.pool_capacity(record),
        allocated=core.tables.allocated_in(record.id),
        used=used // record.replicas,
        copysets_healthy=copysets - broken,
    )


def copyset(core: Core, record: CopysetRecord) -> pb.Copyset:
    now = core.clock.monotonic()
    key = (record.pool, record.id)
    report = core.monitor.leaders.get(key)
    return pb.Copyset(
        pool_id=record.pool,
        copyset_id=record.id,
        epoch=record.epoch,
        members=[pb.CopysetMember(chunkserver_id=m, address=core.tables.address_of(m)) for m in record.members],
        leader=core.monitor.leader(key, now),
        healthy=core.monitor.healthy(record, now, core.tables.pools[record.pool].replicas),
        learners=report.learners if report else (),
    )


def servers(core: Core) -> list[pb.ServerInfo]:
    now = core.clock.monotonic()
    found: dict[tuple[str, str], pb.ServerInfo] = {}
    for record in core.tables.chunkservers.values():
        if record.admin == RETIRED:
            continue
        info = found.setdefault(
            (record.physical_pool, record.server),
            pb.ServerInfo(name=record.server, zone=record.zone, physical_pool=record.physical_pool),
        )
        info.chunkservers += 1
        info.online += core.monitor.online(record.id, now).value == 0
    return [found[key] for key in sorted(found)]


def beat(request: pb.HeartbeatRequest) -> Beat:
    return Beat(
        disk=Disk(request.disk),
        disk_message=request.disk_message,
        capacity=request.capacity,
        used=request.used,
        format_percent=request.format_percent,
        version=request.version,
    )


_CHANGES = {change.value: change for change in Change}


def replicas(request: pb.HeartbeatRequest, tables: Tables) -> list[tuple[CopysetKey, Replica]]:
    """Voters as the metadata know them are not kept twice: there may be millions of replicas."""
    found = []
    try:
        for report in request.copysets:
            key = (report.pool_id, report.copyset_id)
            record = tables.copysets.get(key)
            voters = tuple(report.voters)
            replica = Replica(
                report.leader,
                report.term,
                report.epoch,
                record.members if record is not None and record.members == voters else voters,
                tuple(report.learners),
                _CHANGES[report.change],
                report.change_error,
                report.corrupt,
            )
            found.append((key, replica))
        return found
    except KeyError as error:
        raise InvalidArgument(
            f"the heartbeat cannot be read: there is no change {error}",
            where=f"chunkserver {request.chunkserver_id}",
            todo="Run the same version of MDS and chunkserver",
        ) from error


def answer(given: Answer, deleted: list[int]) -> pb.HeartbeatReply:
    return pb.HeartbeatReply(
        orders=[
            pb.CopysetOrder(
                kind=cast("pb.CopysetOrder.Kind.ValueType", order.kind.value),
                pool_id=order.copyset[0],
                copyset_id=order.copyset[1],
                epoch=order.epoch,
                target=order.target,
                old=order.old,
                members=order.members,
            )
            for order in given.orders
        ],
        addresses=given.addresses,
        want_full=given.want_full,
        retired=given.retired,
        deleted_volumes=deleted,
    )
