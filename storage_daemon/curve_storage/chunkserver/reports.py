"""Pure parts of the heartbeat: copyset reports and what has changed in them; orders and what they ask for."""

from __future__ import annotations

from curve_storage.consensus.api import GroupStatus, Membership, Role
from curve_storage.errors import FailedPrecondition
from curve_storage.proto import mds_pb2
from curve_storage.wire.messages import split_group

_CHANGES = {
    "none": mds_pb2.CONFIG_CHANGE_NONE,
    "running": mds_pb2.CONFIG_CHANGE_RUNNING,
    "done": mds_pb2.CONFIG_CHANGE_DONE,
    "failed": mds_pb2.CONFIG_CHANGE_FAILED,
}


def report(status: GroupStatus) -> mds_pb2.CopysetReport:
    pool, copyset = split_group(status.group)
    return mds_pb2.CopysetReport(
        pool_id=pool,
        copyset_id=copyset,
        leader=status.role is Role.LEADER,
        term=status.term,
        epoch=status.membership.epoch,
        voters=status.membership.voters,
        learners=status.membership.learners,
        applied=status.applied,
        change=_CHANGES.get(status.change, mds_pb2.CONFIG_CHANGE_NONE),
        change_error=status.change_error,
        corrupt=status.corrupt,
    )


def damaged(group: int) -> mds_pb2.CopysetReport:
    pool, copyset = split_group(group)
    return mds_pb2.CopysetReport(pool_id=pool, copyset_id=copyset, corrupt=True)


def signature(status: GroupStatus) -> tuple[object, ...]:
    """What makes a report worth sending: everything but the applied index. Cheap: made of every copyset at every
    beat."""
    membership = status.membership
    return (
        status.role is Role.LEADER, status.term, membership.epoch, membership.voters, membership.learners,
        status.change, status.change_error, status.corrupt,
    )  # fmt: skip


DAMAGED: tuple[object, ...] = ("damaged",)
"""The signature of what cannot be loaded."""


def founding_membership(order: mds_pb2.CopysetOrder) -> Membership:
    """For CREATE. A node that is not among the members joins an existing copyset: it waits as a learner."""
    voters = tuple(sorted(order.members))
    return Membership(voters=voters, epoch=max(1, order.epoch))


def voters_after(order: mds_pb2.CopysetOrder, membership: Membership) -> tuple[int, ...] | None:
    """The voters that ADD_PEER, REMOVE_PEER or CHANGE_PEER ask for; None when they are that already.

    Raises FailedPrecondition for an order that does not fit the membership."""
    voters = set(membership.voters)
    wanted = set(voters)
    if order.kind == mds_pb2.CopysetOrder.ADD_PEER:
        wanted.add(order.target)
    elif order.kind == mds_pb2.CopysetOrder.REMOVE_PEER:
        wanted.discard(order.target)
    elif order.kind == mds_pb2.CopysetOrder.CHANGE_PEER:
        wanted.discard(order.old)
        wanted.add(order.target)
    if wanted == voters:
        return None
    if not wanted:
        raise FailedPrecondition("the order would leave no voter", where=f"copyset {order.pool_id}/{order.copyset_id}")
    return tuple(sorted(wanted))
