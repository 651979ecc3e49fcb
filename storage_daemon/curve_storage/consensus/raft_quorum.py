"""Majorities of plain and joint memberships."""

from __future__ import annotations

from collections.abc import Callable, Container

from curve_storage.consensus.api import Membership


def majority_value(voters: tuple[int, ...], value: Callable[[int], int]) -> int:
    """The largest number that a majority of `voters` has reached; for no voters, none can object."""
    count = len(voters)
    if count == 3:
        a, b, c = value(voters[0]), value(voters[1]), value(voters[2])
        if a > b:
            a, b = b, a
        return b if c > b else (a if c < a else c)
    if count == 0:
        return 1 << 62
    return sorted(map(value, voters))[(count - 1) // 2]


def quorum_value(membership: Membership, value: Callable[[int], int]) -> int:
    """The largest number reached by a majority of the voters, in a joint membership of both sets."""
    reached = majority_value(membership.voters, value)
    if membership.outgoing:
        reached = min(reached, majority_value(membership.outgoing, value))
    return reached


def has_quorum(membership: Membership, granted: Container[int]) -> bool:
    return quorum_value(membership, lambda node: 1 if node in granted else 0) >= 1


def lost_quorum(membership: Membership, refused: Container[int]) -> bool:
    """True when no quorum is possible any more without a node of `refused`."""
    return quorum_value(membership, lambda node: 0 if node in refused else 1) < 1


def is_voter(membership: Membership, node: int) -> bool:
    return node in membership.voters or node in membership.outgoing
