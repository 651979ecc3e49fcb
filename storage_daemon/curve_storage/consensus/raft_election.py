"""Elections: pre-vote, votes, check-quorum, leadership transfer, and the follower's side of the lease.

A member that is not in its own membership gives no vote: it is new, and may have been a member before, with a memory
that is gone. A voter that has heard a leader less than `lease` ago refuses every vote and pre-vote, so that a
leader's lease cannot be broken. The one exception is a transfer: TIMEOUT_NOW carries the stamp at which the leader
gives up waiting, the forced votes carry it on, and whoever has heard the leader after that stamp refuses them like
any other.
"""

from __future__ import annotations

from curve_storage.consensus.api import Role
from curve_storage.consensus.entry import NOOP, Entry
from curve_storage.consensus.raft_messages import (
    PREVOTE,
    PREVOTE_REPLY,
    RESIGN,
    TIMEOUT_NOW,
    VOTE,
    VOTE_REPLY,
    Message,
)
from curve_storage.consensus.raft_progress import Progress
from curve_storage.consensus.raft_quorum import has_quorum, is_voter, lost_quorum, quorum_value
from curve_storage.consensus.raft_replication import Replication
from curve_storage.consensus.raft_state import NEVER
from curve_storage.errors import FailedPrecondition, NotLeader


