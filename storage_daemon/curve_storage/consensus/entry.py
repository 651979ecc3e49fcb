"""Log entries and hard state: what a group agrees on and what a member must remember.

A membership travels as the header of a CONFIG entry, and in state records and snapshots.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Final, NamedTuple

from crc32c import crc32c

from curve_storage.consensus.api import Buffer, Membership
from curve_storage.errors import Corruption

COMMAND: Final = 0
NOOP: Final = 1
CONFIG: Final = 2

_MEMBERSHIP = Struct("<QHHH")
_MEMBERSHIP_VERSION = 1


class Entry:
    """One log entry. `payload` is shared, never copied: whoever proposes must leave it unchanged for good."""

    __slots__ = ("_crc", "header", "index", "kind", "payload", "size", "term")

    def __init__(
        self, index: int, term: int, kind: int, header: bytes, payload: Buffer = b"", crc: int | None = None
    ) -> None:
        self.index = index
        self.term = term
        self.kind = kind
        self.header = header
        self.payload = payload
        self.size = len(header) + len(payload)
        self._crc = crc

    @property
    def crc(self) -> int:
        """CRC32C of header + payload; computed once, by the proposer, and carried through network and disk."""
        if self._crc is None:
            self._crc = crc32c(self.payload, crc32c(self.header)) if self.payload else crc32c(self.header)
        return self._crc

    def __repr__(self) -> str:
        return f"Entry({self.index}@{self.term} kind={self.kind} {self.header!r:.40} +{len(self.payload)})"


class HardState(NamedTuple):
    """Must be durable before any message that reveals it."""

    term: int
    vote: int


def pack_membership(membership: Membership) -> bytes:
    nodes = (*membership.voters, *membership.outgoing, *membership.learners)
    head = _MEMBERSHIP.pack(
        membership.epoch, len(membership.voters), len(membership.outgoing), len(membership.learners)
    )
    return bytes((_MEMBERSHIP_VERSION,)) + head + Struct(f"<{len(nodes)}Q").pack(*nodes)


def unpack_membership(data: Buffer) -> Membership:
    """Raises Corruption for anything that pack_membership did not write."""
    try:
        if data[0] != _MEMBERSHIP_VERSION:
            raise Corruption(f"membership of unknown version {data[0]}", todo="Use a newer program")
        epoch, voters, outgoing, learners = _MEMBERSHIP.unpack_from(data, 1)
        nodes = Struct(f"<{voters + outgoing + learners}Q").unpack(memoryview(data)[1 + _MEMBERSHIP.size :])
    except (error, IndexError) as failure:
        raise Corruption(f"not a membership: {failure}") from failure
    return Membership(
        voters=nodes[:voters],
        outgoing=nodes[voters : voters + outgoing],
        learners=nodes[voters + outgoing :],
        epoch=epoch,
    )
