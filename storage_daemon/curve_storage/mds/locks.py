"""Locks by id: one volume, directory or copyset at a time, without a lock object for each that exists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class KeyedLocks:
    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, *keys: int) -> AsyncIterator[None]:
        """Takes all locks in ascending order (so that two callers never wait for each other) and gives them back."""
        taken: list[int] = []
        try:
            for key in sorted(set(keys)):
                await self._acquire(key)
                taken.append(key)
            yield
        finally:
            for key in reversed(taken):
                self._release(key)

    async def _acquire(self, key: int) -> None:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            await lock.acquire()
        except BaseException:
            self._forget(key)
            raise

    def _release(self, key: int) -> None:
        self._locks[key][0].release()
        self._forget(key)

    def _forget(self, key: int) -> None:
        lock, users = self._locks[key]
        if users == 1:
            del self._locks[key]
        else:
            self._locks[key] = (lock, users - 1)

    def __len__(self) -> int:
        return len(self._locks)
