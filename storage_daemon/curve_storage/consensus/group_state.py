"""The log's record of a group's own state: what matters of it besides its entries."""

from __future__ import annotations

import msgspec

from curve_storage.consensus.api import Buffer


class GroupState(msgspec.Struct, frozen=True, array_like=True):
    """All that matters of a group besides its entries; `last_index`, `last_term`: its last entry at this moment."""

    term: int
    vote: int
    last_index: int
    last_term: int
    configs: list[tuple[int, bytes]]
    corrupt: str = ""
    pending: tuple[int, int, bytes] | None = None


def pack_state(state: GroupState) -> bytes:
    return msgspec.msgpack.encode(state)


def unpack_state(data: Buffer) -> GroupState:
    return msgspec.msgpack.decode(data, type=GroupState)
