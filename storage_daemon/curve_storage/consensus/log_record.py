"""The record format of the shared log.

Header (56 bytes, little-endian): magic, type, entry kind, header length, segment sequence number, chain, group,
term, index, payload length, data CRC32C (header + payload), salt, CRC32C of the 52 bytes before. Then the command
header, the payload, and zeros to a multiple of 8. `chain` counts the records of a group: a gap tells that one was
lost. `salt` is drawn anew for each segment, so that nothing left in a recycled file is ever taken for its content.

What term and index mean: SEGMENT index = where the previous segment ends, term = number of STATE records that follow;
HARD term, index = vote; TRUNCATE
index = first entry removed, term = that of the entry before it; RESTORE_BEGIN and RESTORE index and term of the
snapshot, header = membership; STATE: header = msgpack, written for every group at the start of a segment.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from crc32c import crc32c

from curve_storage.consensus.api import Buffer

MAGIC: Final = 0x4C575643  # "CVWL"
MAGIC_BYTES: Final = MAGIC.to_bytes(4, "little")

SEGMENT: Final = 1
BATCH: Final = 2
ENTRY: Final = 3
STATE: Final = 4
HARD: Final = 5
TRUNCATE: Final = 6
CREATE: Final = 7
REMOVE: Final = 8
RESTORE_BEGIN: Final = 9
RESTORE: Final = 10

_HEAD = Struct("<IBBHIIQQQIII")
_CRC = Struct("<I")
HEADER_SIZE: Final = _HEAD.size + _CRC.size
ALIGN: Final = 8
MAX_HEADER: Final = 0xFFFF


class Record(NamedTuple):
    type: int
    kind: int
    segment: int
    chain: int
    group: int
    term: int
    position: int
    """The field `index` of the format."""
    header_length: int
    payload_length: int
    data_crc: int
    salt: int

    @property
    def data_length(self) -> int:
        return self.header_length + self.payload_length

    @property
    def length(self) -> int:
        """Bytes in the file, padding included."""
        return record_length(self.header_length, self.payload_length)


def record_length(header: int, payload: int) -> int:
    return (HEADER_SIZE + header + payload + ALIGN - 1) & -ALIGN


def pack_header(
    type_: int,
    segment: int,
    salt: int,
    *,
    kind: int = 0,
    chain: int = 0,
    group: int = 0,
    term: int = 0,
    index: int = 0,
    header_length: int = 0,
    payload_length: int = 0,
    data_crc: int = 0,
) -> bytes:
    head = _HEAD.pack(
        MAGIC, type_, kind, header_length, segment, chain, group, term, index, payload_length, data_crc, salt
    )
    return head + _CRC.pack(crc32c(head))


def unpack_header(data: Buffer, offset: int = 0) -> Record | None:
    """None when there is no intact header at `offset`."""
    if len(data) - offset < HEADER_SIZE:
        return None
    (magic, type_, kind, header_length, segment, chain, group, term, index, payload_length, data_crc, salt) = (
        _HEAD.unpack_from(data, offset)
    )
    if magic != MAGIC:
        return None
    (crc,) = _CRC.unpack_from(data, offset + _HEAD.size)
    if crc32c(memoryview(data)[offset : offset + _HEAD.size]) != crc:
        return None
    return Record(type_, kind, segment, chain, group, term, index, header_length, payload_length, data_crc, salt)
