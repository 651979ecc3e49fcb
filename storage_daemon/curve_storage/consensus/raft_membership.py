"""Membership changes: new members learn first, then one joint step replaces all voters at once.

A membership is in force from the moment it is appended, and goes back with its entry. One change at a time: a further
membership is appended only when the last one is committed. A joint membership found by a new leader is always
completed; learners left over from a change whose leader died go with the next change.
"""

from __future__ import annotations

from typing import Final

from curve_storage.consensus.api import Membership, Role
from curve_storage.consensus.entry import CONFIG, Entry, pack_membership
from curve_storage.consensus.raft_messages import APPEND, Message
from curve_storage.consensus.raft_progress import REPLICATE, Progress
from curve_storage.consensus.raft_reads import Reads
from curve_storage.errors import FailedPrecondition, InvalidArgument, NotLeader

NONE: Final = "none"
RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"


class MembershipChanges(Reads):
    __slots__ = ("abandoning", "change", "change_error", "target")

    target: tuple[int, ...]
    change: str
    change_error: str
    abandoning: bool

    def clear_change(self) -> None:
        self.target = ()
        self.change = NONE
        self.change_error = ""
        self.abandoning = False

    def change_members(self, voters: tuple[int, ...], now: float) -> None:
        """Starts the change to exactly these voters. Raises NotLeader, FailedPrecondition, InvalidArgument."""
        self.set_now(now)
        if self.role is not Role.LEADER:
            raise NotLeader(
                "only the leader changes members", leader=str(self.leader or ""), where=f"group {self.group}"
            )
        if not voters or len(set(voters)) != len(voters) or 0 in voters:
            raise InvalidArgument(f"{voters} is not a set of voters", where=f"group {self.group}")
        if self.change == RUNNING and set(self.target) == set(voters):
            return
        if self.change == RUNNING or self.membership.outgoing or self.config_index > self.commit:
            raise FailedPrecondition(
                "a membership change is under way", where=f"group {self.group}", todo="Wait until it has ended"
            )
        self.change_error = ""
        if set(voters) == set(self.membership.voters) and not self.membership.learners:
            self.change = DONE
            return
        if self.hibernating:
            self.wake(now)
        self.active_at = now
        self.target = voters
        self.change = RUNNING
        self.abandoning = False
        for progress in self.progress.values():
            progress.active = now
        self.drive_change()

    def drive_change(self) -> None:
        """One step further, when the last membership is committed."""
        if self.role is not Role.LEADER or self.config_index > self.commit or self.commit < self.term_start:
            return
        present = self.membership
        if present.outgoing:
            self._append_membership(
                Membership(voters=present.voters, learners=present.learners, epoch=present.epoch + 1)
            )
            return
        if self.change != RUNNING:
            return
        if self.abandoning:
            if present.learners:
                self._append_membership(Membership(voters=present.voters, epoch=present.epoch))
            else:
                self.change = FAILED
            return
        target = self.target
        if set(present.voters) == set(target):
            if present.learners:
                self._append_membership(Membership(voters=present.voters, epoch=present.epoch + 1))
            else:
                self.change = DONE
            return
        new = tuple(node for node in target if node not in present.voters)
        if set(new) != set(present.learners):
            self._append_membership(Membership(voters=present.voters, learners=new, epoch=present.epoch))
        elif all(self._caught_up(node) for node in new):
            self._append_membership(
                Membership(voters=target, outgoing=present.voters, learners=(), epoch=present.epoch)
            )

    def _caught_up(self, node: int) -> bool:
        progress = self.progress.get(node)
        if progress is None:
            return node == self.node
        # It must know itself a member before its vote can be needed.
        if progress.match < self.config_index:
            return False
        return progress.state == REPLICATE and self.log.last - progress.match <= self.config.learner_lag

    def watch_change(self) -> None:
        """Gives up when a new member does not answer for long; what has been joined is completed anyway."""
        if self.change != RUNNING or self.abandoning or self.membership.outgoing:
            return
        for node in self.membership.learners:
            progress = self.progress.get(node)
            if progress is not None and self.now - progress.active > self.config.change_timeout:
                self.abandoning = True
                self.change_error = (
                    f"node {node} has not answered for {self.config.change_timeout:.0f} s and was not added"
                )
                self.drive_change()
                return
        # A learner may have caught up with nothing left to acknowledge.
        self.drive_change()

    def _append_membership(self, membership: Membership) -> None:
        entry = Entry(self.log.last + 1, self.term, CONFIG, pack_membership(membership))
        self.append_entry(entry)
        self.active_at = self.now
        self._broadcast = True

    def on_membership(self) -> None:
        if self.role is Role.LEADER:
            self.sync_progress()
        elif self.role is Role.LEARNER or not self.voter:
            self.role = Role.FOLLOWER if self.voter else Role.LEARNER
            self.await_election()

    def on_match(self, node: int, progress: Progress) -> None:
        if self.transfer_to == node:
            self.push_transfer()
        if self.change == RUNNING and node in self.membership.learners:
            self.drive_change()

    def membership_committed(self, previous_commit: int) -> None:
        """Called when the commit index has advanced."""
        if self.role is not Role.LEADER:
            return
        if previous_commit < self.config_index <= self.commit:
            present = self.membership
            if not present.outgoing and self.node not in present.voters:
                self._leave()
                return
        if self.change == RUNNING or self.membership.outgoing:
            self.drive_change()

    def _leave(self) -> None:
        """The leader itself was removed: tell the others how far it committed, then let them elect."""
        self.change = DONE
        for node in self.progress:
            term = self.log.term(self.log.last)
            self.send(
                Message(
                    APPEND,
                    self.group,
                    self.node,
                    node,
                    self.term,
                    self.log.last,
                    term or 0,
                    self.commit,
                    self.new_stamp(),
                    entries=[],
                )
            )
        self.resign(self.now)
