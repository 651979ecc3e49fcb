"""A group whose messages, disks and clocks move only when a test says so."""

from __future__ import annotations

import random

from curve_storage.consensus.api import Membership, Role
from curve_storage.consensus.config import RaftConfig
from curve_storage.consensus.entry import COMMAND, Entry
from curve_storage.consensus.raft import Raft
from curve_storage.consensus.raft_messages import Message, Ready, Restored

CONFIG = RaftConfig(hibernate_after=0.0)


def entry(index: int, term: int) -> Entry:
    return Entry(index, term, COMMAND, b"e%d" % index)


class Storage:
    """Every entry that was ever handed out for persistence."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        return [self.entries[index] for index in range(low, high + 1)]


class Member:
    def __init__(self, lab: Lab, number: int, membership: Membership) -> None:
        self.lab = lab
        self.storage = Storage()
        self.raft = Raft(
            number, 1, lab.config, random.Random(number), self.storage, Restored(configs=[(0, membership)]), lab.now
        )
        self.persist = True
        self.unpersisted: list[int] = []
        self.applied: list[Entry] = []
        self.reads: list[int] = []
        self.failed_reads: list[int] = []
        self.snapshots: list[int] = []
        self.last: Ready = Ready()

    def work(self) -> list[Message]:
        """Performs everything asked for; the messages to be sent."""
        sent: list[Message] = []
        while (ready := self.raft.ready()) is not None:
            self.last = ready
            sent += ready.messages
            for entry in ready.entries:
                self.storage.entries[entry.index] = entry
            if ready.must_persist:
                if self.persist:
                    self.raft.persisted(ready.number)
                else:
                    self.unpersisted.append(ready.number)
            if ready.committed:
                self.applied += ready.committed
                self.raft.applied_to(ready.committed[-1].index)
            self.reads += ready.reads
            self.failed_reads += ready.failed_reads
            self.snapshots += [need.node for need in ready.snapshots]
        return sent

    def sync(self) -> None:
        for number in self.unpersisted:
            self.raft.persisted(number)
        self.unpersisted.clear()


class Lab:
    def __init__(self, *numbers: int, config: RaftConfig = CONFIG, spares: tuple[int, ...] = ()) -> None:
        self.config = config
        self.now = 100.0
        membership = Membership(voters=numbers)
        self.members = {number: Member(self, number, membership) for number in (*numbers, *spares)}
        self.cut: set[int] = set()
        self.dropped: list[Message] = []

    def raft(self, number: int) -> Raft:
        return self.members[number].raft

    def settle(self, *, without_time: bool = True) -> list[Message]:
        """Delivers until nothing is left; returns everything sent."""
        seen: list[Message] = []
        while True:
            messages = [message for member in self.members.values() for message in member.work()]
            if not messages:
                return seen
            for message in messages:
                seen.append(message)
                if message.dst in self.cut or message.src in self.cut or message.dst not in self.members:
                    self.dropped.append(message)
                else:
                    self.raft(message.dst).step(message, self.now)

    def advance(self, seconds: float, step: float = 0.04) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + step, end)
            for member in self.members.values():
                member.raft.tick(self.now)
            self.settle()

    def elect(self, number: int) -> Raft:
        raft = self.raft(number)
        raft.campaign()
        self.settle()
        assert raft.role is Role.LEADER, raft.role
        return raft

    def leaders(self) -> list[int]:
        return [number for number, member in self.members.items() if member.raft.role is Role.LEADER]


def commands(lab: Lab, number: int) -> list[bytes]:
    """The headers of the commands that a member has applied."""
    return [each.header for each in lab.members[number].applied if each.kind == COMMAND]
