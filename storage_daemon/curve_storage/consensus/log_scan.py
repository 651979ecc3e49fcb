"""Reading the shared log at start.

The newest segment may end in what the last, unsynced write left: it is cut at the first bad record. A bad record
before that is damage. Which of the two it is, is certain: a batch is written only when everything before it is
durable, so that any intact BATCH record further on, or the next segment (which notes where this one ended), proves the
place was synced. Damage names its group by the record's header, or by the gap it leaves in the groups' chains of
records; groups that no later record proves complete count as damaged too, for a lost vote or acknowledged entry must
never go unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from crc32c import crc32c

from curve_storage.consensus.config import LogConfig
from curve_storage.consensus.disk import DiskFile
from curve_storage.consensus.entry import CONFIG, HardState, unpack_membership
from curve_storage.consensus.group_state import unpack_state
from curve_storage.consensus.log_group import GroupLog, SegmentFile
from curve_storage.consensus.log_record import (
    ALIGN,
    BATCH,
    CREATE,
    ENTRY,
    HARD,
    HEADER_SIZE,
    MAGIC_BYTES,
    REMOVE,
    RESTORE,
    RESTORE_BEGIN,
    SEGMENT,
    STATE,
    TRUNCATE,
    Record,
    unpack_header,
)
from curve_storage.consensus.log_segment import NO_HEADER, PAGE, Segment
from curve_storage.errors import CurveError
from curve_storage.units import MiB

_WINDOW = MiB


Owner = tuple[int, int]
"""Sequence number and salt of a segment."""


class _Reader:
    """A window onto one file."""

    def __init__(self, file: DiskFile, size: int) -> None:
        self._file = file
        self.size = size
        self._start = 0
        self._data = b""

    def view(self, offset: int, length: int) -> memoryview:
        """Up to `length` bytes at `offset`, fewer at the end."""
        end = min(offset + length, self.size)
        if offset < self._start or end > self._start + len(self._data):
            self._data = self._file.read(offset, max(min(_WINDOW, self.size - offset), end - offset))
            self._start = offset
        return memoryview(self._data)[offset - self._start : end - self._start]

    def header(self, offset: int, owner: Owner | None) -> Record | None:
        record = unpack_header(self.view(offset, HEADER_SIZE))
        if record is None or (owner is not None and (record.segment, record.salt) != owner):
            return None
        return record if offset + record.length <= self.size else None

    def intact(self, offset: int, record: Record) -> bool:
        data = self.view(offset + HEADER_SIZE, record.data_length)
        return crc32c(data) == record.data_crc

    def search(self, offset: int, owner: Owner | None) -> tuple[int, Record] | None:
        """The first intact header at or after `offset`."""
        while offset < self.size:
            chunk = bytes(self.view(offset, _WINDOW))
            at = chunk.find(MAGIC_BYTES)
            while at >= 0:
                place = offset + at
                if place % ALIGN == 0:
                    record = self.header(place, owner)
                    if record is not None:
                        return place, record
                at = chunk.find(MAGIC_BYTES, at + 1)
            offset += max(len(chunk) - len(MAGIC_BYTES) + 1, 1)
        return None


@dataclass(slots=True)
class Scanned:
    """What the files hold. `segments` ascend; `free` files may be overwritten; `damage`: a sentence for each place."""

    groups: dict[int, GroupLog] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    free: list[DiskFile] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


def scan(files: list[DiskFile], config: LogConfig, segment_file: SegmentFile) -> Scanned:
    """Raises DiskFailed when a file cannot be read."""
    result = Scanned()
    live: list[tuple[Owner, DiskFile, int]] = []
    doubtful: list[DiskFile] = []
    for file in files:
        reader = _Reader(file, config.segment_size)
        record = reader.header(0, None)
        if record is not None and record.type == SEGMENT:
            live.append(((record.segment, record.salt), file, record.position))
        elif bytes(reader.view(0, PAGE)).count(0) == PAGE:
            result.free.append(file)
        else:
            doubtful.append(file)
    known = {owner[0] for owner, _, _ in live}
    headless = [(_headless(_Reader(file, config.segment_size)) or (0, 0), file) for file in doubtful]
    for found, file in sorted(headless, key=lambda item: item[0], reverse=True):
        if found[0] and found[0] not in known and (
            found[0] > min(known) or (found[0] == min(known) - 1 and _rotten(file, found)) if known
            else _rotten(file, found)
        ):  # fmt: skip
            live.append((found, file, -1))
            known.add(found[0])
        else:
            result.free.append(file)
    live.sort(key=lambda item: item[0])
    if len(live) > 1 and not _begun(live[-1], config):
        # The write that started it was torn: it does not exist yet, and the one before is still the newest.
        _, file, _ = live.pop()
        file.write(0, [NO_HEADER])
        file.sync()
        result.free.append(file)
    _Replay(result, config, segment_file).run(live)
    return result


def _headless(reader: _Reader) -> Owner | None:
    """Sequence number and salt of a segment whose first record is damaged, though it was synced."""
    found = reader.search(ALIGN, None)
    while found is not None:
        place, record = found
        if record.type == BATCH:
            return record.segment, record.salt
        found = reader.search(place + record.length, None)
    return None


def _rotten(file: DiskFile, owner: Owner) -> bool:
    """Whether one flipped bit is all that is wrong with the segment's first header: the oldest segment looks like a
    file whose recycling was cut by a crash."""
    head = bytearray(file.read(0, HEADER_SIZE))
    for bit in range(8 * len(head)):
        head[bit // 8] ^= 1 << bit % 8
        record = unpack_header(head)
        if record is not None and record.type == SEGMENT and (record.segment, record.salt) == owner:
            return True
        head[bit // 8] ^= 1 << bit % 8
    return False


def _begun(newest: tuple[Owner, DiskFile, int], config: LogConfig) -> bool:
    """Whether the start of the newest segment, with the state of every group, is complete or was synced."""
    owner, file, end_of_previous = newest
    if end_of_previous < 0:
        return True
    reader = _Reader(file, config.segment_size)
    record = reader.header(0, owner)
    missing = record.term if record is not None else 0
    offset = record.length if record is not None else 0
    while missing:
        record = reader.header(offset, owner)
        if record is None or record.type != STATE or not reader.intact(offset, record):
            return _was_synced(reader, offset, record, owner)
        offset += record.length
        missing -= 1
    return True


def _was_synced(reader: _Reader, offset: int, record: Record | None, owner: Owner) -> bool:
    """Whether a batch was written after the place: then everything before it was durable."""
    found = reader.search(offset + (record.length if record else ALIGN), owner)
    while found is not None:
        place, later = found
        if later.type == BATCH:
            return True
        found = reader.search(place + later.length, owner)
    return False


class _Replay:
    def __init__(self, result: Scanned, config: LogConfig, files: SegmentFile) -> None:
        self._result = result
        self._config = config
        self._files = files
        self._proved: dict[int, int] = {}
        """Number of damaged places before the group's last record that fitted its chain."""

    def run(self, live: list[tuple[Owner, DiskFile, int]]) -> None:
        result = self._result
        for place, ((sequence, salt), file, _) in enumerate(live):
            segment = Segment(sequence, salt, file)
            result.segments.append(segment)
            before = live[place - 1][0][0]
            if place and sequence != before + 1:
                self._damaged(f"segments {before + 1}…{sequence - 1} are missing")
            limit = live[place + 1][2] if place + 1 < len(live) else None
            self._segment(segment, limit, first=place == 0, newest=place + 1 == len(live))
        damages = len(result.damage)
        for group, log in result.groups.items():
            if self._proved.get(group, 0) < damages and not log.corrupt:
                log.corrupt = "a damaged record may have been its last one: " + result.damage[-1]

    def _damaged(self, text: str, group: GroupLog | None = None) -> None:
        self._result.damage.append(text)
        if group is not None:
            group.corrupt = group.corrupt or text
            # The other groups' records are not concerned.
            for other in self._result.groups:
                self._proved[other] = self._proved.get(other, 0) + 1

    def _segment(self, segment: Segment, limit: int | None, *, first: bool, newest: bool) -> None:
        before = set(self._result.groups)
        seen: set[int] = set()
        damages = len(self._result.damage)
        for offset, record, header in self._records(segment, limit, newest):
            if record.type == STATE:
                seen.add(record.group)
            self._apply(segment, offset, record, header, first)
        if not first and damages == len(self._result.damage):
            for group in before - seen:  # its REMOVE record was in a damaged place
                self._result.groups.pop(group, None)
                self._forget(group)

    def _records(self, segment: Segment, limit: int | None, newest: bool) -> Iterator[tuple[int, Record, bytes]]:
        size = self._config.segment_size
        end = size if limit is None or limit < 0 else min(limit, size)
        reader = _Reader(segment.file, end)
        owner = (segment.sequence, segment.salt)
        offset = 0
        while offset < end:
            record = reader.header(offset, owner)
            if record is not None and reader.intact(offset, record):
                header = bytes(reader.view(offset + HEADER_SIZE, record.header_length))
                yield offset, record, header
                offset += record.length
                continue
            if (limit is None or limit < 0) and not _was_synced(reader, offset, record, owner):
                if newest:
                    self._clean(segment, reader, offset)
                break
            where = f"{segment.file.name} offset {offset}"
            if record is not None:
                group = self._result.groups.get(record.group)
                self._damaged(f"the record of group {record.group} at {where} is damaged", group)
                if group is not None:
                    group.chain = record.chain
                offset += record.length
            else:
                self._damaged(f"the record at {where} is damaged")
                following = reader.search(offset + ALIGN, owner)
                offset = following[0] if following else end
        segment.tail = offset

    def _clean(self, segment: Segment, reader: _Reader, offset: int) -> None:
        """Overwrites what an unsynced write left behind the cut, lest new records make it look valid."""
        end = offset
        owner = (segment.sequence, segment.salt)
        found = reader.search(offset, owner)
        while found is not None:
            place, record = found
            end = place + record.length
            found = reader.search(end, owner)
        if end > offset:
            for start in range(offset, end, MiB):
                segment.file.write(start, [bytes(min(MiB, end - start))])
            segment.file.sync()

    def _apply(self, segment: Segment, offset: int, record: Record, header: bytes, first: bool) -> None:
        groups = self._result.groups
        if record.type in (SEGMENT, BATCH):
            return
        group = record.group
        if record.type == REMOVE:
            groups.pop(group, None)
            self._forget(group)
            return
        log = groups.get(group)
        if record.type == CREATE or log is None:
            known = log is not None
            log = groups[group] = GroupLog(group, self._files)
            self._proved[group] = len(self._result.damage)
            if record.type == STATE:
                log.load(unpack_state(header))
                log.chain = record.chain
                if not first:
                    log.corrupt = log.corrupt or "its first records are damaged"
                return
            if record.type != CREATE:
                log.corrupt = "its first records are damaged"
                log.chain = record.chain
                return
            if known:
                log.corrupt = "created twice"
        if record.type == STATE:
            state = unpack_state(header)
            if log.chain != record.chain or log.last_index != state.last_index:
                log.corrupt = log.corrupt or f"a record before {segment.file.name} is damaged"
            log.term, log.vote = state.term, state.vote
            log.corrupt = log.corrupt or state.corrupt
            log.chain = record.chain
        else:
            if record.chain != log.chain + 1:
                log.corrupt = log.corrupt or f"a record before {segment.file.name} offset {offset} is damaged"
            log.chain = record.chain
            if not log.corrupt:
                try:
                    self._change(segment, offset, record, header, log)
                except CurveError as error:
                    log.corrupt = error.what
        self._proved[group] = len(self._result.damage)

    def _change(self, segment: Segment, offset: int, record: Record, header: bytes, log: GroupLog) -> None:
        kind = record.type
        if kind == ENTRY:
            log.append_position(record.position, record.term, segment.sequence, offset, record.length)
            if record.kind == CONFIG:
                log.configs.append((record.position, unpack_membership(header)))
            segment.last[log.group] = record.position
        elif kind == HARD:
            log.set_hard(HardState(record.term, record.position))
        elif kind == TRUNCATE:
            log.truncate(record.position, record.term)
            for other in self._result.segments:
                if other.last.get(log.group, 0) >= record.position:
                    other.last[log.group] = record.position - 1
        elif kind == CREATE:
            log.create(unpack_membership(header))
        elif kind == RESTORE_BEGIN:
            log.pending = (record.position, record.term, unpack_membership(header))
        elif kind == RESTORE:
            log.restore(record.position, record.term, unpack_membership(header))
            self._forget(log.group)

    def _forget(self, group: int) -> None:
        for segment in self._result.segments:
            segment.last.pop(group, None)
