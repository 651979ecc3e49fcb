"""Message types of the data plane and the fixed layouts of their metas. All integers little-endian.

A meta is either a struct given here (chunk and raft traffic) or msgspec MessagePack (everything rare).
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from curve_storage.units import MiB


class MessageType(IntEnum):
    HELLO = 1  # msgpack {token: bytes, client: str}: once per connection, before anything but PING
    PING = 2

    CHUNK_WRITE = 16  # meta CHUNK, payload = data; reply: empty
    CHUNK_READ = 17  # meta CHUNK; reply payload = data; ChunkNotExist means zeros
    CHUNK_DISCARD = 18  # meta CHUNK with length: blocks become zeros
    CHUNK_DELETE = 19  # meta CHUNK
    CHUNK_INFO = 20  # msgpack {group, chunk}; reply msgpack {exists, sn, length, blocks}
    CHUNK_CHECKSUMS = 21  # msgpack {group, chunk}; reply payload = CRC32C table, 4 bytes per block
    # msgpack {group, chunk, offset, length, applied?}: local bytes of a replica that has applied that index, for repair
    # (cluster token); reply meta = one u32 per block, its checksum or 0 (unwritten); no payload if all are 0
    CHUNK_FETCH = 22
    FENCE = 32  # msgpack {group, volume, epoch}: replicated; older epochs are refused from then on (cluster token)
    DELETE_VOLUME = 33  # msgpack {group, volume, chunks: [id]} (cluster token)
    GET_LEADER = 34  # msgpack {group}; reply msgpack {leader: int, term: int}

    RAFT_BATCH = 48  # one-way, cluster token
    SNAPSHOT_BEGIN = 49
    SNAPSHOT_PIECE = 50
    SNAPSHOT_COMMIT = 51


ONE_WAY: frozenset[int] = frozenset({MessageType.RAFT_BATCH})
"""Never answered: the server refuses them as requests that wait for a reply."""

MAX_META: dict[int, int] = {
    MessageType.RAFT_BATCH: 4 * MiB,
    MessageType.DELETE_VOLUME: 4 * MiB,
}
DEFAULT_MAX_META = 64 * 1024
MAX_PAYLOAD: dict[int, int] = {
    MessageType.CHUNK_WRITE: 4 * MiB,
    MessageType.CHUNK_READ: 4 * MiB,
    MessageType.CHUNK_CHECKSUMS: 64 * 1024,
    MessageType.CHUNK_FETCH: 4 * MiB,
    MessageType.RAFT_BATCH: 64 * MiB,
    MessageType.SNAPSHOT_PIECE: 4 * MiB,
}
"""Bytes accepted per type, requests and replies alike; types not named carry no payload."""


class ChunkMeta(NamedTuple):
    """What every chunk request says about itself.

    group: pool_id << 32 | copyset_id. volume, epoch, generation: the writer. seq: this request's number among the
    writer's mutations, from 1; low: the lowest number not yet acknowledged to it. sn: snapshot sequence number of the
    volume (0 without snapshots). offset, length: bytes in the chunk, multiples of 4096.
    """

    group: int
    chunk: int
    volume: int
    epoch: int
    generation: int
    offset: int
    length: int
    sn: int
    seq: int
    low: int

    def pack(self) -> bytes:
        return CHUNK.pack(*self)


CHUNK = Struct("<QQQQIIIIQQ")


def unpack_chunk(meta: bytes | bytearray | memoryview) -> ChunkMeta:
    """Raises struct.error when `meta` has another size; the server turns that into InvalidArgument."""
    return ChunkMeta._make(CHUNK.unpack(meta))


def group_id(pool_id: int, copyset_id: int) -> int:
    return pool_id << 32 | copyset_id


def split_group(group: int) -> tuple[int, int]:
    return group >> 32, group & 0xFFFFFFFF
