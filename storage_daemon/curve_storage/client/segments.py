"""Segments of a volume: which chunks they have, from the MDS, kept for as long as the volume is open.

A chunk's place never changes while its segment exists. That a segment is *not* allocated is remembered too: the
writer is the only one to allocate, so it knows; a reader beside a writer asks again after a second.
"""

from __future__ import annotations

import asyncio

from curve_storage.clock import Clock
from curve_storage.errors import CurveError
from curve_storage.proto import mds_pb2
from curve_storage.units import CHUNKS_PER_SEGMENT, SEGMENT_SIZE
from curve_storage.wire.messages import group_id

ABSENT_SECONDS = 1.0

Chunks = list[tuple[int, int]]
"""(group, chunk id) of each chunk of a segment, in order of offset."""


class Absent:
    """A segment that is not allocated: all zeros."""

    __slots__ = ("until",)

    def __init__(self, until: float) -> None:
        self.until = until


def chunks_of(segment: mds_pb2.Segment) -> Chunks:
    """Raises CurveError when the reply is not a whole segment."""
    if len(segment.chunks) != CHUNKS_PER_SEGMENT:
        raise CurveError(
            f"the MDS described a segment of {len(segment.chunks)} chunks instead of {CHUNKS_PER_SEGMENT}",
            where=f"volume {segment.volume_id} offset {segment.offset}",
            todo="Use a client of the cluster's version",
        )
    return [(group_id(segment.pool_id, chunk.copyset_id), chunk.id) for chunk in segment.chunks]


class SegmentMap:
    def __init__(self, clock: Clock, *, exclusive: bool) -> None:
        self._clock = clock
        self._exclusive = exclusive
        self._known: dict[int, Chunks] = {}
        self._absent: dict[int, Absent] = {}
        self.loading: dict[tuple[int, bool], asyncio.Task[Chunks | None]] = {}

    def get(self, index: int) -> Chunks | None:
        return self._known.get(index)

    def known_absent(self, index: int) -> bool:
        absent = self._absent.get(index)
        return absent is not None and (self._exclusive or absent.until > self._clock.monotonic())

    def store(self, index: int, reply: mds_pb2.GetSegmentReply) -> Chunks | None:
        if not reply.allocated:
            if index not in self._known:
                self._absent[index] = Absent(self._clock.monotonic() + ABSENT_SECONDS)
            return self._known.get(index)
        self._absent.pop(index, None)
        chunks = self._known[index] = chunks_of(reply.segment)
        return chunks

    def __len__(self) -> int:
        return len(self._known)


def segment_offset(index: int) -> int:
    return index * SEGMENT_SIZE
