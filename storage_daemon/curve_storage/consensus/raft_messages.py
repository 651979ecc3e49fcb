"""Messages between members of one group, and what a core hands to its host (Ready)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from curve_storage.consensus.api import Membership, Role
from curve_storage.consensus.entry import Entry, HardState

APPEND: Final = 1
APPEND_REPLY: Final = 2
HEARTBEAT: Final = 3
HEARTBEAT_REPLY: Final = 4
PREVOTE: Final = 5
PREVOTE_REPLY: Final = 6
VOTE: Final = 7
VOTE_REPLY: Final = 8
TIMEOUT_NOW: Final = 9
HIBERNATE: Final = 10
HIBERNATE_REPLY: Final = 11
RESIGN: Final = 12

NAMES = {
    APPEND: "append", APPEND_REPLY: "append_reply", HEARTBEAT: "heartbeat", HEARTBEAT_REPLY: "heartbeat_reply",
    PREVOTE: "prevote", PREVOTE_REPLY: "prevote_reply", VOTE: "vote", VOTE_REPLY: "vote_reply",
    TIMEOUT_NOW: "timeout_now", HIBERNATE: "hibernate", HIBERNATE_REPLY: "hibernate_reply", RESIGN: "resign",
}  # fmt: skip


class Message:
    """index, log_term: APPEND: the entry before `entries`; votes: the candidate's last entry; replies: the position
    acknowledged. commit: the leader's commit index as far as the receiver may use it; in replies, the last index of
    the sender's log. stamp: the leader's clock at sending (ns), echoed in replies; votes: the transfer that
    forces them. reject: refused; in votes sent: forced by a transfer. hint: where to try next after a refusal.
    """

    __slots__ = (
        "commit", "dst", "entries", "group", "hint", "index", "kind", "log_term", "reject", "src", "stamp", "term",
    )  # fmt: skip

    def __init__(
        self,
        kind: int,
        group: int,
        src: int,
        dst: int,
        term: int,
        index: int = 0,
        log_term: int = 0,
        commit: int = 0,
        stamp: int = 0,
        reject: bool = False,
        hint: int = 0,
        entries: list[Entry] | None = None,
    ) -> None:
        self.kind = kind
        self.group = group
        self.src = src
        self.dst = dst
        self.term = term
        self.index = index
        self.log_term = log_term
        self.commit = commit
        self.stamp = stamp
        self.reject = reject
        self.hint = hint
        self.entries = entries

    def __repr__(self) -> str:
        return (
            f"{NAMES.get(self.kind, self.kind)}({self.src}→{self.dst} term={self.term} index={self.index}"
            f"@{self.log_term} commit={self.commit} stamp={self.stamp} reject={self.reject} hint={self.hint}"
            f" entries={len(self.entries or ())})"
        )


class RoleChange(NamedTuple):
    role: Role
    term: int
    leader: int


class SnapshotNeed(NamedTuple):
    """The member `node` lacks entries that this leader's log no longer holds."""

    node: int


_NOTHING: Final[list[Any]] = []


class Ready:
    """What the host must do now, in this order:

    send `messages` (each is safe to send before anything below is durable); append `hard_state` and `entries` to the
    log (an entry at or below the log's last index replaces the suffix) and call `persisted(number)` when they are
    durable; apply `committed`, then call `applied(index)`; complete `reads`, fail `failed_reads`. The lists are the
    receiver's to read, not to change.
    """

    __slots__ = (
        "committed", "entries", "failed_reads", "hard_state", "membership", "messages", "number", "reads", "role",
        "snapshots",
    )  # fmt: skip

    def __init__(self) -> None:
        self.number = 0
        self.messages: list[Message] = _NOTHING
        self.hard_state: HardState | None = None
        self.entries: list[Entry] = _NOTHING
        self.committed: list[Entry] = _NOTHING
        self.reads: list[int] = _NOTHING
        self.failed_reads: list[int] = _NOTHING
        self.role: RoleChange | None = None
        self.membership: Membership | None = None
        self.snapshots: list[SnapshotNeed] = _NOTHING

    @property
    def must_persist(self) -> bool:
        return bool(self.entries) or self.hard_state is not None


class Storage(Protocol):
    """The durable log of one group, for entries no longer in memory."""

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low…high (inclusive), at least one, cut after `max_bytes`. Raises Corruption."""
        ...


@dataclass(slots=True)
class Restored:
    """A member's durable state at start. `base`: the entry before the first one held (0, 0 for a whole log);
    `runs`: (first index, term) of each run of equal terms after it; `configs`: (index, membership), ascending, the
    first at or below `base`."""

    term: int = 0
    vote: int = 0
    base_index: int = 0
    base_term: int = 0
    last_index: int = 0
    runs: list[tuple[int, int]] = field(default_factory=list)
    configs: list[tuple[int, Membership]] = field(default_factory=list)
    applied: int = 0
