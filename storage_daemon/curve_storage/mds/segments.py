"""Segments: looked up, allocated at the first write, given back by discard."""

from __future__ import annotations

from collections import Counter as Tally

from curve_storage.errors import Fenced, NoSpace, OutOfRange, PermissionDenied, Unavailable
from curve_storage.mds.allocation import SegmentAllocator, copyset_weight
from curve_storage.mds.attachment import Attachments
from curve_storage.mds.core import Core
from curve_storage.mds.monitor import Disk
from curve_storage.mds.namespace import Namespace
from curve_storage.mds.records import Entry, Freed, PoolRecord, Segment, pack_ids
from curve_storage.mds.sessions import Sessions
from curve_storage.mds.state import CopysetKey
from curve_storage.units import CHUNKS_PER_SEGMENT, SEGMENT_SIZE, format_size

CONSIDERED = 256
"""Copysets of a pool out of which a segment's are chosen, at random in larger pools."""


class Segments:
    def __init__(self, core: Core, namespace: Namespace, sessions: Sessions, attachments: Attachments) -> None:
        self._core = core
        self._namespace = namespace
        self._sessions = sessions
        self._attachments = attachments
        self._allocator = SegmentAllocator(core.rng)

    def get(self, volume: int, offset: int) -> Segment | None:
        """The segment that holds `offset`; None when it is not allocated."""
        entry = self._namespace.find_volume("", volume)
        self._check_offset(entry, offset)
        return self._core.tables.segments.get(volume, {}).get(offset // SEGMENT_SIZE)

    async def allocate(self, volume: int, offset: int, *, session: str, epoch: int, timeout: float) -> Segment:
        entry = self._namespace.find_volume("", volume)
        async with self._core.locks.hold(volume):
            entry = self._namespace.find_volume("", volume)
            self._check_offset(entry, offset)
            await self._check_writer(entry, session, epoch)
            index = offset // SEGMENT_SIZE
            present = self._core.tables.segments.get(volume, {}).get(index)
            if present is not None:
                return present
            entry = await self._attachments.fence(entry, timeout)
            pool, copysets = self.choose(entry)
            await self._fence_new(entry, sorted(set(copysets)), timeout)
            segment = Segment(
                volume=volume,
                index=index,
                pool=pool.id,
                first_chunk=await self._core.state.reserve("chunk", CHUNKS_PER_SEGMENT, batch=CHUNKS_PER_SEGMENT * 256),
                copysets=pack_ids([copyset for _, copyset in copysets]),
            )
            await self._core.state.commit(segment)
            return segment

    async def deallocate(self, volume: int, offset: int, *, session: str, epoch: int) -> None:
        entry = self._namespace.find_volume("", volume)
        async with self._core.locks.hold(volume):
            entry = self._namespace.find_volume("", volume)
            self._check_offset(entry, offset)
            await self._check_writer(entry, session, epoch)
            segment = self._core.tables.segments.get(volume, {}).get(offset // SEGMENT_SIZE)
            if segment is None:
                return
            freed = Freed(volume=volume, first_chunk=segment.first_chunk, pool=segment.pool, copysets=segment.copysets)
            await self._core.state.commit(freed, delete=[segment])

    def _check_offset(self, entry: Entry, offset: int) -> None:
        if offset >= entry.size:
            raise OutOfRange(
                f"offset {offset} is beyond the volume's end at {entry.size}",
                where=self._core.tables.path(entry),
                todo="Refresh the volume's size",
            )

    async def _check_writer(self, entry: Entry, session: str, epoch: int) -> None:
        self._attachments.check_epoch(entry, epoch)
        known = await self._sessions.renew(entry, session)
        if not known.write:
            raise PermissionDenied(
                "this session may only read", where=self._core.tables.path(entry), todo="Open the volume for writing"
            )
        if known.epoch != epoch:
            raise Fenced("the session is of another epoch", where=self._core.tables.path(entry), todo="Open it again")

    async def _fence_new(self, entry: Entry, copysets: list[CopysetKey], timeout: float) -> None:
        """A copyset that never held data of this volume knows nothing of its epoch: an old writer that learns of the
        new segment could write there. So it is told first."""
        if entry.epoch <= 1:
            return
        known = self._core.tables.volume_copysets.get(entry.id, Tally())
        new = [key for key in copysets if key not in known]
        if new:
            if self._core.fencer is None:
                raise Unavailable("this MDS cannot reach chunkservers", todo="Repeat the request")
            await self._core.fencer.fence(entry.id, entry.epoch, new, min(timeout, self._core.config.fence_timeout))

    def choose(self, entry: Entry) -> tuple[PoolRecord, list[CopysetKey]]:
        where = self._core.tables.path(entry)
        now = self._core.clock.monotonic()
        best: tuple[float, PoolRecord, dict[CopysetKey, float]] | None = None
        waiting: list[str] = []
        for pool in self._core.require_pools(entry.poolset):
            every = list(self._core.tables.pool_copysets.get(pool.id, ()))
            some = every if len(every) <= CONSIDERED else self._core.rng.sample(every, CONSIDERED)
            weights, full = self._weigh(some, now)
            if not weights and len(some) < len(every):
                weights, full = self._weigh(every, now)
            if not weights:
                waiting.append(
                    f"every disk of pool {pool.name} is full"
                    if full
                    else f"no copyset of pool {pool.name} has a leader"
                )
                continue
            total = sum(weights.values()) / len(some) * len(every)
            if best is None or total > best[0]:
                best = (total, pool, weights)
        if best is None:
            if any("full" in reason for reason in waiting):
                raise NoSpace(
                    f"a segment of {format_size(SEGMENT_SIZE)} cannot be allocated: {'; '.join(waiting)}",
                    where=where,
                    todo="Add chunkservers or delete volumes; the write goes on by itself then",
                )
            raise Unavailable(
                f"a segment cannot be allocated: {'; '.join(waiting)}",
                where=where,
                todo="Start the chunkservers that are missing: curve status names them",
            )
        return best[1], self._allocator.choose(best[2], CHUNKS_PER_SEGMENT)

    def _weigh(self, keys: list[CopysetKey], now: float) -> tuple[dict[CopysetKey, float], int]:
        """Weights of those that can take chunks, and how many cannot because of a full disk."""
        weights: dict[CopysetKey, float] = {}
        free: dict[int, int] = {}
        full = 0
        for key in keys:
            record = self._core.tables.copysets[key]
            if not self._core.monitor.available(record, now):
                continue
            if any(self._full(member) for member in record.members):
                full += 1
                continue
            for member in record.members:
                if member not in free:
                    free[member] = self._free(member)
            weights[key] = copyset_weight(free, record.members)
        return weights, full

    def _full(self, chunkserver: int) -> bool:
        state = self._core.monitor.servers.get(chunkserver)
        return state is not None and state.beat.disk in (Disk.FULL, Disk.ERROR)

    def _free(self, chunkserver: int) -> int:
        """Bytes left; space given to volumes counts as used before it is written."""
        total, used = self._core.reported(chunkserver)
        return max(0, total - max(used, self._core.tables.allocated_on(chunkserver)))
