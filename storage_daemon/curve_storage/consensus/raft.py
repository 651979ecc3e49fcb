"""One member of a raft group: no I/O, no clock, no threads.

Inputs: tick, step, propose, read, change_members, transfer, resign, persisted, applied_to, compact, restore,
leader_lost. After any of them, `ready()` yields what the host must do (raft_messages.Ready). Built in
layers, one concept per module: raft_state → raft_replication → raft_election → raft_reads → raft_membership → here,
where messages are dispatched, time passes, and idle groups hibernate.

Hibernation: a leader whose members are all equal and idle asks them to sleep; when all agree, nobody ticks or sends.
Any message, proposal or read wakes a member; so does the host when the leader's process falls silent.
"""

from __future__ import annotations

import random

from curve_storage.consensus.api import Membership, Role
from curve_storage.consensus.config import RaftConfig
from curve_storage.consensus.raft_membership import FAILED, RUNNING, MembershipChanges
from curve_storage.consensus.raft_messages import (
    APPEND,
    APPEND_REPLY,
    HEARTBEAT,
    HEARTBEAT_REPLY,
    HIBERNATE,
    HIBERNATE_REPLY,
    PREVOTE,
    PREVOTE_REPLY,
    RESIGN,
    TIMEOUT_NOW,
    VOTE,
    VOTE_REPLY,
    Message,
    Restored,
    Storage,
)
from curve_storage.consensus.raft_progress import REPLICATE
from curve_storage.consensus.raft_state import NEVER

_FROM_LEADER = frozenset((APPEND, HEARTBEAT, HIBERNATE))


