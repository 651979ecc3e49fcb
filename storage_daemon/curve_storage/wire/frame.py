"""The frame: fixed header, meta, payload. Little-endian, CRC32C over header (without the CRC) and meta.

    offset  size  field
    0       2     magic 0xC57E
    2       1     version
    3       1     flags: REPLY, ONEWAY
    4       2     type (wire.messages.MessageType)
    6       2     status (wire.status; 0 in requests)
    8       8     request id, echoed in the reply; 0 in a reply = about the connection itself
    16      4     meta length
    20      4     payload length
    24      4     CRC32C of bytes 0..23 followed by the meta

The payload carries no checksum here: block data has one CRC32C per 4 KiB and log entries have theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from crc32c import crc32c

from curve_storage.wire.messages import DEFAULT_MAX_META, MAX_META, MAX_PAYLOAD, MessageType

Buffer = bytes | bytearray | memoryview

MAGIC = 0xC57E
VERSION = 1
HEADER = Struct("<HBBHHQIII")
HEADER_SIZE = HEADER.size
PREFIX = Struct("<HBBHHQII")
PREFIX_SIZE = PREFIX.size
CRC = Struct("<I")

REPLY = 1
ONEWAY = 2


def limits(message_type: int) -> tuple[int, int]:
    """(most bytes of meta, most bytes of payload) accepted for a type, in either direction."""
    return MAX_META.get(message_type, DEFAULT_MAX_META), MAX_PAYLOAD.get(message_type, 0)


KNOWN_LIMITS: dict[int, tuple[int, int]] = {int(kind): limits(kind) for kind in MessageType}


def head(
    message_type: int, flags: int, status: int, request_id: int, meta: Buffer, payload_length: int
) -> tuple[bytes, bytes]:
    """(prefix, CRC): what precedes the meta. Two pieces, since the sender joins small pieces anyway."""
    prefix = PREFIX.pack(MAGIC, VERSION, flags, message_type, status, request_id, len(meta), payload_length)
    crc = crc32c(prefix)
    if meta:
        crc = crc32c(meta, crc)
    return prefix, CRC.pack(crc)


def encode(
    message_type: int,
    meta: Buffer = b"",
    payload: Buffer | Sequence[Buffer] = b"",
    *,
    flags: int = 0,
    status: int = 0,
    request_id: int = 0,
) -> bytes:
    """One whole frame as bytes, for tests and tools; the data path never joins payloads."""
    pieces = (payload,) if isinstance(payload, bytes | bytearray | memoryview) else tuple(payload)
    prefix, crc = head(message_type, flags, status, request_id, meta, sum(len(piece) for piece in pieces))
    return b"".join((prefix, crc, meta, *pieces))
