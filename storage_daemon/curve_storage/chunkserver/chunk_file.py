"""One chunk on the disk: header page, table of block checksums, 16 MiB of data. All integers little-endian.

    0      header page: magic, version, block count, group, chunk, volume, sn; bitmap of written blocks (512 bytes);
           CRC32C of all that; zeros
    4096   table: CRC32C of each of the 4096 blocks (u32); 0 = none (a checksum of 0 is stored as 1)
    20480  data

A block is *unwritten* (reads as zeros) when its bit is clear and its entry 0; *written* when its bit is set and the
entry is its checksum. Everything else is *bad*: its content must come from another replica. So no single rotten sector
in header, table or data can turn data into zeros, and a file whose content is still to be fetched is simply one with
all bits set and all entries 0.

Data goes to the page cache at once, header and table with `flush` at checkpoints: a crash may leave any mixture, which
the replay of the log repairs before anything is served.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from struct import Struct

from crc32c import crc32c

from curve_storage.consensus.api import Buffer
from curve_storage.errors import CurveError, DiskFailed, StoreReadOnly
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE, KiB
from curve_storage.wire.buffers import BufferPool

BLOCKS = CHUNK_SIZE // BLOCK_SIZE
HEADER_SIZE = 4096
TABLE_SIZE = 4 * BLOCKS
DATA_START = HEADER_SIZE + TABLE_SIZE
FILE_SIZE = DATA_START + CHUNK_SIZE

MAGIC = b"CURVECHK"
VERSION = 1
_HEADER = Struct("<8sHHIQQQQ")
_BITMAP_SIZE = BLOCKS // 8
_CRC = Struct("<I")
_CRC_AT = _HEADER.size + _BITMAP_SIZE
_PADDING = bytes(HEADER_SIZE - _CRC_AT - _CRC.size)
_BLANK_TABLE = bytes(TABLE_SIZE)
_BLANK_BITMAP = bytes(_BITMAP_SIZE)
ZERO_BLOCK = bytes(BLOCK_SIZE)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_SHIFT = BLOCK_SIZE.bit_length() - 1
_POOLED = 64 * KiB  # from here on reads use recycled buffers

_buffers = BufferPool()
_nowait = os.RWF_NOWAIT


class Handle:
    """A file descriptor closed with its last reference: a read or fsync under way in a thread keeps it open."""

    __slots__ = ("fd",)

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def __del__(self) -> None:
        fd = getattr(self, "fd", -1)
        if fd >= 0:
            os.close(fd)


class ChunkFile:
    """An open chunk. Used from the event loop only, except `handle` and `read_blocking`."""

    __slots__ = (
        "_bitmap", "_raw_table", "bad", "dirty", "fd", "group", "handle", "id", "path", "sn", "stale", "table",
        "used", "volume",
    )  # fmt: skip

    def __init__(self, path: Path, group: int, chunk: int, volume: int = 0, sn: int = 0) -> None:
        self.path = path
        self.handle = Handle(path)
        self.fd = self.handle.fd
        self.group = group
        self.id = chunk
        self.volume = volume
        self.sn = sn
        self._raw_table = bytearray(TABLE_SIZE)
        self.table = memoryview(self._raw_table).cast("I")
        self._bitmap = bytearray(_BITMAP_SIZE)
        self.bad: set[int] = set()
        self.dirty = False
        self.stale = False  # deleted or closed: another object may stand for the file now
        self.used = True

    @classmethod
    def create(cls, path: Path, group: int, chunk: int, volume: int, sn: int) -> ChunkFile:
        """A blank file of the pool becomes this chunk. Raises OSError."""
        return cls(path, group, chunk, volume, sn)

    @classmethod
    def open(cls, path: Path, group: int, chunk: int) -> ChunkFile:
        """Reads header and table; whatever contradicts itself there is marked bad. Raises OSError."""
        self = cls(path, group, chunk)
        raw = os.pread(self.fd, DATA_START, 0)
        raw += bytes(DATA_START - len(raw))
        self._raw_table[:] = raw[HEADER_SIZE:]
        if _header_intact(raw, group, chunk):
            self.volume, self.sn = _HEADER.unpack_from(raw)[6:8]
            self._bitmap[:] = raw[_HEADER.size : _CRC_AT]
            self.bad.update(self._contradictions())
        elif self._raw_table != _BLANK_TABLE:
            # The header is lost: entries still prove their blocks, but "unwritten" is proven by nothing.
            self.bad.update(block for block in range(BLOCKS) if not self.table[block])
            self._bitmap[:] = b"\xff" * _BITMAP_SIZE
        for block in self.bad:
            self._set_bad(block)
        return self

    def _contradictions(self) -> list[int]:
        bitmap, raw, table = self._bitmap, self._raw_table, self.table
        blank = bytes(32)
        found = []
        for position in range(len(bitmap)):
            bits = bitmap[position]
            if not bits and raw[position * 32 : position * 32 + 32] == blank:
                continue
            for bit in range(8):
                block = position * 8 + bit
                if bool(bits >> bit & 1) != bool(table[block]):
                    found.append(block)
        return found

    def _set_bad(self, block: int) -> None:
        self.table[block] = 0
        self._bitmap[block >> 3] |= 1 << (block & 7)

    @property
    def written_blocks(self) -> int:
        return int.from_bytes(self._bitmap, "little").bit_count()

    @property
    def blank(self) -> bool:
        return self._bitmap == _BLANK_BITMAP

    # ---- changes

    def write(self, offset: int, payload: Buffer) -> None:
        """Whole blocks into the page cache. Raises DiskFailed; without space the blocks become bad."""
        length = len(payload)
        block = offset >> _SHIFT
        try:
            done = os.pwrite(self.fd, payload, DATA_START + offset)
            while done < length:
                done += os.pwrite(self.fd, memoryview(payload)[done:], DATA_START + offset + done)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise disk_failed(error, self.path) from error
            # The other replicas hold the data; this one fetches it when there is space again.
            self.mark_bad(range(block, block + (length >> _SHIFT)))
            return
        if length == BLOCK_SIZE:
            self.table[block] = crc32c(payload) or 1
            self._bitmap[block >> 3] |= 1 << (block & 7)
        else:
            view = memoryview(payload)
            table = self.table
            for number, position in enumerate(range(0, length, BLOCK_SIZE), block):
                table[number] = crc32c(view[position : position + BLOCK_SIZE]) or 1
            self._fill_bits(block, length >> _SHIFT, True)
        if self.bad:
            self.bad.difference_update(range(block, block + (length >> _SHIFT)))

    def discard(self, offset: int, length: int) -> None:
        """The blocks read as zeros from now on. Their bytes stay allocated, so that later writes need no space."""
        block, count = offset >> _SHIFT, length >> _SHIFT
        self._raw_table[4 * block : 4 * (block + count)] = bytes(4 * count)
        self._fill_bits(block, count, False)
        if self.bad:
            self.bad.difference_update(range(block, block + count))

    def _fill_bits(self, block: int, count: int, value: bool) -> None:
        bitmap, end = self._bitmap, block + count
        while block < end and block & 7:
            self._bit(block, value)
            block += 1
        whole = (end - block) >> 3
        if whole > 0:
            bitmap[block >> 3 : (block >> 3) + whole] = (b"\xff" if value else b"\0") * whole
            block += whole << 3
        while block < end:
            self._bit(block, value)
            block += 1

    def _bit(self, block: int, value: bool) -> None:
        if value:
            self._bitmap[block >> 3] |= 1 << (block & 7)
        else:
            self._bitmap[block >> 3] &= ~(1 << (block & 7)) & 0xFF

    def mark_bad(self, blocks: Sequence[int]) -> None:
        """Their content is unknown here: reads fetch it from another replica."""
        self.bad.update(blocks)
        for block in blocks:
            self._set_bad(block)

    def mark_all_bad(self) -> None:
        self.bad.update(range(BLOCKS))
        self._raw_table[:] = _BLANK_TABLE
        self._bitmap[:] = b"\xff" * _BITMAP_SIZE

    def install(self, block: int, entry: int, data: Buffer) -> None:
        """Replaces a bad block by a good copy; entry 0: it is unwritten."""
        if entry:
            self.write(block << _SHIFT, data)
        else:
            self.discard(block << _SHIFT, BLOCK_SIZE)

    def flush(self) -> None:
        """Header and table into the page cache; the caller syncs afterwards. Raises OSError."""
        header = _HEADER.pack(MAGIC, VERSION, 0, BLOCKS, self.group, self.id, self.volume, self.sn) + self._bitmap
        page = header + _CRC.pack(crc32c(header)) + _PADDING
        done = os.pwritev(self.fd, [page, self._raw_table], 0)
        if done != DATA_START:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    # ---- reads

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """Unchecked bytes when they are in the page cache, None when reading would block. Raises DiskFailed."""
        global _nowait
        if length == BLOCK_SIZE and not self.table[offset >> _SHIFT] and not self.bad:
            return ZERO_BLOCK
        buffer: bytearray | memoryview = bytearray(length) if length < _POOLED else _buffers.take(length)
        try:
            done = os.preadv(self.fd, [buffer], DATA_START + offset, _nowait)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and _nowait:
                _nowait = 0  # this file system cannot say: read in place from now on
                return self.read_now(offset, length)
            raise disk_failed(error, self.path) from error
        return buffer if done == length else None

    def read_blocking(self, offset: int, length: int) -> bytearray:
        """Unchecked bytes; may be called in a thread. Raises DiskFailed."""
        return read_blocking(self.handle, self.path, DATA_START + offset, length)

    def check(self, offset: int, data: Buffer) -> list[int]:
        """Verifies what was read, in place: unwritten blocks become zeros. Returns the numbers of the bad blocks."""
        block = offset >> _SHIFT
        table, bad = self.table, self.bad
        if len(data) == BLOCK_SIZE:
            entry = table[block]
            if entry and (crc32c(data) or 1) == entry:
                return []
            if not entry and data is ZERO_BLOCK:
                return []
        found = []
        view = memoryview(data)
        for number, position in enumerate(range(0, len(data), BLOCK_SIZE), block):
            entry = table[number]
            if entry:
                if (crc32c(view[position : position + BLOCK_SIZE]) or 1) != entry:
                    found.append(number)
            elif number in bad:
                found.append(number)
            else:
                view[position : position + BLOCK_SIZE] = ZERO_BLOCK
        return found

    def entries(self, block: int, count: int) -> bytes:
        """The table's entries as they are on the disk: 4 bytes per block, 0 for unwritten (and bad) ones."""
        return bytes(self._raw_table[4 * block : 4 * (block + count)])

    def head(self) -> bytes:
        """Header page and table as `flush` would write them, for a snapshot."""
        header = _HEADER.pack(MAGIC, VERSION, 0, BLOCKS, self.group, self.id, self.volume, self.sn) + self._bitmap
        return header + _CRC.pack(crc32c(header)) + _PADDING + bytes(self._raw_table)

    def head_on_disk_differs(self) -> bool:
        """Whether header or table have rotted since they were read or written; only for an unchanged chunk. Blocking.
        Raises DiskFailed."""
        return bytes(read_blocking(self.handle, self.path, 0, DATA_START)) != self.head()

    def forget_cached(self) -> None:
        """The next reads come from the disk itself."""
        os.posix_fadvise(self.fd, 0, FILE_SIZE, os.POSIX_FADV_DONTNEED)

    def written_runs(self, longest: int) -> list[tuple[int, int]]:
        """(first block, count) of the stretches that have a checksum, each of at most `longest` blocks."""
        runs = []
        first, count = 0, 0
        for block in range(BLOCKS):
            if self.table[block]:
                if not count:
                    first = block
                count += 1
                if count < longest:
                    continue
            if count:
                runs.append((first, count))
                count = 0
        if count:
            runs.append((first, count))
        return runs


