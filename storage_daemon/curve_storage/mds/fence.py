"""Carries FENCE and DELETE_VOLUME to copysets: finds each one's leader, tries on until the time is up, all in
parallel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from curve_storage.clock import Clock
from curve_storage.errors import CurveError, NotFound, NotLeader, PermissionDenied, Unauthenticated, Unavailable
from curve_storage.mds.state import CopysetKey
from curve_storage.wire.messages import MessageType, group_id

PARALLEL = 64
ATTEMPT_TIMEOUT = 2.0
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5


class Transport(Protocol):
    async def call(self, address: str, type: int, meta: bytes, timeout: float) -> None:
        """One request to one chunkserver; raises its CurveError, Unavailable or DeadlineExceeded."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where a copyset is: its members with their addresses ("" unknown) and who is thought to lead it (0 unknown)."""

    members: dict[int, str]
    leader: int


class CopysetCaller:
    """locate: the present members of a copyset, asked again at every attempt."""

    def __init__(self, transport: Transport, locate: Callable[[CopysetKey], Target], clock: Clock) -> None:
        self._transport = transport
        self._locate = locate
        self._clock = clock
        self._slots = asyncio.Semaphore(PARALLEL)

    async def fence(self, volume: int, epoch: int, copysets: list[CopysetKey], timeout: float) -> None:
        deadline = self._clock.monotonic() + timeout
        results = await asyncio.gather(
            *(self._fence_one(volume, epoch, key, deadline) for key in copysets), return_exceptions=True
        )
        failed = [(key, e) for key, e in zip(copysets, results, strict=True) if isinstance(e, BaseException)]
        if not failed:
            return
        for _, error in failed:
            if not isinstance(error, Unavailable):
                raise error
        (pool, copyset), first = failed[0]
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise Unavailable(
            f"the older writer of volume {volume} cannot be fenced: copyset {pool}/{copyset}{others} "
            f"cannot be reached ({first})",
            where=f"copyset {pool}/{copyset}",
            todo="Start the chunkservers that are missing (curve status names them); the request may then be repeated",
        )

    async def _fence_one(self, volume: int, epoch: int, key: CopysetKey, deadline: float) -> None:
        meta = msgspec.msgpack.encode({"group": group_id(*key), "volume": volume, "epoch": epoch})
        async with self._slots:
            await self.call(key, MessageType.FENCE, meta, deadline)

    async def delete(self, volume: int, copyset: CopysetKey, chunks: list[int], timeout: float) -> None:
        meta = msgspec.msgpack.encode({"group": group_id(*copyset), "volume": volume, "chunks": chunks})
        async with self._slots:
            await self.call(copyset, MessageType.DELETE_VOLUME, meta, self._clock.monotonic() + timeout)

    async def call(self, key: CopysetKey, type: int, meta: bytes, deadline: float) -> None:
        """Asks the leader; what answers NotLeader names the next to ask, what does not answer is passed over."""
        pause = FIRST_PAUSE
        last: CurveError | None = None
        hint = 0
        while True:
            target = self._locate(key)
            order = [m for m in (hint, target.leader) if m in target.members]
            order += [m for m in target.members if m not in order]
            for member in dict.fromkeys(order):
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    break
                address = target.members[member]
                if not address:
                    continue
                try:
                    await self._transport.call(address, type, meta, min(left, ATTEMPT_TIMEOUT))
                    return
                except NotLeader as error:
                    last = error
                    named = int(error.leader) if error.leader.isdigit() else 0
                    if named and named != member and named in target.members and named != hint:
                        hint = named
                        break
                except CurveError as error:
                    # A member that refuses the token (its clock is wrong, its keyring is old) leads no longer for long.
                    if not error.retryable and not isinstance(error, (NotFound, Unauthenticated, PermissionDenied)):
                        raise
                    last = error
                    if member == hint:
                        hint = 0
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise Unavailable(
                    f"no leader answered, last: {last}" if last else "no member has a known address",
                    where=f"copyset {key[0]}/{key[1]}",
                    todo="",
                )
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)
