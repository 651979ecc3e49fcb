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
    volume_copysets: dict[int, Tally[CopysetKey]] = field(default_factory=dict)
    pool_segments: Tally[int] = field(default_factory=Tally)
    live_bytes: Tally[str] = field(default_factory=Tally)  # poolset → sizes of volumes outside the recycle bin
    placement_version: int = 0  # grows when members or addresses change

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
            case Freed():
                self.freed[record.volume, record.first_chunk] = record
            case Session():
                self.sessions.setdefault(record.volume, {})[record.id] = record
            case ChunkServerRecord():
                self.chunkservers[record.id] = record
                self.by_uuid[record.uuid] = record.id
                self.placement_version += 1
            case PoolRecord():
                self.pools[record.id] = record
            case CopysetRecord():
                self.copysets[record.pool, record.id] = record
                for member in record.members:
                    self.copysets_of.setdefault(member, set()).add((record.pool, record.id))
                self.placement_version += 1
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
                self.placement_version += 1
            case CopysetRecord():
                del self.copysets[record.pool, record.id]
                for member in record.members:
                    self.copysets_of[member].discard((record.pool, record.id))
                self.placement_version += 1

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
        return sum(self.chunks_in[key] for key in self.copysets_of.get(chunkserver, ())) * CHUNK_SIZE

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
