"""What a state machine gives to the consensus host, and what the host offers in return.

A command is a small header (bytes) and a payload (any buffer, possibly large and never joined to the header).
Node ids are chunkserver ids (from 1); group ids are `wire.messages.group_id`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

Buffer = bytes | bytearray | memoryview


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"
    LEARNER = "learner"


@dataclass(frozen=True, slots=True)
class Membership:
    """voters: the (incoming) voting members; outgoing: the old voters while a joint change runs, else empty;
    epoch: the configuration epoch, +1 with every completed change."""

    voters: tuple[int, ...]
    outgoing: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    epoch: int = 1

    @property
    def members(self) -> frozenset[int]:
        return frozenset(self.voters) | frozenset(self.outgoing) | frozenset(self.learners)


@dataclass(slots=True)
class GroupStatus:
    group: int
    role: Role
    term: int
    leader: int  # node id, 0 unknown
    commit: int
    applied: int
    first_index: int
    last_index: int
    membership: Membership
    match: dict[int, int] = field(default_factory=dict)  # leader: node → replicated index
    change: str = "none"  # none | running | done | failed
    change_error: str = ""
    corrupt: bool = False
    hibernating: bool = False


@dataclass(slots=True)
class Piece:
    """A bounded part (≤ 1 MiB) of one named file of a snapshot."""

    name: str
    offset: int
    data: Buffer


class SnapshotSource(Protocol):
    """State at `index`, or later effects mixed in: the receiver replays from index + 1 and commands are idempotent."""

    index: int

    def pieces(self) -> AsyncIterator[Piece]: ...

    def close(self) -> None: ...


class SnapshotSink(Protocol):
    async def piece(self, piece: Piece) -> None: ...

    async def commit(self, index: int) -> None:
        """Atomically replaces the state (fsync, rename, fsync of the parent): durable_index() is then `index`."""
        ...

    def abort(self) -> None: ...


class StateMachine(Protocol):
    def durable_index(self) -> int:
        """The index up to which the state on disk is complete; the host replays the log from the next one."""
        ...

    def apply(self, index: int, term: int, header: bytes, payload: memoryview) -> Any:
        """Applies one committed command, synchronously, in order; its return value (or a CurveError it RETURNS, not
        raises) is the result of the proposal. `payload` is valid only during the call. Must be idempotent under
        replay from any earlier checkpoint. An exception is fatal to the process. An empty header is no command but
        an entry of the group's own (a no-op, a membership): the index advances, nothing else."""
        ...

    def on_role(self, leader: bool, term: int) -> None: ...

    def on_membership(self, membership: Membership) -> None: ...

    async def checkpoint(self) -> int:
        """Makes everything applied at the moment of the call durable; returns that index."""
        ...

    async def snapshot(self) -> SnapshotSource: ...

    async def restore(self) -> SnapshotSink: ...


class Addresses(Protocol):
    def address(self, node: int) -> str | None:
        """host:port of the node's data port, or None when not known (yet)."""
        ...


class ConsensusHost(Protocol):
    """The multi-raft host of a process, as chunkservers use it (implemented by consensus.host.Host)."""

    node_id: int

    async def start(self) -> None:
        """Opens the log, replays hard states and entries; groups come to life with add_group."""
        ...

    async def stop(self) -> None: ...

    def known_groups(self) -> list[int]:
        """Groups of which the log holds a membership (created before and not removed)."""
        ...

    def add_group(self, group: int, machine: StateMachine, membership: Membership | None = None) -> None:
        """Starts a group: a new one with `membership`, or a known one (membership None or ignored). A node that is
        to join an existing group starts it with a Membership without itself in voters (it waits as a learner)."""
        ...

    async def remove_group(self, group: int) -> None:
        """Stops the group and forgets its log for good (a durable record). Idempotent."""
        ...

    def propose(self, group: int, header: bytes, payload: Buffer = b"") -> asyncio.Future[Any]:
        """The future yields what apply returned here. Fails with NotLeader(leader=…), Overloaded, NotFound, or Aborted
        (leadership lost meanwhile: the outcome is unknown). The header is not empty. The payload must
        stay unchanged for good: it is kept, without a copy, for members that lag."""
        ...

    def lease_valid(self, group: int) -> bool:
        """True when a read may be served now from applied state, without asking anyone."""
        ...

    def read_barrier(self, group: int) -> Awaitable[None]:
        """Done when reads that follow are linearizable (read-index); NotLeader or Aborted otherwise."""
        ...

    def status(self, group: int) -> GroupStatus: ...

    def statuses(self) -> list[GroupStatus]: ...

    def change_members(self, group: int, voters: tuple[int, ...]) -> None:
        """Starts the change to these voters (learner first, then joint); progress in status().change. Raises NotLeader
        or FailedPrecondition (one change at a time)."""
        ...

    def transfer_leader(self, group: int, to: int) -> None: ...
