"""What the MDS keeps in etcd: one record type per table, its key, and the envelope every value has.

Key: `state/<table>/<hex id>[/<hex id>]`, fixed width, so that ranges are ordered by id. Value: magic byte, envelope
version, CRC32C (little-endian) of key and body, body = MessagePack map. The key is under the CRC, so a value that was
copied to another key is found as well. Fields added later get defaults; unknown fields of a newer version are
ignored.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import crc32c
import msgspec

from curve_storage.errors import Corruption

ROOT_ID = 1
RECYCLE_ID = 2
FIRST_ENTRY_ID = 16
PREFIX = "state/"

_ENVELOPE = struct.Struct("<BBI")
_MAGIC = 0xC5
_VERSION = 1

CREATED = 0
DELETING = 1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records: immutable, replaced as a whole."""

    @property
    def key(self) -> str:
        raise NotImplementedError


class Entry(Record, frozen=True, kw_only=True):
    """A directory or a volume. `parent` and `name` are its place; paths are derived.

    epoch: attach epoch; fenced_epoch: the epoch that every copyset with a segment of the volume is known to have.
    generation: number of OpenVolume for writing in this epoch. previous_path: where the last rename took it from, so
    that a repeated rename is recognised. Times in milliseconds since 1970, sizes in bytes.
    """

    id: int
    parent: int
    name: str
    directory: bool = False
    owner: str = ""
    created_ms: int = 0
    size: int = 0
    poolset: str = ""
    status: int = CREATED
    epoch: int = 1
    fenced_epoch: int = 1
    generation: int = 0
    attached_node: str = ""
    read_only_attach: bool = False
    labels: dict[str, str] = {}
    iops: int = 0
    bytes_per_second: int = 0
    original_path: str = ""
    deleted_ms: int = 0
    previous_path: str = ""

    @property
    def key(self) -> str:
        return f"{PREFIX}entry/{self.id:016x}"


class Segment(Record, frozen=True, kw_only=True):
    """One allocated segment. Its chunks have the ids first_chunk, first_chunk + 1, …; `copysets` holds each one's
    copyset id as u32 little-endian."""

    volume: int
    index: int
    pool: int
    first_chunk: int
    copysets: bytes

    @property
    def key(self) -> str:
        return f"{PREFIX}segment/{self.volume:016x}/{self.index:08x}"

    def copyset_ids(self) -> tuple[int, ...]:
        return unpack_ids(self.copysets)

    def chunks(self) -> list[tuple[int, int]]:
        """(chunk id, copyset id) in order of offset."""
        return [(self.first_chunk + i, copyset) for i, copyset in enumerate(self.copyset_ids())]


def pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(packed) // 4}I", packed)


class Freed(Record, frozen=True, kw_only=True):
    """A segment that its volume gave back. Its chunk ids are deleted on the chunkservers again when the volume goes."""

    volume: int
    first_chunk: int
    pool: int
    copysets: bytes

    @property
    def key(self) -> str:
        return f"{PREFIX}freed/{self.volume:016x}/{self.first_chunk:016x}"


class Session(Record, frozen=True, kw_only=True):
    id: str
    volume: int
    write: bool
    epoch: int
    generation: int
    client: str = ""
    opened_ms: int = 0

    @property
    def key(self) -> str:
        return f"{PREFIX}session/{self.volume:016x}/{self.id}"


class ChunkServerRecord(Record, frozen=True, kw_only=True):
    """secret: what the disk's identity file must present. confirmed: it has presented it once, so that a registration
    without the secret is refused from then on. admin: proto AdminState."""

    id: int
    uuid: str
    secret: str
    address: str
    server: str
    zone: str
    physical_pool: str
    poolset: str
    disk_type: str = ""
    disk_path: str = ""
    capacity: int = 0
    version: str = ""
    admin: int = 0
    confirmed: bool = False

    @property
    def key(self) -> str:
        return f"{PREFIX}chunkserver/{self.id:08x}"


class PoolRecord(Record, frozen=True, kw_only=True):
    """A logical pool. complete: all its copysets are stored (a creation that was cut short is taken up again)."""

    id: int
    name: str
    physical_pool: str
    poolset: str
    replicas: int
    copysets: int
    scatter_width: int
    zones: int
    complete: bool = False
    requested_copysets: int = 0
    requested_scatter: int = 0

    @property
    def key(self) -> str:
        return f"{PREFIX}pool/{self.id:08x}"


class CopysetRecord(Record, frozen=True, kw_only=True):
    """epoch, members: the newest configuration a leader has reported. established: every first member has reported its
    replica once; from then on a missing replica is a lost one and is never made again with the voters it had."""

    pool: int
    id: int
    members: tuple[int, ...]
    epoch: int = 1
    established: bool = False

    @property
    def key(self) -> str:
        return f"{PREFIX}copyset/{self.pool:08x}/{self.id:08x}"


class Counter(Record, frozen=True, kw_only=True):
    """Ids below `reserved` may have been given out."""

    name: str
    reserved: int

    @property
    def key(self) -> str:
        return f"{PREFIX}counter/{self.name}"


class ClusterRecord(Record, frozen=True, kw_only=True):
    cluster_id: str
    created_ms: int = 0
    segment_size: int = 0
    chunk_size: int = 0

    @property
    def key(self) -> str:
        return f"{PREFIX}cluster/id"


class SchedulerRecord(Record, frozen=True, kw_only=True):
    """A scheduler switched by hand; without one the configuration decides."""

    name: str
    enabled: bool

    @property
    def key(self) -> str:
        return f"{PREFIX}scheduler/{self.name}"


TABLES: dict[str, type[Record]] = {
    "entry": Entry,
    "segment": Segment,
    "freed": Freed,
    "session": Session,
    "chunkserver": ChunkServerRecord,
    "pool": PoolRecord,
    "copyset": CopysetRecord,
    "counter": Counter,
    "cluster": ClusterRecord,
    "scheduler": SchedulerRecord,
}

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    name: msgspec.msgpack.Decoder(cls) for name, cls in TABLES.items()
}


def encode(record: Record) -> bytes:
    body = _encoder.encode(record)
    crc = crc32c.crc32c(body, crc32c.crc32c(record.key.encode()))
    return _ENVELOPE.pack(_MAGIC, _VERSION, crc) + body


def decode(key: str, value: bytes) -> Record:
    """Raises Corruption naming the key when anything about the value is not as it was written."""

    def corrupt(why: str) -> Corruption:
        return Corruption(
            f"a metadata record in etcd is damaged: {why}",
            where=key,
            todo="Restore etcd from a backup; the MDS does not serve on damaged metadata",
        )

    table = key.removeprefix(PREFIX).split("/", 1)[0]
    if table not in _decoders:
        raise corrupt(f"no table is called {table!r} (written by a newer version?)")
    if len(value) < _ENVELOPE.size:
        raise corrupt(f"{len(value)} bytes are too few")
    magic, version, crc = _ENVELOPE.unpack_from(value)
    if magic != _MAGIC:
        raise corrupt("it does not start as a record does")
    if version != _VERSION:
        raise corrupt(f"envelope version {version} is not known to this version of the MDS")
    body = memoryview(value)[_ENVELOPE.size :]
    if crc32c.crc32c(body, crc32c.crc32c(key.encode())) != crc:
        raise corrupt("the checksum does not match")
    try:
        record: Record = _decoders[table].decode(body)
    except msgspec.MsgspecError as error:
        raise corrupt(str(error)) from error
    if record.key != key:
        raise corrupt(f"it says it belongs to {record.key}")
    return record
