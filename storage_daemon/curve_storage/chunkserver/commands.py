"""Commands of a copyset's log: a small header; the payload is the data itself and never touched.

Header: op u8, version u8, then the request's ChunkMeta as it came (WRITE, DISCARD, DELETE), volume and epoch (FENCE),
or volume (DELETE_VOLUME, whose payload is the chunk ids, u64 each). Little-endian.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from struct import Struct

from curve_storage.consensus.api import Buffer
from curve_storage.errors import Corruption
from curve_storage.wire.messages import CHUNK, ChunkMeta

VERSION = 1

WRITE = 1
DISCARD = 2
DELETE = 3
FENCE = 4
DELETE_VOLUME = 5

PREFIX = Struct("<BB")
_FENCE = Struct("<QQ")
_VOLUME = Struct("<Q")

WRITE_PREFIX = PREFIX.pack(WRITE, VERSION)
DISCARD_PREFIX = PREFIX.pack(DISCARD, VERSION)
DELETE_PREFIX = PREFIX.pack(DELETE, VERSION)


def chunk_command(prefix: bytes, meta: Buffer) -> bytes:
    """Header of WRITE, DISCARD or DELETE from the request's packed ChunkMeta."""
    return prefix + meta


def chunk_meta(header: bytes) -> ChunkMeta:
    return ChunkMeta._make(CHUNK.unpack_from(header, PREFIX.size))


def fence(volume: int, epoch: int) -> bytes:
    return PREFIX.pack(FENCE, VERSION) + _FENCE.pack(volume, epoch)


def parse_fence(header: bytes) -> tuple[int, int]:
    volume, epoch = _FENCE.unpack_from(header, PREFIX.size)
    return volume, epoch


def delete_volume(volume: int, chunks: Iterable[int]) -> tuple[bytes, bytes]:
    """(header, payload)"""
    return PREFIX.pack(DELETE_VOLUME, VERSION) + _VOLUME.pack(volume), array("Q", chunks).tobytes()


def parse_delete_volume(header: bytes, payload: Buffer) -> tuple[int, Sequence[int]]:
    (volume,) = _VOLUME.unpack_from(header, PREFIX.size)
    chunks = array("Q")
    chunks.frombytes(bytes(payload))
    return volume, chunks


def check_version(header: bytes) -> int:
    """The op. Raises Corruption for a header of another version: applying it wrongly would make replicas differ."""
    if len(header) < PREFIX.size or header[1] != VERSION:
        raise Corruption(
            f"command of an unknown format: {header[:2].hex()}",
            where="log",
            todo="Run the version of the chunkserver that wrote it, or newer",
        )
    return header[0]
