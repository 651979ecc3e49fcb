"""Sending snapshots to members whose missing entries have left the log.

A transfer is a sequence of numbered pieces, one on the way at a time (that is the back-pressure), all transfers of a
process under one rate limit. When the connection breaks, the same source goes on with the piece that the receiver asks
for. The log keeps the entries after the snapshot until the receiver has caught up, or a bound is passed.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec

from curve_storage.consensus.api import Buffer, Piece
from curve_storage.consensus.engine import Group
from curve_storage.consensus.entry import pack_membership
from curve_storage.consensus.host_state import HostParts
from curve_storage.errors import Aborted, CurveError, Unavailable
from curve_storage.telemetry import logs
from curve_storage.wire.messages import MessageType

log = logs.get("consensus.snapshots")
_KEEP_FOR = 60.0
_COMMIT_TIMEOUT = 120.0
_RETRY_AFTER = 0.1
_RETRY_AT_MOST = 5.0


class Begin(msgspec.Struct, frozen=True):
    """`id` names the transfer; the receiver answers with the number of the piece it needs next."""

    group: int
    source: int
    destination: int
    id: int
    index: int
    term: int
    membership: bytes


class BeginReply(msgspec.Struct, frozen=True):
    needed: bool
    next: int = 0
    commit: int = 0


class PieceHead(msgspec.Struct, frozen=True):
    group: int
    id: int
    number: int
    name: str
    offset: int


class Commit(msgspec.Struct, frozen=True):
    group: int
    id: int
    pieces: int


class Committed(msgspec.Struct, frozen=True):
    index: int


class SnapshotSender:
    def __init__(self, host: HostParts) -> None:
        self._host = host
        self._running: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._slots: asyncio.Semaphore | None = None
        self._failures: dict[tuple[int, int], int] = {}
        self._free_at = 0.0
        self._pins: dict[tuple[int, int], tuple[int, float]] = {}

    def start(self, group: Group, node: int) -> None:
        key = (group.id, node)
        task = self._running.get(key)
        if task is None or task.done():
            self._running[key] = self._host.spawn(self._run(group, node), f"snapshot-{group.id}-to-{node}")

    def drop(self, group: int) -> None:
        for key, task in list(self._running.items()):
            if key[0] == group:
                task.cancel()

    async def _run(self, group: Group, node: int) -> None:
        host = self._host
        reached = 0
        if self._slots is None:
            self._slots = asyncio.Semaphore(host.config.snapshot_concurrency)
        try:
            async with self._slots:
                if group.raft is not None and group.leading:
                    reached = await self._transfer(group, node)
            host.metrics.snapshots.labels("sent", "done").inc()
            self._failures.pop((group.id, node), None)
        except CurveError as error:
            host.metrics.snapshots.labels("sent", "failed").inc()
            log.warning("snapshot not sent", group=group.id, node=node, error=str(error))
            failures = self._failures[(group.id, node)] = self._failures.get((group.id, node), 0) + 1
            await asyncio.sleep(min(_RETRY_AFTER * 2**failures, _RETRY_AT_MOST) * (0.5 + random.random()))
        finally:
            self._running.pop((group.id, node), None)
            raft = group.raft
            if raft is not None:
                raft.snapshot_done(node, reached, host.clock.monotonic())
                host.engine.mark(group)
                host.schedule()

    async def _transfer(self, group: Group, node: int) -> int:
        """The index that the receiver has reached. Raises CurveError."""
        host = self._host
        while group.installing:
            raise Aborted("this replica is itself being restored", where=f"group {group.id}")
        source = await group.machine.snapshot()
        try:
            raft = group.raft
            term = raft.log.term(source.index) if raft is not None else None
            if raft is None or term is None:
                raise Aborted(
                    "the log no longer reaches the snapshot", where=f"group {group.id}", todo="It is repeated"
                )
            membership = raft.membership_at(source.index)
            self._pin(group, node, source.index)
            begin = Begin(
                group.id, host.node_id, node, random.getrandbits(62), source.index, term, pack_membership(membership)
            )
            log.info("sending a snapshot", group=group.id, node=node, index=source.index)
            reply = await self._begin(begin, node)
            if not reply.needed:
                await asyncio.sleep(_RETRY_AFTER)  # its disk may still be at work
                return reply.commit
            number = 0
            async for piece in source.pieces():
                for part in _bounded(piece, host.config.snapshot_piece):
                    number += 1
                    await self._piece(group, begin, node, number, part)
            commit = Commit(group.id, begin.id, number)
            done = await self._call(
                begin, node, MessageType.SNAPSHOT_COMMIT, msgspec.msgpack.encode(commit), b"", _COMMIT_TIMEOUT
            )
            log.info("snapshot sent", group=group.id, node=node, index=source.index, pieces=number)
            return msgspec.msgpack.decode(done.meta, type=Committed).index
        finally:
            source.close()

    async def _begin(self, begin: Begin, node: int) -> BeginReply:
        reply = await self._call(None, node, MessageType.SNAPSHOT_BEGIN, msgspec.msgpack.encode(begin), b"")
        return msgspec.msgpack.decode(reply.meta, type=BeginReply)

    async def _piece(self, group: Group, begin: Begin, node: int, number: int, piece: Piece) -> None:
        host = self._host
        size = len(piece.data)
        await self._throttle(size)
        head = msgspec.msgpack.encode(PieceHead(begin.group, begin.id, number, piece.name, piece.offset))
        await self._call(begin, node, MessageType.SNAPSHOT_PIECE, head, piece.data)
        host.metrics.snapshot_bytes.labels("sent").inc(size)
        raft = group.raft
        if raft is None or not group.leading:
            raise Aborted("leadership was lost", where=f"group {group.id}")
        raft.snapshot_progress(node, host.clock.monotonic())

    async def _call(
        self, begin: Begin | None, node: int, kind: MessageType, meta: bytes, payload: Buffer, patience: float = 0.0
    ) -> Any:
        """Repeats while the connection is being made anew; pieces and commits are safe to repeat."""
        host = self._host
        deadline = host.clock.monotonic() + (patience or host.config.snapshot_timeout)
        while True:
            remaining = deadline - host.clock.monotonic()
            channel = host.channel(node)
            try:
                if channel is None:
                    raise Unavailable(f"the address of node {node} is not known")
                return await channel.call(kind, meta, payload, timeout=max(remaining, 0.1))
            except CurveError as error:
                if not error.retryable or remaining < 2 * _RETRY_AFTER:
                    raise
            await asyncio.sleep(_RETRY_AFTER)
            if begin is not None:
                # The receiver may have been replaced: then it does not know this transfer.
                reply = await self._begin_again(begin, node)
                if reply is not None and not reply.needed and kind != MessageType.SNAPSHOT_COMMIT:
                    raise Aborted("the receiver no longer needs this snapshot", where=f"node {node}")

    async def _begin_again(self, begin: Begin, node: int) -> BeginReply | None:
        channel = self._host.channel(node)
        if channel is None:
            return None
        try:
            reply = await channel.call(MessageType.SNAPSHOT_BEGIN, msgspec.msgpack.encode(begin), timeout=5.0)
        except CurveError:
            return None
        return msgspec.msgpack.decode(reply.meta, type=BeginReply)

    async def _throttle(self, size: int) -> None:
        """One token bucket for all transfers: each reserves its time slot."""
        rate = self._host.config.snapshot_bytes_per_second
        now = self._host.clock.monotonic()
        start = max(self._free_at, now)
        self._free_at = start + size / rate
        if start - now > 0.005:
            await asyncio.sleep(start - now)

    # --- keeping entries ------------------------------------------------------------------------------------------

    def _pin(self, group: Group, node: int, index: int) -> None:
        self._pins[(group.id, node)] = (index, self._host.clock.monotonic() + _KEEP_FOR)
        self._apply_pins(group.id)

    def unpin(self, now: float) -> None:
        """Forgets the pins of receivers that have caught up, are no members, or took too long."""
        if not self._pins:
            return
        for (number, node), (_index, until) in list(self._pins.items()):
            if (number, node) in self._running:
                continue
            group = self._host.engine.groups.get(number)
            raft = group.raft if group is not None else None
            progress = raft.progress.get(node) if raft is not None else None
            caught_up = progress is not None and raft is not None and progress.match + 1 >= raft.log.last
            if progress is None or caught_up or now > until:
                del self._pins[(number, node)]
                self._apply_pins(number)

    def _apply_pins(self, number: int) -> None:
        group = self._host.engine.groups.get(number)
        if group is not None:
            pins = [index for (pinned, _), (index, _) in self._pins.items() if pinned == number]
            group.log.pinned = min(pins) if pins else None


def _bounded(piece: Piece, limit: int) -> list[Piece]:
    if len(piece.data) <= limit:
        return [piece]
    view = memoryview(piece.data)
    return [
        Piece(piece.name, piece.offset + start, view[start : start + limit]) for start in range(0, len(view), limit)
    ]
