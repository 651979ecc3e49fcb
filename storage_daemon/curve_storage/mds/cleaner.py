"""Removes for good what was deleted: chunks on the chunkservers first, then the metadata.

The recycle bin empties itself after the retention time. A volume being removed keeps its segments until every copyset
has confirmed that its chunks are gone, so that space is never counted free before it is. Everything may be repeated.

Segments that the volume itself gave back are emptied by its client before it does so; their chunk ids are kept until
the volume goes, and are deleted with it in case anything is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable

from curve_storage.errors import CurveError, NotLeader
from curve_storage.mds.core import Core
from curve_storage.mds.namespace import Namespace
from curve_storage.mds.records import Entry, Freed, Segment, unpack_ids
from curve_storage.mds.state import CopysetKey
from curve_storage.mds.store import MAX_CHANGES

CALL_TIMEOUT = 5.0
CHUNKS_PER_CALL = 50_000
REMEMBERED = 1000


class Cleaner:
    def __init__(self, core: Core, namespace: Namespace) -> None:
        self._core = core
        self._namespace = namespace
        self.removed: list[int] = []  # volumes removed in this term, for the chunkservers' own tidying
        self.waiting: dict[int, str] = {}  # volume → why its removal does not get on

    async def round(self) -> int:
        """One pass over everything that is due; returns the number of volumes removed."""
        await self._namespace.purge(int(self._core.config.recycle_retention * 1000))
        done = 0
        for entry in self._core.tables.deleting():
            done += await self._attempt(entry.id, self._remove_volume(entry))
        return done

    async def _attempt(self, volume: int, removal: Awaitable[None]) -> int:
        try:
            await removal
        except NotLeader:
            raise
        except CurveError as error:
            if self.waiting.get(volume) != str(error):
                self._core.on_event("removal_waits", {"volume": volume, "why": str(error)})
            self.waiting[volume] = str(error)
            return 0
        self.waiting.pop(volume, None)
        return 1

    async def _remove_volume(self, entry: Entry) -> None:
        segments = list(self._core.tables.segments.get(entry.id, {}).values())
        freed = [f for f in self._core.tables.freed.values() if f.volume == entry.id]
        await self._delete_chunks(entry.id, [*segments, *freed])
        records = [*segments, *freed]
        for start in range(0, len(records), MAX_CHANGES):
            await self._core.state.commit(delete=records[start : start + MAX_CHANGES])
        async with self._core.locks.hold(entry.id):
            present = self._core.tables.entries.get(entry.id)
            if present is not None:
                sessions = list(self._core.tables.sessions.get(entry.id, {}).values())[: MAX_CHANGES - 1]
                await self._core.state.commit(delete=[present, *sessions])
        self.removed = [*self.removed[-REMEMBERED:], entry.id]
        self._core.on_event("volume_removed", {"volume": entry.id, "path": entry.original_path})

    async def _delete_chunks(self, volume: int, owners: Iterable[Segment | Freed]) -> None:
        chunks: dict[CopysetKey, list[int]] = {}
        for owner in owners:
            for index, copyset in enumerate(unpack_ids(owner.copysets)):
                chunks.setdefault((owner.pool, copyset), []).append(owner.first_chunk + index)
        fencer = self._core.fencer
        if fencer is None or not chunks:
            return
        await asyncio.gather(
            *(
                fencer.delete(volume, key, ids[start : start + CHUNKS_PER_CALL], CALL_TIMEOUT)
                for key, ids in sorted(chunks.items())
                for start in range(0, len(ids), CHUNKS_PER_CALL)
            )
        )
