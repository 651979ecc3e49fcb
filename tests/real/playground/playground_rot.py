"""Flips bits in the files of one chunkserver, one kind of structure at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from curve_storage.chunkserver import chunk_file, copyset_meta, identity
from curve_storage.chunkserver.chunk_directory import PREFIX
from curve_storage.consensus import log_record
from curve_storage.consensus.log_record import HEADER_SIZE, Record, unpack_header
from curve_storage.twin_file import copy_of
from curve_storage.units import BLOCK_SIZE


@dataclass(frozen=True)
class Flip:
    kind: str
    path: Path
    offset: int


def flip(kind: str, path: Path, offset: int, rng: random.Random) -> Flip:
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        (old,) = file.read(1)
        file.seek(offset)
        file.write(bytes([old ^ (1 << rng.randrange(8))]))
    return Flip(kind, path, offset)


class Rot:
    """Knows the files below `data`. Every method flips one bit of one structure and says where."""

    def __init__(self, data: Path, rng: random.Random) -> None:
        self.data = data
        self.rng = rng
        self._records: list[tuple[Path, int, Record]] = []

    def look(self) -> None:
        """Before a round of flips: reads where the log's records are, which headers that rot hide."""
        self._records = self.records()

    def chunks(self) -> list[Path]:
        """With content, the fullest tables first."""
        found = list((self.data / "copysets").glob(f"*/{PREFIX}*"))
        return sorted(found, key=lambda path: len(self._written(path)), reverse=True)

    def _written(self, path: Path) -> list[int]:
        with path.open("rb") as file:
            file.seek(chunk_file.HEADER_SIZE)
            table = memoryview(file.read(chunk_file.TABLE_SIZE)).cast("I")
        return [number for number, entry in enumerate(table) if entry]

    def records(self) -> list[tuple[Path, int, Record]]:
        found = []
        for file in sorted((self.data / "log").glob("segment-*.log")):
            data = file.read_bytes()
            offset = 0
            while (record := unpack_header(data, offset)) is not None:
                found.append((file, offset, record))
                offset += record.length
        return found

    def _record(self, kind: int) -> tuple[Path, int, Record]:
        found = [one for one in self._records if one[2].type == kind]
        return found[len(found) // 2]

    # ---- chunk files

    def chunk_header(self) -> Flip:
        return flip("chunk header", self.chunks()[0], self.rng.randrange(560), self.rng)

    def chunk_table(self) -> Flip:
        path = self.chunks()[1]
        number = self.rng.choice(self._written(path))
        return flip("block checksum table", path, chunk_file.HEADER_SIZE + 4 * number, self.rng)

    def chunk_block(self) -> Flip:
        path = self.chunks()[2]
        number = self.rng.choice(self._written(path))
        where = chunk_file.DATA_START + number * BLOCK_SIZE + self.rng.randrange(BLOCK_SIZE)
        return flip("chunk block", path, where, self.rng)

    # ---- log

    def log_payload(self) -> Flip:
        path, offset, record = self._record(log_record.ENTRY)
        return flip("log record, payload", path, offset + HEADER_SIZE + record.data_length // 2, self.rng)

    def log_header(self) -> Flip:
        path, offset, _ = self._record(log_record.ENTRY)
        return flip("log record, header", path, offset + self.rng.randrange(HEADER_SIZE), self.rng)

    def hard_state(self) -> Flip:
        path, offset, _ = self._record(log_record.HARD)
        return flip("hard state", path, offset + 24, self.rng)

    def log_segment(self) -> Flip:
        path, offset, _ = self._record(log_record.SEGMENT)
        return flip("log segment header", path, offset + 12, self.rng)

    def log_tail(self) -> Flip:
        path, offset, _ = [one for one in self._records if one[2].type != log_record.BATCH][-1]
        return flip("log record, the last one", path, offset + self.rng.randrange(HEADER_SIZE), self.rng)

    # ---- small files

    def meta(self) -> Flip:
        path = self.chunks()[-1].with_name(copyset_meta.FILE)
        return flip("checkpoint meta", path, self.rng.randrange(path.stat().st_size), self.rng)

    def identity(self) -> Flip:
        path = self.data / identity.FILE
        return flip("identity", path, self.rng.randrange(path.stat().st_size), self.rng)

    def identity_copy(self) -> Flip:
        path = copy_of(self.data / identity.FILE)
        return flip("identity, copy", path, self.rng.randrange(path.stat().st_size), self.rng)

    def incarnation(self) -> Flip:
        path = self.data / "log" / "incarnation"
        return flip("incarnation", path, self.rng.randrange(path.stat().st_size), self.rng)

    def addresses(self) -> Flip:
        path = self.data / "addresses.json"
        return flip("addresses", path, self.rng.randrange(path.stat().st_size), self.rng)

    def pool(self) -> Flip:
        path = next(path for path in sorted((self.data / "pool").glob("*/*")) if path.is_file())
        return flip("pool file", path, self.rng.randrange(chunk_file.DATA_START), self.rng)

    def stopped(self) -> list[list[Callable[[], Flip]]]:
        """Rounds of flips for a process that does not run; one start has to cope with a whole round. The last one
        needs the chunk files of a checkpoint."""
        return [
            [self.log_payload, self.hard_state, self.identity_copy, self.addresses, self.pool],
            [self.log_header, self.log_segment, self.log_tail, self.identity, self.incarnation],
            [self.chunk_header, self.chunk_table, self.chunk_block, self.meta],
        ]

    def checkpointed(self) -> bool:
        return len(self.chunks()) >= 4 and bool(self._written(self.chunks()[3]))

    def running(self) -> list[Callable[[], Flip]]:
        return [self.chunk_header, self.chunk_table, self.chunk_block, self.log_payload, self.identity, self.pool]
