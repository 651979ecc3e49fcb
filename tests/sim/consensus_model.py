"""What must hold, over all members and all time, and the state machine whose history is compared.

Entries are identified by (index, term): the same identity must always mean the same content and the same predecessor
(log matching); so one committed entry in a leader's log vouches for everything before it (leader completeness).
"""

from __future__ import annotations

import zlib
from typing import Any

from curve_storage.consensus.api import Membership, Role
from curve_storage.consensus.raft import Raft
from curve_storage.consensus.raft_messages import PREVOTE, PREVOTE_REPLY, VOTE, VOTE_REPLY, Message
from curve_storage.consensus.raft_quorum import quorum_value


class Violation(AssertionError):
    """trace: the last events before it, one line each."""

    def __init__(self, what: str, trace: list[str] | None = None) -> None:
        super().__init__(what)
        self.trace = trace or []


class Truth:
    """Everything observed so far."""

    def __init__(self) -> None:
        self.leaders: dict[int, int] = {}
        self.entries: dict[tuple[int, int], tuple[int, bytes, int | None]] = {}
        self.committed: dict[int, int] = {}
        self.top = 0
        self.applied: dict[int, tuple[int, bytes]] = {}
        self.digests: dict[int, int] = {}
        self.acked: dict[int, bytes] = {}
        self.acked_top = 0
        self.votes: dict[tuple[int, int], int] = {}
        self.revealed: dict[int, int] = {}
        self.durable: dict[int, int] = {}

    def sent(self, message: Message) -> None:
        """A message that leaves a node binds it: also its later lives."""
        node, term = message.src, message.term
        if message.kind == VOTE or (message.kind == VOTE_REPLY and not message.reject):
            candidate = node if message.kind == VOTE else message.dst
            other = self.votes.setdefault((node, term), candidate)
            if other != candidate:
                raise Violation(f"node {node} votes for {other} and for {candidate} in term {term}")
        if message.kind not in (PREVOTE, PREVOTE_REPLY):
            self.revealed[node] = max(self.revealed.get(node, 0), term)

    def restarted(self, node: int, raft: Raft) -> None:
        if raft.term < self.revealed.get(node, 0):
            raise Violation(f"node {node} came back in term {raft.term} after it had spoken in {self.revealed[node]}")
        vote = self.votes.get((node, raft.term))
        if vote is not None and vote != raft.vote:
            raise Violation(f"node {node} forgot its vote for {vote} in term {raft.term}")

    def forget(self, node: int) -> None:
        """The replica was removed with everything it knew."""
        self.revealed.pop(node, None)
        self.durable.pop(node, None)
        for key in [key for key in self.votes if key[0] == node]:
            del self.votes[key]

    def check(self, node: int, raft: Raft, seen: Seen) -> None:
        """Called after every step of a member."""
        log = raft.log
        if raft.role is Role.LEADER and (raft.term != seen.led_term):
            seen.led_term = raft.term
            other = self.leaders.setdefault(raft.term, node)
            if other != node:
                raise Violation(f"election safety: nodes {other} and {node} both lead term {raft.term}")
            # Entries of later terms may have been committed before this member noticed that it had won.
            earlier = self.top > log.base and self.committed.get(self.top, 0) < raft.term
            if self.top and earlier and log.term(self.top) != self.committed[self.top]:
                raise Violation(
                    f"leader completeness: node {node} leads term {raft.term} without entry {self.top} of term "
                    f"{self.committed[self.top]}"
                )
        # Log matching: new entries only.
        last = log.last
        if last != seen.last or log.last_term != seen.last_term:
            start = min(seen.last, last)
            while start > log.base and start > log.offset - 1 and log.term(start) != seen.terms.get(start):
                start -= 1
            for entry in log.entries[max(start + 1 - log.offset, 0) :]:
                before = log.term(entry.index - 1)
                known = self.entries.setdefault((entry.index, entry.term), (entry.kind, entry.header, before))
                if (
                    known[0] != entry.kind
                    or known[1] != entry.header
                    or (known[2] != before and None not in (known[2], before))
                ):
                    raise Violation(f"log matching: {entry.index}@{entry.term} on node {node} is not what others have")
                seen.terms[entry.index] = entry.term
            seen.last, seen.last_term = last, log.last_term
        commit = raft.commit
        self.durable[node] = raft.persisted_index
        if commit > seen.commit:
            if raft.role is Role.LEADER and commit > seen.commit:
                if log.term(commit) != raft.term:
                    raise Violation(
                        f"node {node} commits {commit} of term {log.term(commit)} by counting in {raft.term}"
                    )
                # A commit may have appended the next membership in the same step.
                memberships = [raft.membership, *([seen.membership] if seen.membership else [])]
                if all(
                    quorum_value(membership, lambda each: self.durable.get(each, 0)) < commit
                    for membership in memberships
                ):
                    raise Violation(f"node {node} commits {commit}, which no quorum has on disk: {self.durable}")
            for index in range(max(seen.commit, log.base) + 1, commit + 1):
                term = log.term(index)
                if term is None:
                    continue
                known_term = self.committed.setdefault(index, term)
                if known_term != term:
                    raise Violation(f"commit: {index} is committed with term {known_term} and, on node {node}, {term}")
            if commit > self.top and commit in self.committed:
                self.top = commit
            seen.commit = commit
        seen.membership = raft.membership

    def apply(self, node: int, index: int, term: int, header: bytes, digest: int) -> None:
        known = self.applied.setdefault(index, (term, header))
        if known != (term, header):
            raise Violation(f"state machine safety: node {node} applies {header!r}@{term} at {index}, others {known}")
        if self.digests.setdefault(index, digest) != digest:
            raise Violation(f"state machine safety: node {node} has another history before {index}")

    def acknowledge(self, index: int, header: bytes) -> None:
        self.acked[index] = header
        if self.applied.get(index, (0, b""))[1] != header:
            raise Violation(f"command {header!r} was acknowledged at {index}, where another was applied")
        self.acked_top = max(self.acked_top, index)


class Seen:
    """What has already been checked of one member's life."""

    def __init__(self) -> None:
        self.led_term = 0
        self.last = 0
        self.last_term = 0
        self.commit = 0
        self.terms: dict[int, int] = {}
        self.membership: Membership | None = None


class Machine:
    """Its state is a digest of its history; `durable` survives crashes."""

    def __init__(self, node: int, truth: Truth) -> None:
        self.node = node
        self.truth = truth
        self.durable = (0, 0)
        self.index = 0
        self.digest = 0

    def crash(self) -> None:
        self.index, self.digest = self.durable

    def durable_index(self) -> int:
        return self.durable[0]

    def apply(self, index: int, term: int, header: bytes, payload: memoryview) -> Any:
        if index <= self.index:
            raise Violation(f"node {self.node} applies {index} after {self.index}")
        self.index = index
        self.digest = zlib.crc32(header, zlib.crc32(payload, self.digest))
        self.truth.apply(self.node, index, term, header, self.digest)
        return index

    def on_role(self, leader: bool, term: int) -> None:
        pass

    def on_membership(self, membership: Membership) -> None:
        pass

    def save(self) -> int:
        self.durable = (self.index, self.digest)
        return self.index
