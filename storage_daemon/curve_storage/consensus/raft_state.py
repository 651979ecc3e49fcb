"""State every part of the raft core works on: term and vote, log and persistence, outgoing messages, applying.

Persistence: what `ready` hands out carries a number; `persisted(number)` reports it durable. A truncation clamps the
batches still on their way, so that a late report never vouches for entries that were replaced. Messages that would
reveal a term or vote not yet durable are held back here until it is.
"""

from __future__ import annotations

import random
from collections import deque

from curve_storage.consensus.api import Membership, Role
from curve_storage.consensus.config import RaftConfig
from curve_storage.consensus.entry import CONFIG, Entry, HardState, unpack_membership
from curve_storage.consensus.raft_log import RaftLog
from curve_storage.consensus.raft_messages import (
    APPEND_REPLY,
    Message,
    Ready,
    Restored,
    RoleChange,
    SnapshotNeed,
    Storage,
)
from curve_storage.consensus.raft_progress import Progress
from curve_storage.consensus.raft_quorum import is_voter
from curve_storage.errors import Internal

NEVER = float("inf")


class RaftState:
    __slots__ = (
        "_ack", "_ack_sent", "_applying", "_broadcast", "_check_commit", "_hard_changed", "_hard_number", "_held",
        "_inflight", "_leader_told", "_membership_changed", "_number", "_out", "_reads_done", "_reads_failed",
        "_role_told", "_snapshots", "_term_told", "_unstable", "active_at", "applied", "commit", "config",
        "config_index", "configs", "contact", "deadline", "election_at", "force_from", "forced", "granted", "group",
        "heard_term", "heartbeat_at", "hibernating", "hold_apply", "last_tick", "leader", "leader_since",
        "leader_stamp", "lease_floor", "log", "membership", "node", "now", "persisted_index", "progress",
        "read_number", "read_round", "reads_confirmed", "reads_early", "reads_unconfirmed", "refused", "rng", "role",
        "stamp", "term", "term_start", "transfer_deadline", "transfer_to", "verified", "vote", "voter",
    )  # fmt: skip

    def __init__(
        self,
        node: int,
        group: int,
        config: RaftConfig,
        rng: random.Random,
        storage: Storage,
        restored: Restored,
        now: float,
    ) -> None:
        self.node = node
        self.group = group
        self.config = config
        self.rng = rng
        self.now = now
        self.last_tick = now
        self.deadline = NEVER
        """When `tick` next has something to do."""

        self.term = restored.term
        self.vote = restored.vote
        self.leader = 0
        self.role = Role.FOLLOWER
        self.log = RaftLog(restored, storage)
        self.commit = max(restored.applied, restored.base_index)
        self.applied = self.commit
        self.persisted_index = restored.last_index
        if self.commit > self.log.last:
            raise Internal(f"group {group}: applied {self.commit} is beyond the log's end {self.log.last}")

        self.configs: list[tuple[int, Membership]] = list(restored.configs) or [(0, Membership(voters=()))]
        self.membership = self.configs[-1][1]
        self.config_index = self.configs[-1][0]
        self.voter = is_voter(self.membership, node)
        if not self.voter:
            self.role = Role.LEARNER

        # As a follower.
        self.contact = now if restored.term else -NEVER
        """When a leader was last heard. After a restart: the start, for a lease granted before it may still run."""
        self.leader_stamp = 0
        self.heard_term = 0
        """Term of the leader last heard, and its newest stamp."""
        self.force_from = self.contact + config.lease
        """Transfers may break the lease only from here: what was heard before a restart is forgotten."""
        self.verified = self.commit
        """Up to here the log is known to equal the leader's."""
        self.election_at = NEVER
        self.hibernating = False

        # As a candidate.
        self.granted: set[int] = set()
        self.refused: set[int] = set()
        self.forced = 0
        """Stamp of the transfer that allows this candidacy to break the lease."""

        # As a leader.
        self.progress: dict[int, Progress] = {}
        self.term_start = 0
        """Index of this leader's first entry."""
        self.leader_since = now
        self.heartbeat_at = NEVER
        self.lease_floor = 0
        """Only answers to messages sent after this stamp count for the lease."""
        self.stamp = 0
        self.active_at = now
        self.transfer_to = 0
        self.transfer_deadline = NEVER

        # Reads: (stamp, commit index, id) waiting for a quorum; then (index, id) waiting to be applied.
        self.reads_unconfirmed: deque[tuple[int, int, int]] = deque()
        self.reads_early: list[int] = []
        self.reads_confirmed: deque[tuple[int, int]] = deque()
        self.read_number = 0
        self.read_round = False

        # Output.
        self._number = 0
        self._unstable = self.log.last + 1
        self._inflight: deque[list[int]] = deque()
        self._hard_changed = False
        self._hard_number = 0
        self._held: list[Message] = []
        self._out: list[Message] = []
        self._applying = self.applied
        self.hold_apply = False
        """A snapshot is being installed: nothing is applied."""
        self._reads_done: list[int] = []
        self._reads_failed: list[int] = []
        self._snapshots: list[SnapshotNeed] = []
        self._role_told: Role | None = None
        self._term_told = self._leader_told = 0
        self._membership_changed = True
        self._ack = False
        self._ack_sent = 0
        self._broadcast = False
        self._check_commit = False

    # --- hooks of the layers above ---------------------------------------------------------------------------------

    def on_membership(self) -> None:
        """The membership in force changed (appended, rolled back or restored)."""
        raise NotImplementedError

    def before_ready(self) -> None:
        """Last chance to turn collected flags into messages."""
        raise NotImplementedError

    def on_applied(self) -> None:
        raise NotImplementedError

    def on_hard_state_durable(self) -> None:
        raise NotImplementedError

    # --- clock ---------------------------------------------------------------------------------------------------

    def set_now(self, now: float) -> None:
        if now > self.now:
            self.now = now

    def new_stamp(self) -> int:
        """The present as ns; never smaller than an earlier one."""
        stamp = int(self.now * 1e9)
        if stamp > self.stamp:
            self.stamp = stamp
        return self.stamp

    # --- term and role ---------------------------------------------------------------------------------------------

    def set_term(self, term: int, vote: int) -> None:
        self.term = term
        self.vote = vote
        self._hard_changed = True

    def send(self, message: Message) -> None:
        """Sent now, or when term and vote are durable."""
        if self._hard_changed or self._hard_number:
            self._held.append(message)
        else:
            self._out.append(message)

    # --- log -------------------------------------------------------------------------------------------------------

    def append_entry(self, entry: Entry) -> None:
        self.log.append(entry)
        if entry.kind == CONFIG:
            self.configs.append((entry.index, unpack_membership(entry.header)))
            self._adopt()

    def truncate(self, index: int) -> None:
        if index <= self.commit:
            raise Internal(
                f"group {self.group}: the leader's log contradicts committed entry {index}",
                where=f"node {self.node}",
                todo="Stop this process and rebuild the replica",
            )
        self.log.truncate(index)
        self._unstable = min(self._unstable, index)
        self.persisted_index = min(self.persisted_index, index - 1)
        for batch in self._inflight:
            batch[1] = min(batch[1], index - 1)
        if self.configs[-1][0] >= index:
            while len(self.configs) > 1 and self.configs[-1][0] >= index:
                self.configs.pop()
            self._adopt()

    def _adopt(self) -> None:
        self.config_index, self.membership = self.configs[-1]
        self.voter = is_voter(self.membership, self.node)
        self._membership_changed = True
        self.on_membership()

    def membership_at(self, index: int) -> Membership:
        """The membership that was in force when `index` was the last entry."""
        found = self.configs[0][1]
        for at, membership in self.configs:
            if at > index:
                break
            found = membership
        return found

    def lacks(self, index: int, term: int) -> bool:
        """Whether a snapshot of this index and term would bring anything."""
        return index > self.commit and self.log.term(index) != term

    @property
    def durable_commit(self) -> int:
        """Up to here this member holds durably what every later leader holds too."""
        return min(self.commit, self.persisted_index)

    def compact(self, index: int) -> None:
        """The durable log has released entries up to `index` (applied ones only)."""
        self.log.compact(min(index, self.applied))
        base = self.log.base
        while len(self.configs) > 1 and self.configs[1][0] <= base:
            del self.configs[0]

    # --- output ----------------------------------------------------------------------------------------------------

    def ready(self) -> Ready | None:
        """Everything collected since the last call, or None."""
        if self._check_commit or self._broadcast or self.read_round:
            self.before_ready()
        last = self.log.last
        stable = self._unstable > last
        limit = self.commit if self.commit < self.persisted_index else self.persisted_index
        apply = limit > self._applying and not self.hold_apply
        same = self.role is self._role_told and self.term == self._term_told and self.leader == self._leader_told
        if (
            same
            and stable
            and not apply
            and not self._out
            and not self._hard_changed
            and not self._reads_done
            and not self._reads_failed
            and not self._membership_changed
            and not self._snapshots
        ):
            return None
        result = Ready()
        if self._hard_changed or not stable:
            self._number = result.number = self._number + 1
            if self._hard_changed:
                result.hard_state = HardState(self.term, self.vote)
                self._hard_changed = False
                self._hard_number = result.number
            if not stable:
                result.entries = self.log.entries[self._unstable - self.log.offset :]
                self._unstable = last + 1
            self._inflight.append([result.number, last])
        if self._out:
            result.messages, self._out = self._out, []
        if apply:
            result.committed = self.log.slice(self._applying + 1, limit, self.config.max_apply_bytes, 1024)
            self._applying = result.committed[-1].index
        if self._reads_done:
            result.reads, self._reads_done = self._reads_done, []
        if self._reads_failed:
            result.failed_reads, self._reads_failed = self._reads_failed, []
        if not same:
            self._role_told, self._term_told, self._leader_told = self.role, self.term, self.leader
            result.role = RoleChange(self.role, self.term, self.leader)
        if self._membership_changed:
            self._membership_changed = False
            result.membership = self.membership
        if self._snapshots:
            result.snapshots, self._snapshots = self._snapshots, []
        return result

    @property
    def more_to_apply(self) -> bool:
        return min(self.commit, self.persisted_index) > self._applying

    def persisted(self, number: int) -> None:
        """Every Ready up to `number` is durable."""
        inflight = self._inflight
        upto = self.persisted_index
        while inflight and inflight[0][0] <= number:
            upto = max(upto, inflight.popleft()[1])
        if upto > self.persisted_index:
            self.persisted_index = upto
            self._check_commit = True
        if self._hard_number and self._hard_number <= number:
            self._hard_number = 0
            if not self._hard_changed:
                self._out.extend(self._held)
                self._held.clear()
                self.on_hard_state_durable()
        if self._ack and self.leader:
            index = min(self.verified, upto)
            if index > self._ack_sent:
                self._ack_sent = index
                self._ack = index < self.verified
                self.send(
                    Message(
                        APPEND_REPLY,
                        self.group,
                        self.node,
                        self.leader,
                        self.term,
                        index,
                        0,
                        self.log.last,
                        self.leader_stamp,
                    )
                )

    def applied_to(self, index: int) -> None:
        """The host has applied everything up to `index`."""
        if index > self.applied:
            self.applied = index
            self.on_applied()
