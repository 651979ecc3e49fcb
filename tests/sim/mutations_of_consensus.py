"""Mistakes in raft, found by lives of simulated groups."""

from __future__ import annotations

from typing import Any

import pytest
from mutations import GROUPS, mutation

from curve_storage.consensus.api import Membership, Role
from curve_storage.consensus.engine import Engine
from curve_storage.consensus.log import SharedLog
from curve_storage.consensus.raft import Raft
from curve_storage.consensus.raft_election import Elections
from curve_storage.consensus.raft_messages import APPEND_REPLY, Message
from curve_storage.consensus.raft_quorum import quorum_value
from curve_storage.consensus.raft_reads import Reads
from curve_storage.consensus.raft_replication import Replication
from curve_storage.consensus.raft_state import RaftState


@mutation("A leader acknowledges before its own disk has the entry", GROUPS)
def leader_counts_itself_before_its_disk(patch: pytest.MonkeyPatch) -> None:
    original = Replication.match_of

    def match_of(self: Any, node: int) -> int:
        return self.log.last if node == self.node else original(self, node)

    patch.setattr(Replication, "match_of", match_of)


@mutation("A follower acknowledges before its disk has the entry", GROUPS)
def follower_acknowledges_before_its_disk(patch: pytest.MonkeyPatch) -> None:
    original = Replication.on_append

    def on_append(self: Any, message: Message) -> None:
        original(self, message)
        self.send(
            Message(
                APPEND_REPLY, self.group, self.node, message.src, self.term, self.verified, 0, self.log.last,
                message.stamp,
            )
        )  # fmt: skip

    patch.setattr(Replication, "on_append", on_append)


@mutation("An old term's entry is committed by counting replicas", GROUPS)
def entries_of_earlier_terms_are_committed_by_counting(patch: pytest.MonkeyPatch) -> None:
    def advance_commit(self: Any) -> None:
        self._check_commit = False
        index = quorum_value(self.membership, self.match_of)
        if index > self.commit:
            self.commit = min(index, self.log.last)
            self.on_commit()

    patch.setattr(Replication, "advance_commit", advance_commit)


@mutation("A vote is given without persisting it", GROUPS)
def vote_is_not_persisted(patch: pytest.MonkeyPatch) -> None:
    original = SharedLog.save

    def save(self: Any, log: Any, hard: Any, entries: Any, token: Any) -> None:
        original(self, log, hard._replace(vote=0) if hard is not None else None, entries, token)

    patch.setattr(SharedLog, "save", save)


@mutation("A vote goes to a candidate whose log is behind", GROUPS)
def votes_go_to_stale_logs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Elections, "_may_vote", lambda self, message: True)


@mutation("The lease is counted from the answer, not from the sending", GROUPS)
def the_lease_is_counted_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    original = Raft.step

    def step(self: Any, message: Message, now: float) -> None:
        if message.stamp and self.role is Role.LEADER:
            message.stamp = int(now * 1e9)
        original(self, message, now)

    patch.setattr(Raft, "step", step)


@mutation("Voters elect another leader inside the present one's lease", GROUPS)
def followers_vote_inside_the_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Elections, "in_lease", lambda self: False)


@mutation("A read-index read is served without asking a quorum", GROUPS)
def reads_are_served_without_a_round(patch: pytest.MonkeyPatch) -> None:
    def confirm(self: Any) -> None:
        while self.reads_unconfirmed:
            _, index, number = self.reads_unconfirmed.popleft()
            self.reads_confirmed.append((index, number))
        self.serve_applied_reads()

    original = Reads._register

    def register(self: Any, number: int) -> None:
        original(self, number)
        confirm(self)

    patch.setattr(Reads, "_register", register)


@mutation("A follower keeps entries that contradict the leader", GROUPS)
def conflicting_entries_are_kept(patch: pytest.MonkeyPatch) -> None:
    original = Replication.on_append

    def on_append(self: Any, message: Message) -> None:
        message.entries = [entry for entry in message.entries or [] if entry.index > self.log.last]
        original(self, message)

    patch.setattr(Replication, "on_append", on_append)


@mutation("A disk's late report vouches for entries that were replaced", GROUPS)
def truncation_does_not_recall_reports_of_the_disk(patch: pytest.MonkeyPatch) -> None:
    original = RaftState.truncate

    def truncate(self: Any, index: int) -> None:
        before = [batch[1] for batch in self._inflight]
        original(self, index)
        for batch, last in zip(self._inflight, before, strict=True):
            batch[1] = last

    patch.setattr(RaftState, "truncate", truncate)


@mutation("Members are exchanged in one step, without the joint membership", GROUPS)
def a_membership_replaces_the_old_one_in_one_step(patch: pytest.MonkeyPatch) -> None:
    original = Raft._append_membership

    def append(self: Any, membership: Any) -> None:
        if membership.outgoing:
            membership = Membership(voters=membership.voters, epoch=membership.epoch + 1)
        original(self, membership)

    patch.setattr(Raft, "_append_membership", append)
    patch.setattr(Raft, "_caught_up", lambda self, node: True)


@mutation("A snapshot is installed without a record in the log beforehand", GROUPS)
def snapshots_are_installed_without_telling_the_log(patch: pytest.MonkeyPatch) -> None:
    def begin(self: Any, group: Any, index: int, term: int, membership: Any, done: Any) -> bool:
        raft = group.raft
        if raft is None or group.installing or raft.role is Role.LEADER or not raft.lacks(index, term):
            return False
        group.installing = raft.hold_apply = True
        done()
        return True

    patch.setattr(Engine, "begin_install", begin)


@mutation("A leader serves reads by its lease after the lease has ended", GROUPS)
def reads_after_the_end_of_the_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reads, "lease_valid", lambda self, now: self.role is Role.LEADER and self.applied >= self.term_start)


@mutation("A lease is kept through a pause of the process", GROUPS)
def the_lease_is_kept_through_a_pause(patch: pytest.MonkeyPatch) -> None:
    def lease_valid(self: Any, now: float) -> bool:
        return (
            self.role is Role.LEADER
            and self.applied >= self.term_start
            and not self.transfer_to
            and self.last_tick < self.lease_until()
        )

    patch.setattr(Reads, "lease_valid", lease_valid)
