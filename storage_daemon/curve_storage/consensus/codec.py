"""RAFT_BATCH frames: messages of several groups between two processes, heartbeats included, in few frames.

Meta (little-endian): version, count, source and destination node, incarnation of the source's process; then each
message (64 bytes), followed by its entries (24 bytes and the command header each). The frame's payload is the entries'
payloads one after the other: they are sent from, and stay in, the buffers they came in.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from crc32c import crc32c

from curve_storage.consensus.api import Buffer
from curve_storage.consensus.entry import Entry
from curve_storage.consensus.raft_messages import NAMES, Message
from curve_storage.errors import Corruption, InvalidArgument
from curve_storage.units import MiB

_VERSION = 1
_BATCH = Struct("<HHIQQQ")
_MESSAGE = Struct("<BBHIQQQQQQQ")
_ENTRY = Struct("<QIIIB3x")
_MAX_META = 2 * MiB


class BatchHead(NamedTuple):
    source: int
    destination: int
    incarnation: int


def encode(head: BatchHead, messages: list[Message], max_payload: int) -> Iterator[tuple[bytes, list[Buffer]]]:
    """(meta, payload buffers) of one frame after the other; none is over max_payload unless a single message is."""
    parts: list[bytes] = []
    payload: list[Buffer] = []
    meta_size = payload_size = count = 0
    pack, pack_entry = _MESSAGE.pack, _ENTRY.pack
    for message in messages:
        entries = message.entries or ()
        size = sum([entry.size for entry in entries]) if entries else 0
        if count and (payload_size + size > max_payload or meta_size > _MAX_META):
            yield _head(head, count) + b"".join(parts), payload
            parts, payload = [], []
            meta_size = payload_size = count = 0
        parts.append(
            pack(
                message.kind, message.reject, 0, len(entries), message.group, message.term, message.index,
                message.log_term, message.commit, message.stamp, message.hint,
            )
        )  # fmt: skip
        for entry in entries:
            body = entry.payload
            parts.append(pack_entry(entry.term, len(body), entry.crc, len(entry.header), entry.kind))
            parts.append(entry.header)
            meta_size += _ENTRY.size + len(entry.header)
            if body:
                payload.append(body)
                payload_size += len(body)
        meta_size += _MESSAGE.size
        count += 1
    yield _head(head, count) + b"".join(parts), payload


def _head(head: BatchHead, count: int) -> bytes:
    return _BATCH.pack(_VERSION, 0, count, head.source, head.destination, head.incarnation)


def decode_head(meta: Buffer) -> BatchHead:
    """Raises InvalidArgument."""
    try:
        version, _, _, source, destination, incarnation = _BATCH.unpack_from(meta)
    except StructError as error:
        raise InvalidArgument(f"malformed raft batch: {error}") from error
    if version != _VERSION:
        raise InvalidArgument(f"raft batch of version {version}", todo="Upgrade this daemon")
    return BatchHead(source, destination, incarnation)


def decode(meta: Buffer, payload: memoryview) -> list[Message]:
    """The messages of one frame; their entries refer to `payload`. Raises InvalidArgument for a malformed frame,
    Corruption when the data of an entry do not match their checksum."""
    messages: list[Message] = []
    view = memoryview(meta)
    try:
        _, _, count, source, destination, _ = _BATCH.unpack_from(view)
        offset, taken = _BATCH.size, 0
        for _ in range(count):
            kind, reject, _, entries, group, term, index, log_term, commit, stamp, hint = _MESSAGE.unpack_from(
                view, offset
            )
            offset += _MESSAGE.size
            if kind not in NAMES:
                raise InvalidArgument(f"raft message of unknown kind {kind}", todo="Upgrade this daemon")
            message = Message(
                kind, group, source, destination, term, index, log_term, commit, stamp, bool(reject), hint
            )
            if entries:
                found: list[Entry] = []
                for number in range(index + 1, index + entries + 1):
                    entry_term, size, crc, header_size, entry_kind = _ENTRY.unpack_from(view, offset)
                    offset += _ENTRY.size
                    header = bytes(view[offset : offset + header_size])
                    offset += header_size
                    body = payload[taken : taken + size]
                    taken += size
                    if len(header) != header_size or len(body) != size:
                        raise InvalidArgument("raft batch cut short")
                    if crc32c(body, crc32c(header)) != crc:
                        raise Corruption(
                            f"entry {number} of group {group} was damaged on the way from node {source}",
                            todo="Check the network and the memory of both machines",
                        )
                    found.append(Entry(number, entry_term, entry_kind, header, body, crc))
                message.entries = found
            messages.append(message)
        if offset != len(view) or taken != len(payload):
            raise InvalidArgument("raft batch with bytes left over")
    except StructError as error:
        raise InvalidArgument(f"malformed raft batch: {error}") from error
    return messages
