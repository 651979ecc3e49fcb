"""Where the MDS's state lives, as an interface with two implementations that pass the same tests.

Contract. `load` yields every pair of the prefix, in key order, page by page. `commit` applies all puts and deletes or
none, and only while the caller leads; when it returns, the change is durable. It raises NotLeader when the caller
does not lead (nothing was applied), and Unavailable, DeadlineExceeded or Aborted when the outcome is unknown: the
caller must then give up leading and load again, because the change may still arrive.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Protocol

from curve_storage.errors import NotLeader

MAX_CHANGES = 100
"""Puts and deletes of one transaction; etcd's default limit is 128 operations."""


class Store(Protocol):
    def load(self, prefix: str) -> AsyncIterator[tuple[str, bytes]]: ...

    async def commit(self, puts: Mapping[str, bytes], deletes: Iterable[str]) -> None: ...


class MemoryStore:
    """Keeps the pairs in a dict that several stores may share, as several MDSs share etcd."""

    def __init__(self, pairs: dict[str, bytes] | None = None) -> None:
        self.pairs: dict[str, bytes] = {} if pairs is None else pairs
        self.leader = True
        self.commits = 0

    async def load(self, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
        for key in sorted(key for key in self.pairs if key.startswith(prefix)):
            yield key, self.pairs[key]

    async def commit(self, puts: Mapping[str, bytes], deletes: Iterable[str]) -> None:
        if not self.leader:
            raise NotLeader("this MDS is not the leader")
        self.commits += 1
        self.pairs.update(puts)
        for key in deletes:
            self.pairs.pop(key, None)