class Elections(Replication):
    __slots__ = ()

    # --- hooks -----------------------------------------------------------------------------------------------------

    def on_leadership(self) -> None:
        raise NotImplementedError

    def on_leadership_lost(self) -> None:
        raise NotImplementedError

    # --- roles -----------------------------------------------------------------------------------------------------

    def follow(self, term: int, leader: int) -> None:
        """Becomes (or stays) a follower of `leader` (0 unknown) in `term`."""
        was_leader = self.role is Role.LEADER
        if term > self.term or leader != self.leader:
            if term > self.term:
                self.set_term(term, 0)
            self.leader = leader
            self._forget_leader()
        self.role = Role.FOLLOWER if self.voter else Role.LEARNER
        self.forced = 0
        self.hibernating = False
        if was_leader:
            self.transfer_to = 0
            self.transfer_deadline = NEVER
            self.heartbeat_at = NEVER
            self.on_leadership_lost()
            self.progress.clear()
        self.await_election()

    def _forget_leader(self) -> None:
        """Only what is committed equals every later leader's log for certain."""
        self.verified = self.commit
        self._ack_sent = 0
        self._ack = False

    def await_election(self, *, retry: bool = False) -> None:
        """Restarts the election timer with a new random length; a candidate tries again sooner."""
        if self.voter:
            base = self.config.election_timeout
            random = self.rng.random()
            wait = base * (0.15 + 0.3 * random) if retry else base * (1 + self.config.election_spread * random)
            self.election_at = self.now + wait
        else:
            self.election_at = NEVER
        if self.role is not Role.LEADER:
            self.deadline = self.election_at

    def leader_lost(self, now: float, *, dead: bool) -> None:
        """The leader's process is `dead` for certain (it has restarted), or seems so (its port refuses connections):
        campaign earlier. A suspicion never shortens the lease."""
        self.set_now(now)
        if self.role is Role.LEADER or not self.voter:
            return
        if dead:
            self.contact = -NEVER
            self.leader = 0
        self.hibernating = False
        earliest = max(self.contact + self.config.lease, now)
        spread = self.config.heartbeat * self.rng.random()
        self.election_at = min(self.election_at, earliest + spread)
        self.deadline = self.election_at

    def in_lease(self) -> bool:
        """True while this member must not help to elect another leader."""
        if self.hibernating:
            return True
        if self.role is Role.LEADER:
            return self.quorum_stamp() / 1e9 + self.config.lease > self.now
        return self.now - self.contact < self.config.lease

    def quorum_stamp(self) -> int:
        """The newest stamp that a quorum has answered (the leader answers itself)."""
        return quorum_value(self.membership, self._stamp_of)

    def _stamp_of(self, node: int) -> int:
        if node == self.node:
            return 1 << 62
        progress = self.progress.get(node)
        return progress.stamp if progress is not None else 0

    # --- campaign ----------------------------------------------------------------------------------------------------

    def campaign(self, *, forced: int = 0) -> None:
        """Pre-vote first; a transferred leadership goes straight to the vote."""
        if not self.voter:
            return
        self.hibernating = False
        self.leader = 0
        self.granted = {self.node}
        self.refused = set()
        self.forced = forced
        if forced:
            self._ask_votes()
            return
        self.role = Role.PRE_CANDIDATE
        self.await_election(retry=True)
        self._ask(PREVOTE, self.term + 1)
        if has_quorum(self.membership, self.granted):
            self._ask_votes()

    def _ask_votes(self) -> None:
        """The own vote counts, and the requests leave, only when it is durable."""
        self.role = Role.CANDIDATE
        self.set_term(self.term + 1, self.node)
        self._forget_leader()
        self.granted = set()
        self.refused = set()
        self.await_election(retry=True)
        self._ask(VOTE, self.term)

    def _ask(self, kind: int, term: int) -> None:
        voters = dict.fromkeys((*self.membership.voters, *self.membership.outgoing))
        for node in voters:
            if node != self.node:
                self.send(
                    Message(
                        kind,
                        self.group,
                        self.node,
                        node,
                        term,
                        self.log.last,
                        self.log.last_term,
                        self.commit,
                        self.forced,
                        bool(self.forced),
                    )
                )

    def on_hard_state_durable(self) -> None:
        if self.role is Role.CANDIDATE and self.vote == self.node:
            self.granted.add(self.node)
            if has_quorum(self.membership, self.granted):
                self._lead()

    def _may_vote(self, message: Message) -> bool:
        up_to_date = (message.log_term, message.index) >= (self.log.last_term, self.log.last)
        return up_to_date and self.node in self.membership.members

    def on_prevote(self, message: Message) -> None:
        grant = message.term > self.term and self._may_vote(message) and not self.in_lease()
        self.send(
            Message(
                PREVOTE_REPLY,
                self.group,
                self.node,
                message.src,
                message.term if grant else self.term,
                reject=not grant,
            )
        )

    def forced_past_lease(self, message: Message) -> bool:
        """A vote forced by a transfer that this member's leader has not gone beyond."""
        if not message.reject or self.now < self.force_from:
            return False
        transferred = message.term - 1
        return self.heard_term < transferred or (self.heard_term == transferred and self.leader_stamp <= message.stamp)

    def on_vote(self, message: Message) -> None:
        free = self.vote == message.src or (self.vote == 0 and self.leader == 0)
        grant = (
            free
            and self.role is not Role.LEADER
            and self._may_vote(message)
            and (not self.in_lease() or self.forced_past_lease(message))
        )
        if grant:
            if self.role is Role.PRE_CANDIDATE:
                self.role = Role.FOLLOWER
            if self.vote != message.src:
                self.set_term(self.term, message.src)
            self.await_election()
        self.send(Message(VOTE_REPLY, self.group, self.node, message.src, self.term, reject=not grant))

    def on_vote_reply(self, message: Message) -> None:
        pre = message.kind == PREVOTE_REPLY
        if self.role is not (Role.PRE_CANDIDATE if pre else Role.CANDIDATE):
            return
        if pre and not message.reject and message.term != self.term + 1:
            return
        (self.refused if message.reject else self.granted).add(message.src)
        if has_quorum(self.membership, self.granted):
            if pre:
                self._ask_votes()
            else:
                self._lead()
        elif lost_quorum(self.membership, self.refused):
            self.role = Role.FOLLOWER

    # --- leader ------------------------------------------------------------------------------------------------------

    def _lead(self) -> None:
        """A new leader's first entry is empty: only with it can entries of earlier terms be counted as committed."""
        self.role = Role.LEADER
        self.leader = self.node
        self.leader_since = self.active_at = self.now
        self.transfer_to = 0
        self.transfer_deadline = NEVER
        self.election_at = NEVER
        self.forced = 0
        self.lease_floor = 0
        last = self.log.last
        self.progress = {}
        self.sync_progress()
        self.term_start = last + 1
        self.append_entry(Entry(last + 1, self.term, NOOP, b""))
        self._broadcast = True
        self.heartbeat_at = self.deadline = self.now
        self.on_leadership()

    def sync_progress(self) -> None:
        """One Progress per member, new ones probed from the end of the log."""
        members = self.membership.members
        for node in members:
            if node not in self.progress and node != self.node:
                self.stamp = max(int(self.now * 1e9), self.stamp + 1)
                self.progress[node] = Progress(self.log.last + 1, self.stamp)
                self.progress[node].active = self.now
        for node in [node for node in self.progress if node not in members]:
            del self.progress[node]

    def quorum_alive(self) -> bool:
        """Check-quorum: a leader that no quorum has answered for an election timeout is none."""
        heard = max(self.quorum_stamp() / 1e9, self.leader_since)
        return self.now - heard < self.config.election_timeout

    # --- transfer ----------------------------------------------------------------------------------------------------

    def transfer(self, to: int, now: float) -> None:
        """Hands leadership to voter `to`; proposals and lease reads wait meanwhile. It is given up after an election
        timeout. Raises NotLeader, FailedPrecondition."""
        self.set_now(now)
        if self.role is not Role.LEADER:
            raise NotLeader("only the leader can transfer leadership", leader=str(self.leader or ""))
        if to == self.node or self.transfer_to == to:
            return
        if not is_voter(self.membership, to) or to not in self.progress:
            raise FailedPrecondition(f"node {to} is not a voter", where=f"group {self.group}", todo="Name a voter")
        if self.transfer_to:
            raise FailedPrecondition("a transfer is under way", where=f"group {self.group}", todo="Wait a second")
        if self.hibernating:
            self.wake(now)
        self.transfer_to = to
        self.transfer_deadline = now + self.config.election_timeout
        self.lease_floor = max(self.lease_floor, int(self.transfer_deadline * 1e9) + 1)
        self.active_at = now
        self.replicate(to, self.progress[to])
        self.push_transfer()

    def push_transfer(self) -> None:
        progress = self.progress.get(self.transfer_to)
        if progress is not None and progress.match == self.log.last:
            self.send(
                Message(
                    TIMEOUT_NOW,
                    self.group,
                    self.node,
                    self.transfer_to,
                    self.term,
                    self.log.last,
                    self.log.last_term,
                    stamp=int(self.transfer_deadline * 1e9),
                )
            )

    def end_transfer(self) -> None:
        """Given up: leases count again with answers to messages sent after the deadline."""
        self.transfer_to = 0
        self.transfer_deadline = NEVER

    def on_timeout_now(self, message: Message) -> None:
        heard = self.leader_stamp if self.heard_term == message.term else 0
        if self.voter and self.leader == message.src and heard <= message.stamp:
            self.campaign(forced=message.stamp)

    # --- resignation -------------------------------------------------------------------------------------------------

    def resign(self, now: float) -> None:
        """Stops leading at once and lets the others elect without waiting for the lease (shutdown, removal)."""
        self.set_now(now)
        if self.role is not Role.LEADER:
            return
        for node in self.progress:
            self.send(Message(RESIGN, self.group, self.node, node, self.term))
        self.follow(self.term, 0)
        if self.voter:  # the others first: this member wants out
            self.election_at = self.deadline = self.now + 2 * self.config.election_timeout

    def on_resign(self, message: Message) -> None:
        if message.src == self.leader:
            self.leader_lost(self.now, dead=True)
