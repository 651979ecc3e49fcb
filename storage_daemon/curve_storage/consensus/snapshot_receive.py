"""Receiving snapshots: pieces go to the state machine's sink in order; the installation is atomic.

Order of an installation: the log notes what is coming (durable), the state machine replaces its state (durable), the
log notes that its entries are void (durable), the core goes on from there. A crash at any point leaves either the
old replica or the new one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from curve_storage.consensus.api import Membership, Piece, Role, SnapshotSink
from curve_storage.consensus.engine import Group
from curve_storage.consensus.entry import unpack_membership
from curve_storage.consensus.host_state import HostParts
from curve_storage.consensus.snapshot_send import Begin, BeginReply, Commit, Committed, PieceHead
from curve_storage.errors import Aborted, CurveError, FailedPrecondition, Internal, NotFound
from curve_storage.telemetry import logs
from curve_storage.wire.messages import MessageType
from curve_storage.wire.server import Request, Server

log = logs.get("consensus.snapshots")


@dataclass(slots=True)
class _Incoming:
    begin: Begin
    group: Group
    membership: Membership
    sink: SnapshotSink
    next: int = 1
    touched: float = 0.0
    committing: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SnapshotReceiver:
    def __init__(self, host: HostParts) -> None:
        self._host = host
        self._incoming: dict[int, _Incoming] = {}
        self._installed: dict[int, tuple[int, int]] = {}
        """Group → id and index of the last transfer installed, for repeated commits."""

    def register(self, server: Server) -> None:
        server.handle(MessageType.SNAPSHOT_BEGIN, self._on_begin, scope="cluster")
        server.handle(MessageType.SNAPSHOT_PIECE, self._on_piece, scope="cluster")
        server.handle(MessageType.SNAPSHOT_COMMIT, self._on_commit, scope="cluster")

    def _on_begin(self, request: Request) -> None:
        begin = msgspec.msgpack.decode(request.meta, type=Begin)
        self._host.spawn(self._answer(request, self._begin(begin)), "snapshot-begin")

    def _on_piece(self, request: Request) -> None:
        head = msgspec.msgpack.decode(request.meta, type=PieceHead)
        self._host.spawn(self._answer(request, self._piece(head, request.payload)), "snapshot-piece")

    def _on_commit(self, request: Request) -> None:
        commit = msgspec.msgpack.decode(request.meta, type=Commit)
        self._host.spawn(self._answer(request, self._commit(commit)), "snapshot-commit")

    async def _answer(self, request: Request, work: object) -> None:
        try:
            reply = await work  # type: ignore[misc]
        except CurveError as error:
            request.fail(error)
        except asyncio.CancelledError:
            request.fail(Aborted("this node is shutting down", where=f"node {self._host.node_id}"))
            raise
        except Exception as error:
            log.exception("snapshot not received")
            request.fail(Internal(f"{type(error).__name__}: {error}", where=f"node {self._host.node_id}"))
        else:
            request.reply(msgspec.msgpack.encode(reply))

    async def _begin(self, begin: Begin) -> BeginReply:
        host = self._host
        if begin.destination != host.node_id:
            raise FailedPrecondition(
                f"this is node {host.node_id}, not {begin.destination}", todo="Ask for its address"
            )
        group = host.engine.group(begin.group)
        raft = host.engine.raft_of(begin.group)
        if not raft.lacks(begin.index, begin.term):
            return BeginReply(needed=False, commit=raft.durable_commit)
        if raft.role is Role.LEADER:
            raise Aborted("this replica leads an earlier term", where=f"group {begin.group}", todo="Retry later")
        running = self._incoming.get(begin.group)
        if running is not None:
            if running.begin.id == begin.id:
                running.touched = host.clock.monotonic()
                return BeginReply(needed=True, next=running.next)
            if running.committing or group.installing:
                raise Aborted("another snapshot is being installed", where=f"group {begin.group}", todo="Retry later")
            self.drop(begin.group)
        membership = unpack_membership(begin.membership)
        sink = await group.machine.restore()
        self._incoming[begin.group] = _Incoming(begin, group, membership, sink, touched=host.clock.monotonic())
        return BeginReply(needed=True, next=1)

    async def _piece(self, head: PieceHead, data: memoryview) -> None:
        incoming = self._find(head.group, head.id)
        async with incoming.lock:
            if head.number < incoming.next:
                return  # repeated: it has arrived
            if head.number > incoming.next:
                raise FailedPrecondition(
                    f"piece {head.number} came, {incoming.next} is next", where=f"group {head.group}"
                )
            await incoming.sink.piece(Piece(head.name, head.offset, data))
            incoming.next += 1
            incoming.touched = self._host.clock.monotonic()
        self._host.metrics.snapshot_bytes.labels("received").inc(len(data))

    def _find(self, group: int, identity: int) -> _Incoming:
        incoming = self._incoming.get(group)
        if incoming is None or incoming.begin.id != identity:
            raise NotFound("this snapshot transfer is not known", where=f"group {group}", todo="Begin anew")
        return incoming

    async def _commit(self, commit: Commit) -> Committed:
        host = self._host
        last = self._installed.get(commit.group)
        if last is not None and last[0] == commit.id:
            return Committed(last[1])
        incoming = self._find(commit.group, commit.id)
        async with incoming.lock:
            last = self._installed.get(commit.group)
            if last is not None and last[0] == commit.id:
                return Committed(last[1])
            if commit.pieces != incoming.next - 1:
                raise FailedPrecondition(
                    f"{incoming.next - 1} of {commit.pieces} pieces have arrived", where=f"group {commit.group}"
                )
            incoming.committing = True
            try:
                index = await self._install(incoming)
            finally:
                incoming.committing = False
                self._incoming.pop(commit.group, None)
            self._installed[commit.group] = (commit.id, index)
        host.metrics.snapshots.labels("received", "done").inc()
        log.info("snapshot installed", group=commit.group, index=index)
        return Committed(index)

    async def _install(self, incoming: _Incoming) -> int:
        """The state machine and the log are switched together; the index reached."""
        host = self._host
        engine, group, begin = host.engine, incoming.group, incoming.begin
        while group.checkpointing:
            await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[None] = loop.create_future()
        if not engine.begin_install(group, begin.index, begin.term, incoming.membership, lambda: _settle(begun)):
            incoming.sink.abort()
            if group.raft is None:
                raise Aborted("the replica is damaged", where=f"group {group.id}")
            return group.raft.durable_commit
        host.schedule()
        try:
            await begun
            await incoming.sink.commit(begin.index)
        except BaseException as error:
            engine.cancel_install(group)
            if isinstance(error, CurveError) and error.code == "disk_failed":
                host.fatal(error)
            raise
        finished: asyncio.Future[None] = loop.create_future()
        engine.finish_install(
            group, begin.index, begin.term, incoming.membership, host.clock.monotonic(), lambda: _settle(finished)
        )
        host.schedule()
        await finished
        return begin.index

    def drop(self, group: int) -> None:
        incoming = self._incoming.get(group)
        if incoming is not None and not incoming.committing:
            del self._incoming[group]
            incoming.sink.abort()
            self._host.metrics.snapshots.labels("received", "failed").inc()

    def expire(self, now: float) -> None:
        """Transfers whose sender has been gone for long."""
        limit = 2 * self._host.config.snapshot_timeout
        for group, incoming in list(self._incoming.items()):
            if now - incoming.touched > limit and not incoming.lock.locked():
                self.drop(group)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
