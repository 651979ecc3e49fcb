"""The whole state in memory while this MDS leads, and the only way to change it: `commit`.

A change is first a guarded transaction in etcd and only then visible in memory. When the outcome of a transaction is
unknown the state is given up (`abandoned`): the leader resigns, and whoever leads next reads what etcd really holds.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from curve_storage.errors import CurveError, InvalidArgument, NotLeader, ResourceExhausted, Unavailable
from curve_storage.mds.records import (
    DELETING,
    FIRST_ENTRY_ID,
    PREFIX,
    RECYCLE_ID,
    ROOT_ID,
    ChunkServerRecord,
    ClusterRecord,
    CopysetRecord,
    Counter,
    Entry,
    Freed,
    PoolRecord,
    Record,
    SchedulerRecord,
    Segment,
    Session,
    decode,
    encode,
)
from curve_storage.mds.store import MAX_CHANGES, Store
from curve_storage.units import CHUNK_SIZE, SEGMENT_SIZE

CopysetKey = tuple[int, int]
"""(pool id, copyset id)"""


@dataclass(slots=True)
class Tables:
    """Records by id, and the indices kept in step with them."""

    entries: dict[int, Entry] = field(default_factory=dict)
    children: dict[int, dict[str, int]] = field(default_factory=dict)
    segments: dict[int, dict[int, Segment]] = field(default_factory=dict)
    freed: dict[tuple[int, int], Freed] = field(default_factory=dict)
    sessions: dict[int, dict[str, Session]] = field(default_factory=dict)
    chunkservers: dict[int, ChunkServerRecord] = field(default_factory=dict)
    by_uuid: dict[str, int] = field(default_factory=dict)
    pools: dict[int, PoolRecord] = field(default_factory=dict)
    copysets: dict[CopysetKey, CopysetRecord] = field(default_factory=dict)
    copysets_of: dict[int, set[CopysetKey]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    cluster: ClusterRecord | None = None
    schedulers: dict[str, bool] = field(default_factory=dict)
    chunks_in: Tally[CopysetKey] = field(default_factory=Tally)
    chunks_on: Tally[int] = field(default_factory=Tally)  # by chunkserver
    members_in: dict[int, Tally[int]] = field(default_factory=dict)  # pool → its chunkservers → their copysets of it
    pool_copysets: dict[int, dict[CopysetKey, None]] = field(default_factory=dict)
    unsized: set[CopysetKey] = field(default_factory=set)  # with more or fewer members than the pool's replicas
    fresh: set[CopysetKey] = field(default_factory=set)  # not established
    volume_copysets: dict[int, Tally[CopysetKey]] = field(default_factory=dict)
    pool_segments: Tally[int] = field(default_factory=Tally)
    live_bytes: Tally[str] = field(default_factory=Tally)  # poolset → sizes of volumes outside the recycle bin
    address_version: int = 0  # grows when the address of a chunkserver changes
    # By chunkserver: grows when one of its copysets changes members.
    versions: Tally[int] = field(default_factory=Tally)

    def find(self, record: Record) -> Record | None:
        match record:
            case Entry():
                return self.entries.get(record.id)
            case Segment():
                return self.segments.get(record.volume, {}).get(record.index)
            case Freed():
                return self.freed.get((record.volume, record.first_chunk))
            case Session():
                return self.sessions.get(record.volume, {}).get(record.id)
            case ChunkServerRecord():
                return self.chunkservers.get(record.id)
            case CopysetRecord():
                return self.copysets.get((record.pool, record.id))
        return None

    def put(self, record: Record) -> None:
        if isinstance(record, CopysetRecord):
            self._put_copyset(record)
            return
        old = self.find(record)
        if old is not None:
            self.remove(old)
        match record:
            case Entry():
                self.entries[record.id] = record
                self.children.setdefault(record.parent, {})[record.name] = record.id
                if not record.directory and record.parent != RECYCLE_ID:
                    self.live_bytes[record.poolset] += record.size
            case Segment():
                self.segments.setdefault(record.volume, {})[record.index] = record
                self.pool_segments[record.pool] += 1
                tally = self.volume_copysets.setdefault(record.volume, Tally())
                for copyset in record.copyset_ids():
                    tally[record.pool, copyset] += 1
                    self.chunks_in[record.pool, copyset] += 1
                self._count_chunks(record, 1)
            case Freed():
                self.freed[record.volume, record.first_chunk] = record
            case Session():
                self.sessions.setdefault(record.volume, {})[record.id] = record
            case ChunkServerRecord():
                self.chunkservers[record.id] = record
                self.by_uuid[record.uuid] = record.id
                if not isinstance(old, ChunkServerRecord) or old.address != record.address:
                    self.address_version += 1
            case PoolRecord():
                self.pools[record.id] = record
                for key in self.pool_copysets.get(record.id, ()):
                    self._check_size(key, record.replicas)
            case Counter():
                self.counters[record.name] = record.reserved
            case ClusterRecord():
                self.cluster = record
            case SchedulerRecord():
                self.schedulers[record.name] = record.enabled

    def remove(self, record: Record) -> None:
        match record:
            case Entry():
                del self.entries[record.id]
                siblings = self.children[record.parent]
                del siblings[record.name]
                if not siblings:
                    del self.children[record.parent]
                if not record.directory and record.parent != RECYCLE_ID:
                    self.live_bytes[record.poolset] -= record.size
            case Segment():
                mine = self.segments[record.volume]
                del mine[record.index]
                self.pool_segments[record.pool] -= 1
                tally = self.volume_copysets[record.volume]
                for copyset in record.copyset_ids():
                    for counts in (tally, self.chunks_in):
                        counts[record.pool, copyset] -= 1
                        if not counts[record.pool, copyset]:
                            del counts[record.pool, copyset]
                self._count_chunks(record, -1)
                if not mine:
                    del self.segments[record.volume], self.volume_copysets[record.volume]
            case Freed():
                del self.freed[record.volume, record.first_chunk]
            case Session():
                mine_ = self.sessions[record.volume]
                del mine_[record.id]
                if not mine_:
                    del self.sessions[record.volume]
            case ChunkServerRecord():
                del self.chunkservers[record.id]
                del self.by_uuid[record.uuid]
                self.address_version += 1
            case CopysetRecord():
                key = (record.pool, record.id)
                self._move(key, record.members, ())
                del self.copysets[key], self.pool_copysets[record.pool][key]
                self.unsized.discard(key)
                self.fresh.discard(key)

    def _put_copyset(self, record: CopysetRecord) -> None:
        """Most changes are of the epoch alone: the indices by member are left as they are then."""
        key = (record.pool, record.id)
        old = self.copysets.get(key)
        self.copysets[key] = record
        if old is None:
            self.pool_copysets.setdefault(record.pool, {})[key] = None
        before = old.members if old is not None else ()
        if before != record.members:
            self._move(key, before, record.members)
        pool = self.pools.get(record.pool)
        if pool is not None:
            self._check_size(key, pool.replicas)
        (self.fresh.discard if record.established else self.fresh.add)(key)

    def _move(self, key: CopysetKey, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        chunks, pool = self.chunks_in.get(key, 0), self.members_in.setdefault(key[0], Tally())
        for member in before:
            if member not in after:
                self.copysets_of[member].discard(key)
                self.chunks_on[member] -= chunks
                pool[member] -= 1
                if not pool[member]:
                    del pool[member]
            self.versions[member] += 1
        for member in after:
            if member not in before:
                self.copysets_of.setdefault(member, set()).add(key)
                self.chunks_on[member] += chunks
                pool[member] += 1
                self.versions[member] += 1

    def _count_chunks(self, segment: Segment, each: int) -> None:
        for copyset in segment.copyset_ids():
            record = self.copysets.get((segment.pool, copyset))
            for member in record.members if record is not None else ():
                self.chunks_on[member] += each

    def _check_size(self, key: CopysetKey, replicas: int) -> None:
        (self.unsized.discard if len(self.copysets[key].members) == replicas else self.unsized.add)(key)

    # ---- questions asked everywhere

    def path(self, entry: Entry) -> str:
        names = [entry.name]
        parent = entry.parent
        while parent != ROOT_ID:
            if parent == RECYCLE_ID:
                names.append("RecycleBin")
                break
            above = self.entries[parent]
            names.append(above.name)
            parent = above.parent
        return "/" + "/".join(reversed(names))

    def allocated(self, volume: int) -> int:
        return len(self.segments.get(volume, ())) * SEGMENT_SIZE

    def allocated_in(self, pool: int) -> int:
        """Bytes of segments in a pool, without replication."""
        return self.pool_segments[pool] * SEGMENT_SIZE

    def allocated_on(self, chunkserver: int) -> int:
        """Bytes of chunks given to volumes on one chunkserver, written or not."""
        return self.chunks_on[chunkserver] * CHUNK_SIZE

    def recycled(self) -> list[Entry]:
        return [self.entries[i] for i in self.children.get(RECYCLE_ID, {}).values()]

    def deleting(self) -> list[Entry]:
        return [entry for entry in self.recycled() if entry.status == DELETING]

    def address_of(self, chunkserver: int) -> str:
        record = self.chunkservers.get(chunkserver)
        return record.address if record else ""


class ClusterState:
    """`tables` is for reading only; changes go through `commit`."""

    def __init__(self, store: Store, on_abandoned: Callable[[CurveError], None]) -> None:
        self._store = store
        self._on_abandoned = on_abandoned
        self._abandoned: CurveError | None = None
        self._next: dict[str, int] = {}
        self.tables = Tables()

    async def load(self) -> int:
        """Reads everything; returns the number of records. Raises Corruption naming the first damaged one."""
        count = 0
        async for key, value in self._store.load(PREFIX):
            self.tables.put(decode(key, value))
            count += 1
        self._next = dict(self.tables.counters)
        return count

    async def commit(self, *puts: Record, delete: Iterable[Record] = ()) -> None:
        """All or nothing, durable when it returns; at most MAX_CHANGES records. Raises NotLeader or Unavailable."""
        deletes = list(delete)
        if not puts and not deletes:
            return
        if len(puts) + len(deletes) > MAX_CHANGES:
            raise ValueError(f"{len(puts) + len(deletes)} changes in one transaction, at most {MAX_CHANGES}")
        if self._abandoned is not None:
            raise NotLeader("this MDS is giving up leadership", todo="Repeat the request; the next leader answers it")
        try:
            await self._store.commit({r.key: encode(r) for r in puts}, [r.key for r in deletes])
        except NotLeader as error:
            self.abandon(error)
            raise
        except (InvalidArgument, ResourceExhausted):
            raise  # refused: nothing was changed
        except CurveError as error:
            self.abandon(error)
            raise Unavailable(
                f"etcd did not confirm the change ({error.what}); whether it was made is not known",
                todo="Repeat the request; every request may be repeated",
            ) from error
        except BaseException as error:  # also cancellation: the transaction may have been sent
            self.abandon(Unavailable(f"a metadata transaction was interrupted: {error!r}"))
            raise
        for record in puts:
            self.tables.put(record)
        for record in deletes:
            present = self.tables.find(record)
            if present is not None:
                self.tables.remove(present)

    def abandon(self, error: CurveError) -> None:
        if self._abandoned is None:
            self._abandoned = error
            self._on_abandoned(error)

    async def reserve(self, name: str, count: int = 1, batch: int = 1000) -> int:
        """The first of `count` new consecutive ids. Ids are never given twice; a change of leader leaves a gap."""
        start = FIRST_ENTRY_ID if name == "entry" else 1
        while True:
            first = self._next.get(name, start)
            bound = self.tables.counters.get(name, start)
            if first + count <= bound:
                self._next[name] = first + count
                return first
            await self.commit(Counter(name=name, reserved=max(bound, first) + max(batch, count)))
