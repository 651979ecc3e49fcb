"""The simulation must be able to fail: classic mistakes are planted, and each must be found within a few lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import consensus_cluster
import pytest
from consensus_model import Violation

from curve_storage.consensus.api import Role
from curve_storage.consensus.engine import Engine
from curve_storage.consensus.log import SharedLog
from curve_storage.consensus.raft import Raft
from curve_storage.consensus.raft_election import Elections
from curve_storage.consensus.raft_messages import APPEND_REPLY, Message
from curve_storage.consensus.raft_quorum import quorum_value
from curve_storage.consensus.raft_reads import Reads
from curve_storage.consensus.raft_replication import Replication
from curve_storage.consensus.raft_state import RaftState

LIVES = 600

Plant = Callable[[pytest.MonkeyPatch], None]


def leader_counts_itself_before_its_disk(patch: pytest.MonkeyPatch) -> None:
    original = Replication.match_of

    def match_of(self: Any, node: int) -> int:
        return self.log.last if node == self.node else original(self, node)

    patch.setattr(Replication, "match_of", match_of)


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


def entries_of_earlier_terms_are_committed_by_counting(patch: pytest.MonkeyPatch) -> None:
    def advance_commit(self: Any) -> None:
        self._check_commit = False
        index = quorum_value(self.membership, self.match_of)
        if index > self.commit:
            self.commit = min(index, self.log.last)
            self.on_commit()

    patch.setattr(Replication, "advance_commit", advance_commit)


def vote_is_not_persisted(patch: pytest.MonkeyPatch) -> None:
    original = SharedLog.save

    def save(self: Any, log: Any, hard: Any, entries: Any, token: Any) -> None:
        original(self, log, hard._replace(vote=0) if hard is not None else None, entries, token)

    patch.setattr(SharedLog, "save", save)


def votes_go_to_stale_logs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Elections, "_may_vote", lambda self, message: True)


def the_lease_is_counted_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    original = Raft.step

    def step(self: Any, message: Message, now: float) -> None:
        if message.stamp and self.role is Role.LEADER:
            message.stamp = int(now * 1e9)
        original(self, message, now)

    patch.setattr(Raft, "step", step)


def followers_vote_inside_the_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Elections, "in_lease", lambda self: False)


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


def conflicting_entries_are_kept(patch: pytest.MonkeyPatch) -> None:
    original = Replication.on_append

    def on_append(self: Any, message: Message) -> None:
        message.entries = [entry for entry in message.entries or [] if entry.index > self.log.last]
        original(self, message)

    patch.setattr(Replication, "on_append", on_append)


def truncation_does_not_recall_reports_of_the_disk(patch: pytest.MonkeyPatch) -> None:
    original = RaftState.truncate

    def truncate(self: Any, index: int) -> None:
        before = [batch[1] for batch in self._inflight]
        original(self, index)
        for batch, last in zip(self._inflight, before, strict=True):
            batch[1] = last

    patch.setattr(RaftState, "truncate", truncate)


def a_membership_replaces_the_old_one_in_one_step(patch: pytest.MonkeyPatch) -> None:
    original = Raft._append_membership

    def append(self: Any, membership: Any) -> None:
        if membership.outgoing:
            from curve_storage.consensus.api import Membership

            membership = Membership(voters=membership.voters, epoch=membership.epoch + 1)
        original(self, membership)

    patch.setattr(Raft, "_append_membership", append)
    patch.setattr(Raft, "_caught_up", lambda self, node: True)


def snapshots_are_installed_without_telling_the_log(patch: pytest.MonkeyPatch) -> None:
    def begin(self: Any, group: Any, index: int, term: int, membership: Any, done: Any) -> bool:
        raft = group.raft
        if raft is None or group.installing or raft.role is Role.LEADER or not raft.lacks(index, term):
            return False
        group.installing = raft.hold_apply = True
        done()
        return True

    patch.setattr(Engine, "begin_install", begin)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "plant",
    [
        leader_counts_itself_before_its_disk,
        follower_acknowledges_before_its_disk,
        entries_of_earlier_terms_are_committed_by_counting,
        vote_is_not_persisted,
        votes_go_to_stale_logs,
        the_lease_is_counted_from_the_answer,
        followers_vote_inside_the_lease,
        reads_are_served_without_a_round,
        conflicting_entries_are_kept,
        truncation_does_not_recall_reports_of_the_disk,
        a_membership_replaces_the_old_one_in_one_step,
        snapshots_are_installed_without_telling_the_log,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_mistake_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in range(1, 1 + LIVES):
        try:
            consensus_cluster.run(seed)
        except Violation:
            return
    raise AssertionError(f"{LIVES} lives did not notice: {plant.__name__}")
