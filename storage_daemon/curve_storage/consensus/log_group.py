"""What the shared log knows of one group: hard state, memberships, and where each entry lies."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable

from curve_storage.consensus.api import Membership
from curve_storage.consensus.disk import DiskFile
from curve_storage.consensus.entry import CONFIG, Entry, HardState, pack_membership, unpack_membership
from curve_storage.consensus.group_state import GroupState
from curve_storage.consensus.log_record import ENTRY, HEADER_SIZE, unpack_header
from curve_storage.consensus.raft_messages import Restored
from curve_storage.errors import Corruption, CurveError, Internal

SegmentFile = Callable[[int], DiskFile]


class GroupLog:
    """Changes as records are appended (durable or not yet), and again in the same way when they are scanned."""

    def __init__(self, group: int, files: SegmentFile) -> None:
        self.group = group
        self._files = files
        self.chain = 0
        self.term = 0
        self.vote = 0
        self.base_index = 0
        self.base_term = 0
        self.last_index = 0
        self.last_term = 0
        self.runs: list[tuple[int, int]] = []
        self.configs: list[tuple[int, Membership]] = []
        self.released = 0
        """A checkpoint holds everything up to here: the entries are needed only by members that lag."""
        self.pinned: int | None = None
        """A snapshot is being sent: entries after it are kept."""
        self.corrupt = ""
        self.pending: tuple[int, int, Membership] | None = None
        self._positions = array("Q")
        self._lengths = array("I")

    # --- changes ---------------------------------------------------------------------------------------------------

    def create(self, membership: Membership) -> None:
        self.configs = [(self.last_index, membership)]

    def set_hard(self, hard: HardState) -> None:
        self.term, self.vote = hard

    def append(self, entry: Entry, segment: int, offset: int, length: int) -> None:
        self.append_position(entry.index, entry.term, segment, offset, length)
        if entry.kind == CONFIG:
            self.configs.append((entry.index, unpack_membership(entry.header)))

    def append_position(self, index: int, term: int, segment: int, offset: int, length: int) -> None:
        if index != self.last_index + 1:
            raise Internal(f"group {self.group}: entry {index} does not follow {self.last_index}", where="log")
        self._positions.append(segment << 32 | offset)
        self._lengths.append(length)
        if term != self.last_term or not self.runs:
            self.runs.append((index, term))
            self.last_term = term
        self.last_index = index

    def truncate(self, index: int, previous_term: int) -> None:
        """Removes `index` and what follows; `previous_term` is the term of the entry before."""
        if index <= self.base_index:  # only while scanning: the entries before are in released segments
            self.reset(index - 1, previous_term)
        else:
            keep = index - self.base_index - 1
            del self._positions[keep:]
            del self._lengths[keep:]
            while self.runs and self.runs[-1][0] >= index:
                self.runs.pop()
            self.last_index = index - 1
            self.last_term = self.runs[-1][1] if self.runs else self.base_term
        while len(self.configs) > 1 and self.configs[-1][0] >= index:
            self.configs.pop()

    def restore(self, index: int, term: int, membership: Membership) -> None:
        self.reset(index, term)
        self.configs = [(index, membership)]
        self.pending = None

    def reset(self, index: int, term: int) -> None:
        self.base_index = self.last_index = index
        self.base_term = self.last_term = term
        self.runs.clear()
        del self._positions[:]
        del self._lengths[:]

    def compact(self, index: int) -> None:
        """Entries up to `index` are gone with their segment."""
        index = min(index, self.last_index)
        if index <= self.base_index:
            return
        term = self.term_at(index)
        count = index - self.base_index
        del self._positions[:count]
        del self._lengths[:count]
        if index == self.last_index:
            self.runs.clear()
        else:
            at = bisect_right(self.runs, (index + 1, 1 << 62)) - 1
            self.runs = [(index + 1, self.runs[at][1]), *self.runs[at + 1 :]]
        self.base_index, self.base_term = index, term
        self.drop_old_configs()

    def drop_old_configs(self) -> None:
        while len(self.configs) > 1 and self.configs[1][0] <= self.base_index:
            del self.configs[0]

    def term_at(self, index: int) -> int:
        if index == self.base_index:
            return self.base_term
        if not self.base_index < index <= self.last_index:
            raise Internal(f"group {self.group}: no entry {index}", where="log")
        return self.runs[bisect_right(self.runs, (index, 1 << 62)) - 1][1]

    # --- queries ---------------------------------------------------------------------------------------------------

    def releasable(self) -> int:
        """Entries up to here may leave the log."""
        if self.corrupt:
            return 1 << 62
        return self.released if self.pinned is None else min(self.released, self.pinned)

    def state(self) -> GroupState:
        pending = self.pending
        return GroupState(
            self.term,
            self.vote,
            self.last_index,
            self.last_term,
            [(index, pack_membership(membership)) for index, membership in self.configs],
            self.corrupt,
            (pending[0], pending[1], pack_membership(pending[2])) if pending else None,
        )

    def load(self, state: GroupState) -> None:
        """The state at the start of the oldest segment: what came before is released."""
        self.term, self.vote = state.term, state.vote
        self.reset(state.last_index, state.last_term)
        self.configs = [(index, unpack_membership(data)) for index, data in state.configs]
        self.corrupt = state.corrupt
        self.pending = (
            (state.pending[0], state.pending[1], unpack_membership(state.pending[2])) if state.pending else None
        )
        # All memberships stay: the last entries, newer memberships among them, may yet be truncated.

    def restored(self, applied: int) -> Restored:
        return Restored(
            term=self.term,
            vote=self.vote,
            base_index=self.base_index,
            base_term=self.base_term,
            last_index=self.last_index,
            runs=list(self.runs),
            configs=list(self.configs),
            applied=applied,
        )

    def segment_of(self, index: int) -> int:
        return self._positions[index - self.base_index - 1] >> 32

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low…high, at least one, cut after `max_bytes`. Raises Corruption naming the group."""
        found: list[Entry] = []
        total = 0
        for index in range(low, high + 1):
            at = index - self.base_index - 1
            if at < 0 or at >= len(self._positions):
                raise Internal(f"group {self.group}: entry {index} is not in the log", where="log")
            total += self._lengths[at]
            if found and total > max_bytes:
                break
            found.append(self._read_one(index, self._positions[at], self._lengths[at]))
        return found

    def _read_one(self, index: int, position: int, length: int) -> Entry:
        segment, offset = position >> 32, position & 0xFFFFFFFF
        try:
            data = memoryview(self._files(segment).read(offset, length))
        except CurveError as error:
            raise Corruption(f"entry {index} of group {self.group} cannot be read: {error.what}") from error
        record = unpack_header(data)
        if (
            record is None
            or (record.type, record.group, record.position, record.segment) != (ENTRY, self.group, index, segment)
            or record.length > len(data)
        ):
            raise Corruption(
                f"entry {index} of group {self.group} is damaged in the log",
                where=f"segment {segment} offset {offset}",
                todo="This replica is to be rebuilt from its peers",
            )
        split = HEADER_SIZE + record.header_length
        entry = Entry(
            index,
            record.term,
            record.kind,
            bytes(data[HEADER_SIZE:split]),
            data[split : split + record.payload_length],
        )
        if entry.crc != record.data_crc:
            raise Corruption(
                f"the data of entry {index} of group {self.group} is damaged in the log",
                where=f"segment {segment} offset {offset}",
                todo="This replica is to be rebuilt from its peers",
            )
        return entry
