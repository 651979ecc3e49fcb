"""The shared write-ahead log of a process: all groups, one sequence of pre-written segments, one sync per batch.

Records get their places as they are appended; `take_batch` hands over everything appended since the last one, to be
written and synced (`Batch.write`, usually in the sync thread), and `finish` reports it durable. Batches are strictly
sequential. When a new segment is needed and none is ready, what is appended waits in order (`stalled`) until one is.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crc32c import crc32c

from curve_storage.consensus.api import Buffer, Membership
from curve_storage.consensus.config import LogConfig
from curve_storage.consensus.disk import Disk, DiskFile
from curve_storage.consensus.entry import Entry, HardState, pack_membership
from curve_storage.consensus.group_state import pack_state
from curve_storage.consensus.log_group import GroupLog
from curve_storage.consensus.log_record import (
    BATCH,
    CREATE,
    ENTRY,
    HARD,
    HEADER_SIZE,
    MAX_HEADER,
    REMOVE,
    RESTORE,
    RESTORE_BEGIN,
    SEGMENT,
    STATE,
    TRUNCATE,
    pack_header,
    record_length,
)
from curve_storage.consensus.log_scan import scan
from curve_storage.consensus.log_segment import PAGE, ZERO_PAGE, Segment, SegmentPool
from curve_storage.errors import AlreadyExists, Internal, InvalidArgument

_JOIN_BELOW = 1024


def _random_salt() -> int:
    return int.from_bytes(os.urandom(4), "little")


_PAD = [bytes(n) for n in range(8)]


@dataclass(slots=True)
class Batch:
    """Writes in order, each synced before the next; `tokens` belong to whoever appended."""

    parts: list[tuple[DiskFile, int, list[Buffer]]] = field(default_factory=list)
    tokens: list[Any] = field(default_factory=list)
    size: int = 0
    sequence: int = 0
    """Of the last segment written."""
    lowered: list[tuple[Segment, int, int]] = field(default_factory=list)
    """Segment, group, its last index there: known when the truncation is durable."""
    dropped: list[int] = field(default_factory=list)
    """Groups whose earlier entries are void when this is durable."""

    def write(self) -> None:
        """Raises DiskFailed: then nothing of this batch may be trusted, and the process must end."""
        for file, offset, buffers in self.parts:
            file.write(offset, buffers)
            file.sync()


class SharedLog:
    def __init__(self, disk: Disk, config: LogConfig, salt: Callable[[], int] = _random_salt) -> None:
        self._config = config
        self._salt = salt
        self._removing: set[int] = set()
        self.pool = SegmentPool(disk, config)
        self.groups: dict[int, GroupLog] = {}
        self.segments: list[Segment] = []
        self.damage: list[str] = []
        self._files: dict[int, DiskFile] = {}
        self._batch = Batch()
        self._buffers: list[Buffer] = []
        self._waiting: deque[Callable[[], bool]] = deque()
        self._synced = 0
        self._rested_at = self._sealed_at = (0, 0)
        self._current: Segment
        self.appended_bytes = 0

    # --- start -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Reads what is there and makes the log ready to append. Raises DiskFailed."""
        found = scan(self.pool.existing(), self._config, self._file)
        self.groups = found.groups
        self.segments = found.segments
        self.damage = found.damage
        self._files.update({segment.sequence: segment.file for segment in found.segments})
        for file in found.free:
            self.pool.add_free(file)
        if self.segments:
            self._current = self.segments[-1]
            self._synced = self._current.sequence
        else:
            if not self.pool.free:
                self.pool.prepare()
            self._roll()

    def _file(self, sequence: int) -> DiskFile:
        return self._files[sequence]

    def close(self) -> None:
        for segment in self.segments:
            segment.file.close()
        self.pool.close()

    # --- appending -------------------------------------------------------------------------------------------------

    @property
    def max_entry(self) -> int:
        """Bytes of header and payload that one entry may have."""
        return self._config.segment_size // 2

    @property
    def stalled(self) -> bool:
        return bool(self._waiting)

    def create_group(self, group: int, membership: Membership, token: Any = None) -> GroupLog:
        if group in self.groups:
            raise AlreadyExists(f"group {group} is in the log", where="log", todo="Remove it first")
        log = GroupLog(group, self._file)

        def put() -> bool:
            if not self._put(log, CREATE, header=pack_membership(membership)):
                return False
            log.create(membership)
            self.groups[group] = log
            return True

        self._do(put)
        self._token(token)
        return log

    def remove_group(self, group: int, token: Any = None) -> None:
        def put() -> bool:
            log = self.groups.get(group)
            if log is not None:
                if not self._put(log, REMOVE):
                    return False
                del self.groups[group]
                self._removing.add(group)
                self._batch.dropped.append(group)
            return True

        self._do(put)
        self._token(token)

    def save(self, log: GroupLog, hard: HardState | None, entries: list[Entry], token: Any) -> None:
        """Appends what a Ready asks for; an entry at or below the last index replaces the suffix from there."""
        if hard is not None:
            self._do(lambda: self._put_hard(log, hard))
        waiting = self._waiting
        for entry in entries:
            if waiting or not self._put_entry(log, entry):
                waiting.append(lambda entry=entry: self._put_entry(log, entry))  # type: ignore[misc]
        self._token(token)

    def begin_restore(self, log: GroupLog, index: int, term: int, membership: Membership, token: Any) -> None:
        """Durable before the state machine replaces its state, so that a crash between the two is understood."""

        def put() -> bool:
            if not self._put(log, RESTORE_BEGIN, term=term, index=index, header=pack_membership(membership)):
                return False
            log.pending = (index, term, membership)
            return True

        self._do(put)
        self._token(token)

    def restore(self, log: GroupLog, index: int, term: int, membership: Membership, token: Any) -> None:
        """The state machine holds everything up to `index`: the group's entries are void."""

        def put() -> bool:
            if not self._put(log, RESTORE, term=term, index=index, header=pack_membership(membership)):
                return False
            log.restore(index, term, membership)
            log.released = index
            self._batch.dropped.append(log.group)
            return True

        self._do(put)
        self._token(token)

    def _do(self, action: Callable[[], bool]) -> None:
        if self._waiting or not action():
            self._waiting.append(action)

    def _token(self, token: Any) -> None:
        if token is None:
            return
        if self._waiting:
            self._waiting.append(lambda: self._add_token(token))
        else:
            self._batch.tokens.append(token)

    def _add_token(self, token: Any) -> bool:
        self._batch.tokens.append(token)
        return True

    def resume(self) -> None:
        """Appends what has waited, as far as there is room now."""
        waiting = self._waiting
        while waiting and waiting[0]():
            waiting.popleft()

    def _put_hard(self, log: GroupLog, hard: HardState) -> bool:
        if not self._put(log, HARD, term=hard.term, index=hard.vote):
            return False
        log.set_hard(hard)
        return True

    def _put_entry(self, log: GroupLog, entry: Entry) -> bool:
        index = entry.index
        if index <= log.last_index:
            previous = log.term_at(index - 1)
            if not self._put(log, TRUNCATE, term=previous, index=index):
                return False
            log.truncate(index, previous)
            for segment in self.segments:
                if segment.last.get(log.group, 0) >= index:
                    if segment is self._current:
                        segment.last[log.group] = index - 1
                    else:
                        self._batch.lowered.append((segment, log.group, index - 1))
        header, payload = entry.header, entry.payload
        length = record_length(len(header), len(payload))
        if not self._room(length):
            return False
        segment = self._current
        head = (
            pack_header(
                ENTRY, segment.sequence, segment.salt, kind=entry.kind, chain=log.chain + 1, group=log.group,
                term=entry.term, index=index, header_length=len(header), payload_length=len(payload),
                data_crc=entry.crc,
            )
            + header
        )  # fmt: skip
        log.chain += 1
        log.append(entry, segment.sequence, segment.tail, length)
        segment.last[log.group] = index
        pad = _PAD[length - HEADER_SIZE - entry.size]
        if len(payload) < _JOIN_BELOW:
            self._buffers.append(head + bytes(payload) + pad)
        else:
            self._buffers.append(head)
            self._buffers.append(payload)
            if pad:
                self._buffers.append(pad)
        segment.tail += length
        self.appended_bytes += length
        return True

    def _put(self, log: GroupLog, kind: int, *, term: int = 0, index: int = 0, header: bytes = b"") -> bool:
        if len(header) > MAX_HEADER:
            raise InvalidArgument(f"a log record of {len(header)} bytes is too large", where=f"group {log.group}")
        if not self._room(record_length(len(header), 0)):
            return False
        log.chain += 1
        self._write(kind, chain=log.chain, group=log.group, term=term, index=index, header=header)
        return True

    def _write(
        self, kind: int, *, chain: int = 0, group: int = 0, term: int = 0, index: int = 0, header: bytes = b""
    ) -> None:
        segment = self._current
        length = record_length(len(header), 0)
        head = pack_header(
            kind, segment.sequence, segment.salt, chain=chain, group=group, term=term, index=index,
            header_length=len(header), data_crc=crc32c(header),
        )  # fmt: skip
        self._buffers.append(head + header + _PAD[length - HEADER_SIZE - len(header)])
        segment.tail += length
        self.appended_bytes += length

    def _room(self, length: int) -> bool:
        """Makes room for a record, in a new segment if need be; False when no segment is ready."""
        size = self._config.segment_size
        if self._current.tail + length + HEADER_SIZE > size and not self._roll():
            return False
        if self._current.tail + length + HEADER_SIZE > size:
            raise Internal(f"a record of {length} bytes does not fit a segment", where="log", todo="Raise segment_size")
        if not self._buffers:
            self._batch.parts.append((self._current.file, self._current.tail, self._buffers))
            self._write(BATCH)
        return True

    def _roll(self) -> bool:
        """Goes on in a new segment, which starts with the state of every group."""
        file = self.pool.take()
        if file is None:
            return False
        sequence, end = 1, 0
        if self.segments:
            sequence, end = self._current.sequence + 1, self._current.tail
            self._close_part()
        segment = self._current = Segment(sequence, self._salt(), file)
        self.segments.append(segment)
        self._files[sequence] = file
        self._batch.parts.append((file, 0, self._buffers))
        self._write(SEGMENT, term=len(self.groups), index=end)
        for log in self.groups.values():
            self._write(STATE, chain=log.chain, group=log.group, header=pack_state(log.state()))
        return True

    def _close_part(self) -> None:
        if self._buffers:
            pad = -self._current.tail % PAGE
            if pad:
                self._buffers.append(memoryview(ZERO_PAGE)[:pad])
            self._buffers = []

    # --- batches ---------------------------------------------------------------------------------------------------

    def take_batch(self) -> Batch | None:
        """Everything appended since the last batch; the one before must have been finished."""
        if not self._batch.parts and not self._batch.tokens:
            return None
        self._close_part()
        batch, self._batch = self._batch, Batch()
        batch.sequence = self._current.sequence
        batch.size = sum(len(buffer) for _, _, buffers in batch.parts for buffer in buffers)
        return batch

    def finish(self, batch: Batch) -> None:
        self._synced = batch.sequence
        for segment, group, last in batch.lowered:
            segment.last[group] = min(segment.last.get(group, last), last)
        for group in batch.dropped:
            self._removing.discard(group)
            for each in self.segments:
                each.last.pop(group, None)

    # --- proof of the end --------------------------------------------------------------------------------------------

    def seal_idle(self) -> bool:
        """Appends an empty batch when nothing was appended since the last call; True: there is a batch to take.

        A scan can tell a rotten bit from a torn write only by an intact batch further on. An empty one at the end of a
        log at rest is that proof, so only what was written in the last moment before a crash goes without. The batch
        before must have been finished."""
        place = (self._current.sequence, self._current.tail)
        if self._waiting or self._batch.parts or place == self._sealed_at:
            return False
        rested, self._rested_at = place == self._rested_at, place
        # At the end of a segment the start of the next one is the proof.
        if not rested or self._current.tail + 2 * HEADER_SIZE > self._config.segment_size:
            return False
        self._room(0)
        self._sealed_at = self._rested_at = (self._current.sequence, self._current.tail)
        return True

    def seal_end(self) -> None:
        """The same, at once and written, before a stop. Raises DiskFailed."""
        self._rested_at = (self._current.sequence, self._current.tail)
        if self.seal_idle() and (batch := self.take_batch()) is not None:
            batch.write()

    # --- release ---------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        return len(self.segments) * self._config.segment_size

    def blockers(self) -> list[int]:
        """Groups that keep the oldest segment: their checkpoint has not passed their last entry in it."""
        oldest = self.segments[0]
        return [
            group
            for group, last in oldest.last.items()
            if group in self._removing or ((log := self.groups.get(group)) is not None and log.releasable() < last)
        ]

    def collect(self) -> tuple[list[DiskFile], dict[int, int]]:
        """Drops the segments nobody needs: their files, to be given to `pool.recycle`, and the groups' new bases."""
        files: list[DiskFile] = []
        bases: dict[int, int] = {}
        while len(self.segments) > 1 and self.segments[0].sequence < self._synced and not self.blockers():
            oldest = self.segments.pop(0)
            for group, last in oldest.last.items():
                log = self.groups.get(group)
                if log is not None:
                    log.compact(last)
                    bases[group] = log.base_index
            del self._files[oldest.sequence]
            files.append(oldest.file)
        return files, bases
