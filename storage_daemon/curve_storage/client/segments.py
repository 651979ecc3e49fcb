"""Segments of a volume: which chunks they have, from the MDS, kept for as long as the volume is open.

A chunk's place never changes while its segment exists. That a segment is *not* allocated is remembered too: the
writer is the only one to allocate, so it knows; a reader beside a writer asks again after a second.

A large volume has very many segments: all are kept packed (some 300 bytes each), those used lately also as lists.
"""

from __future__ import annotations

import asyncio
import struct

from curve_storage.clock import Clock
from curve_storage.errors import CurveError
from curve_storage.proto import mds_pb2
from curve_storage.units import CHUNKS_PER_SEGMENT, SEGMENT_SIZE
from curve_storage.wire.messages import group_id, split_group

ABSENT_SECONDS = 1.0
UNPACKED = 1024
"""Segments kept as lists, some 8 KiB each."""

_PLAIN = struct.Struct(f"<IQ{CHUNKS_PER_SEGMENT}I")  # one pool, consecutive chunk ids: pool, first chunk, copysets
_ANY = struct.Struct(f"<{2 * CHUNKS_PER_SEGMENT}Q")  # groups, chunk ids

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


def pack(chunks: Chunks) -> bytes:
    first, pool = chunks[0][1], split_group(chunks[0][0])[0]
    places = [split_group(group) for group, _ in chunks]
    ids = [chunk for _, chunk in chunks]
    if ids == list(range(first, first + len(ids))) and all(place[0] == pool for place in places):
        return _PLAIN.pack(pool, first, *(copyset for _, copyset in places))
    return _ANY.pack(*(group for group, _ in chunks), *ids)


def unpack(packed: bytes) -> Chunks:
    if len(packed) == _PLAIN.size:
        pool, first, *copysets = _PLAIN.unpack(packed)
        return [(group_id(pool, copyset), first + number) for number, copyset in enumerate(copysets)]
    values = _ANY.unpack(packed)
    return list(zip(values[:CHUNKS_PER_SEGMENT], values[CHUNKS_PER_SEGMENT:], strict=True))


class SegmentMap:
    def __init__(self, clock: Clock, *, exclusive: bool) -> None:
        self._clock = clock
        self._exclusive = exclusive
        self._packed: dict[int, bytes] = {}
        self._lists: dict[int, Chunks] = {}  # of some of them
        self._absent: dict[int, Absent] = {}
        self.loading: dict[tuple[int, bool], asyncio.Task[Chunks | None]] = {}

    def get(self, index: int) -> Chunks | None:
        chunks = self._lists.get(index)
        if chunks is None and (packed := self._packed.get(index)) is not None:
            chunks = unpack(packed)
            self._keep(index, chunks)
        return chunks

    def _keep(self, index: int, chunks: Chunks) -> None:
        if len(self._lists) >= UNPACKED:
            del self._lists[next(iter(self._lists))]
        self._lists[index] = chunks

    def known_absent(self, index: int) -> bool:
        absent = self._absent.get(index)
        return absent is not None and (self._exclusive or absent.until > self._clock.monotonic())

    def store(self, index: int, reply: mds_pb2.GetSegmentReply) -> Chunks | None:
        if not reply.allocated:
            if index not in self._packed:
                self._absent[index] = Absent(self._clock.monotonic() + ABSENT_SECONDS)
            return self.get(index)
        chunks = chunks_of(reply.segment)
        self._absent.pop(index, None)
        self._packed[index] = pack(chunks)
        self._lists.pop(index, None)
        self._keep(index, chunks)
        return chunks

    def __len__(self) -> int:
        return len(self._packed)


def segment_offset(index: int) -> int:
    return index * SEGMENT_SIZE