def read_blocking(handle: Handle, path: Path, position: int, length: int) -> bytearray:
    """`length` bytes of the file from `position`; bytes past its end are zeros. Raises DiskFailed."""
    buffer = bytearray(length)
    view = memoryview(buffer)
    done = 0
    try:
        while done < length:
            count = os.preadv(handle.fd, [view[done:]], position + done)
            if not count:
                break
            done += count
    except OSError as error:
        raise disk_failed(error, path) from error
    return buffer


def disk_failed(error: OSError, path: Path) -> CurveError:
    """DiskFailed, after which the process ends; only a lack of space is StoreReadOnly, which passes."""
    if error.errno in NO_SPACE:
        return StoreReadOnly(
            "the file system is full",
            where=str(path),
            todo="Free space on the chunkserver's file system; it becomes writable by itself",
        )
    return DiskFailed(
        f"the disk failed: {error.strerror}",
        where=str(path),
        todo="Check the kernel's log and replace the disk; its replicas are rebuilt from the others",
    )


def _header_intact(raw: bytes, group: int, chunk: int) -> bool:
    (checksum,) = _CRC.unpack_from(raw, _CRC_AT)
    if checksum != crc32c(raw[:_CRC_AT]):
        return False
    magic, version, _, blocks, its_group, its_chunk, _, _ = _HEADER.unpack_from(raw)
    return bool((magic, version, blocks, its_group, its_chunk) == (MAGIC, VERSION, BLOCKS, group, chunk))