class Raft(MembershipChanges):
    __slots__ = ("_config_committed", "_sleep_round")

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
        super().__init__(node, group, config, rng, storage, restored, now)
        self.clear_change()
        self._sleep_round = 0
        self._config_committed = 0
        self.await_election()
        if self.voter:
            # After a restart: as soon as no lease from before can run. Where there is a leader, it is heard earlier.
            self.election_at = now + config.lease + config.election_timeout * config.election_spread * rng.random()
            self.deadline = self.election_at
        if self.membership.voters == (node,) or not restored.term:
            # Nobody can hold a lease: the only voter, or a group that never had a leader.
            self.election_at = self.deadline = now + config.heartbeat * rng.random() if self.voter else NEVER

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """Lets time pass; True when there may be output. Cheap when nothing is due."""
        gap = now - self.last_tick
        self.last_tick = now
        if gap > self.config.pause:
            self._stood_still(now)
        if now < self.deadline:
            return False
        self.set_now(now)
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self.voter:
            self.campaign()
        else:
            self.deadline = NEVER
        return True

    def _stood_still(self, now: float) -> None:
        """The process was paused: others may have elected a leader meanwhile, and messages wait unread."""
        self.set_now(now)
        self.lease_floor = max(self.lease_floor, self.new_stamp())
        if self.role is not Role.LEADER and not self.hibernating and self.election_at < now + self.config.heartbeat:
            self.election_at = now + self.config.heartbeat * (1 + self.rng.random())
            self.deadline = self.election_at

    def _tick_leader(self) -> None:
        now = self.now
        if not self.quorum_alive():
            self.follow(self.term, 0)
            return
        if now >= self.transfer_deadline:
            self.end_transfer()
        self.watch_change()
        if self._may_sleep():
            self._ask_sleep()
        else:
            for node, progress in self.progress.items():
                self.send_heartbeat(node, progress)
                if progress.state != REPLICATE:
                    progress.probing = False
                    self.replicate(node, progress)
        # On a common grid: the heartbeats of all groups of a process leave in the same turn.
        interval = self.config.heartbeat
        self.heartbeat_at = self.deadline = (now // interval + 1) * interval

    # --- messages ----------------------------------------------------------------------------------------------------

    def step(self, message: Message, now: float) -> None:
        """Takes one message of another member, received at `now` or earlier."""
        if now > self.now:
            self.now = now
        kind = message.kind
        if self.hibernating and kind != HIBERNATE and kind != HIBERNATE_REPLY:
            self.wake(self.now)
        term = message.term
        if term != self.term and not self._check_term(message):
            return
        if kind == APPEND_REPLY:
            if self.role is Role.LEADER:
                self.on_append_reply(message)
        elif kind in _FROM_LEADER:
            if self.role is Role.LEADER:
                return
            if self.leader != message.src or self.role is Role.PRE_CANDIDATE or self.role is Role.CANDIDATE:
                self.follow(term, message.src)
            self.contact = self.now
            if term != self.heard_term:
                self.heard_term = term
                self.leader_stamp = message.stamp
            elif message.stamp > self.leader_stamp:
                self.leader_stamp = message.stamp
            self.await_election()
            if kind == APPEND:
                self.on_append(message)
            elif kind == HEARTBEAT:
                self.on_heartbeat(message)
            else:
                self._on_hibernate(message)
        elif kind == HEARTBEAT_REPLY:
            if self.role is Role.LEADER:
                self.on_heartbeat_reply(message)
        elif kind == PREVOTE:
            self.on_prevote(message)
        elif kind == VOTE:
            self.on_vote(message)
        elif kind in (PREVOTE_REPLY, VOTE_REPLY):
            self.on_vote_reply(message)
        elif kind == TIMEOUT_NOW:
            self.on_timeout_now(message)
        elif kind == HIBERNATE_REPLY:
            self._on_hibernate_reply(message)
        elif kind == RESIGN:
            self.on_resign(message)

    def _check_term(self, message: Message) -> bool:
        """Handles a term that differs from ours; True when the message is still to be processed."""
        kind = message.kind
        if message.term > self.term:
            if kind == PREVOTE or (kind == PREVOTE_REPLY and not message.reject):
                return True
            if kind == VOTE and self.in_lease() and not self.forced_past_lease(message):
                return False
            self.follow(message.term, message.src if kind in _FROM_LEADER else 0)
            return True
        if kind in _FROM_LEADER:
            # A deposed leader, or one that this member's term has outrun: it must learn the newer term.
            self.reply(message, APPEND_REPLY, 0, reject=True)
        elif kind == PREVOTE:
            self.on_prevote(message)
        return False

    # --- progress of commit and apply --------------------------------------------------------------------------------

    def on_commit(self) -> None:
        if self.role is Role.LEADER:
            if self.reads_early:
                self.start_early_reads()
            if self.change == RUNNING or self.membership.outgoing or self.node not in self.membership.voters:
                self.membership_committed(self._config_committed)
            self._config_committed = self.commit

    def on_applied(self) -> None:
        if self.reads_confirmed:
            self.serve_applied_reads()
        log = self.log
        keep = self.applied if self.applied < self.persisted_index else self.persisted_index
        if keep < log.offset:
            return
        if self.role is Role.LEADER and log.bytes <= self.config.window_bytes:
            for progress in self.progress.values():
                if progress.match < keep:
                    keep = progress.match
        log.trim(keep)

    def on_leadership(self) -> None:
        self.clear_change()
        self._config_committed = self.commit
        if self.membership.outgoing:
            self.change = RUNNING
            self.target = self.membership.voters

    def on_leadership_lost(self) -> None:
        self.fail_reads()
        if self.change == RUNNING:
            self.change = FAILED
            self.change_error = "the leader changed; the new one completes or repeats it"

    def restore(self, index: int, term: int, membership: Membership, now: float) -> None:
        """The host has installed a snapshot of `index` durably, in the log as well as in the state machine."""
        self.set_now(now)
        self.log.reset(index, term)
        self.commit = self.applied = self._applying = self.persisted_index = self.verified = index
        self._unstable = index + 1
        self._inflight.clear()
        self._ack = False
        self.configs = [(index, membership)]
        self._adopt()

    # --- hibernation -------------------------------------------------------------------------------------------------

    def _may_sleep(self) -> bool:
        config = self.config
        last = self.log.last
        return (
            config.hibernate_after > 0
            and self.now - self.active_at > config.hibernate_after
            and self.applied == last
            and not self.transfer_to
            and self.change != RUNNING
            and not self.membership.outgoing
            and not self.reads_unconfirmed
            and all(progress.match == last for progress in self.progress.values())
        )

    def _ask_sleep(self) -> None:
        if not self.progress:
            self._sleep()
            return
        self._sleep_round = self.new_stamp()
        last = self.log.last
        for node in self.progress:
            self.send(
                Message(
                    HIBERNATE,
                    self.group,
                    self.node,
                    node,
                    self.term,
                    last,
                    self.log.last_term,
                    last,
                    self._sleep_round,
                )
            )

    def _on_hibernate(self, message: Message) -> None:
        same = (
            self.log.last == message.index
            and self.log.last_term == message.log_term
            and self.persisted_index == message.index
        )
        if same and message.index > self.commit:
            self.commit = message.index
            self.on_commit()
        self.reply(message, HIBERNATE_REPLY, message.index if same else 0, reject=not same)
        if same:
            self._sleep()
        else:
            self.hibernating = False

    def _on_hibernate_reply(self, message: Message) -> None:
        progress = self.progress.get(message.src)
        if self.role is not Role.LEADER or progress is None or self.hibernating or message.stamp < progress.born:
            return
        progress.active = self.now
        if message.stamp > progress.stamp:
            progress.stamp = message.stamp
            self.on_stamp()
        if message.reject or message.index != self.log.last:
            return
        progress.hibernated = message.stamp
        if self._may_sleep() and all(each.hibernated == self._sleep_round for each in self.progress.values()):
            self._sleep()

    def _sleep(self) -> None:
        self.hibernating = True
        self.deadline = NEVER

    def wake(self, now: float, contact: float | None = None) -> None:
        """Ends hibernation. `contact`: when the leader's process was last heard, now when not given."""
        self.set_now(now)
        if not self.hibernating:
            return
        self.hibernating = False
        self.last_tick = now
        self.active_at = now
        if self.role is Role.LEADER:
            self.leader_since = now
            self.lease_floor = max(self.lease_floor, self.new_stamp())
            self.heartbeat_at = self.deadline = now
        else:
            self.contact = now if contact is None else contact
            self.await_election()
            if contact is not None:
                self.election_at = self.deadline = max(now, self.election_at - (now - contact))
