"""Writes that only the leader can make, each exactly once.

A commit is one etcd transaction with two conditions: the leader's key still has its create revision, and the commit's
slot still holds the id of the slot's previous commit. The transaction itself puts the new id there. So it may be sent
again when an answer is lost: a second execution, even a late one, fails the second condition, and what it then reads
from the slot tells whether the first one took effect. The slots' keys live under the leader's lease and vanish with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

from curve_storage.coordination.election import Election
from curve_storage.coordination.etcd import MAX_TXN_OPERATIONS, EtcdClient
from curve_storage.coordination.model import Compare
from curve_storage.errors import Aborted, CurveError, InvalidArgument, NotFound, NotLeader, Unavailable

_SLOTS = 64
MAX_COMMIT_OPERATIONS = MAX_TXN_OPERATIONS - 1


class GuardedStore:
    """Commits by `election`'s candidate while it leads; up to 64 at a time, others wait their turn."""

    def __init__(self, client: EtcdClient, election: Election, *, deadline: float = 5.0) -> None:
        self._client = client
        self._election = election
        self._deadline = deadline
        self._term = 0
        self._slots: dict[int, bytes] = {}
        self._free: deque[int] = deque(range(_SLOTS))
        self._turn = asyncio.Semaphore(_SLOTS)
        self._count = 0

    async def commit(
        self,
        puts: Mapping[bytes, bytes] | None = None,
        deletes: Sequence[bytes] = (),
        *,
        delete_prefixes: Sequence[bytes] = (),
        compares: Sequence[Compare] = (),
    ) -> int:
        """All or nothing; returns the revision. At most 127 operations, a prefix deletion counting as one.

        Raises NotLeader when the guard fails (nothing was written), Aborted when one of
        `compares` fails, or when the outcome stayed unknown: then leadership is given up, since what this process
        holds in memory may no longer be what etcd holds.
        """
        operations = [self._client.put_operation(key, value) for key, value in (puts or {}).items()]
        operations += [self._client.delete_operation(key) for key in deletes]
        operations += [self._client.delete_operation(key, prefix=True) for key in delete_prefixes]
        if len(operations) > MAX_COMMIT_OPERATIONS:
            raise InvalidArgument(
                f"a commit of {len(operations)} operations", todo=f"Split it into parts of {MAX_COMMIT_OPERATIONS}"
            )
        async with self._turn:
            slot = self._free.popleft()
            try:
                return await self._commit(slot, operations, compares)
            finally:
                self._free.append(slot)

    async def _commit(self, slot: int, operations: list[object], compares: Sequence[Compare]) -> int:
        election = self._election
        guard = election.guard
        term = election.term
        if term != self._term:
            self._term, self._slots = term, {}
        self._count += 1
        identity = b"%d.%d" % (term, self._count)
        key = election.commit_key(slot)
        previous = self._slots.get(slot)
        condition = Compare.absent(key) if previous is None else Compare.equals(key, previous)
        mark = self._client.put_operation(key, identity, election.lease_id)
        try:
            result = await self._client.submit(
                [guard, condition, *compares],
                [*operations, mark],
                otherwise_get=[guard.key, key],
                repeatable=True,
                deadline=self._deadline,
            )
        except NotFound as error:  # the lease is gone, and with it the leader key
            election.abandon("the lease has expired")
            raise Aborted(
                "leadership was lost during the commit, the outcome is unknown", todo="Ask the new leader"
            ) from error
        except (Unavailable, asyncio.CancelledError) as error:
            election.abandon("a commit stayed without an answer")
            if isinstance(error, CurveError):
                raise Aborted(
                    f"the outcome of a commit is unknown ({error.what})", where=error.where, todo="Ask the new leader"
                ) from error
            raise
        if result.succeeded:
            if self._term == term:
                self._slots[slot] = identity
            return result.revision
        leader, mine = result.found
        if mine is not None and mine.value == identity:  # an attempt whose answer was lost
            if self._term == term:
                self._slots[slot] = identity
            return mine.mod_revision
        if leader is None or leader.create_revision != term:
            election.abandon("the leader key is gone")
            raise NotLeader("this process is no longer the leader", todo="Ask the leader")
        if compares:
            raise Aborted("what the commit depends on has changed", todo="Read again")
        election.abandon("the commit slots were changed by someone else")
        raise NotLeader("this process is no longer the only writer", todo="Ask the leader")
