"""The multi-raft host of a process: the engine, driven by one event loop, over wire and the shared log.

Per turn of the loop: proposals and frames that arrived → one flush of the engine → one log batch (while one is being
synced, the next collects) → one frame per peer. The sync thread reports back once per batch. Nothing polls: the only
timer is the tick for elections, heartbeats and checkpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from curve_storage.clock import Clock
from curve_storage.consensus.api import Addresses, Buffer, GroupStatus, Membership, Role, StateMachine
from curve_storage.consensus.codec import BatchHead, decode, decode_head, encode
from curve_storage.consensus.config import ConsensusConfig
from curve_storage.consensus.disk import DiskFile, RealDisk
from curve_storage.consensus.engine import Engine, Group
from curve_storage.consensus.host_checkpoints import Checkpointer
from curve_storage.consensus.host_metrics import HostMetrics
from curve_storage.consensus.host_state import Waiting
from curve_storage.consensus.incarnation import next_incarnation
from curve_storage.consensus.log import Batch, SharedLog
from curve_storage.consensus.log_sync import SyncThread
from curve_storage.consensus.peers import Peers
from curve_storage.consensus.snapshot_receive import SnapshotReceiver
from curve_storage.consensus.snapshot_send import SnapshotSender
from curve_storage.errors import (
    Corruption,
    CurveError,
    Internal,
    InvalidArgument,
    NotLeader,
    Overloaded,
    ResourceExhausted,
    Unavailable,
)
from curve_storage.telemetry import logs
from curve_storage.wire.channel import Channel, ChannelPool
from curve_storage.wire.messages import MessageType
from curve_storage.wire.server import Request, Server

log = logs.get("consensus.host")
_RAFT_BATCH = int(MessageType.RAFT_BATCH)
_EXIT_DISK_FAILED = 70


def end_process(error: CurveError) -> None:
    """A disk that failed a sync, or a state machine that failed, must not be used one moment longer."""
    log.error("fatal: this process ends", error=str(error), code=error.code)
    os._exit(_EXIT_DISK_FAILED)


class Host:
    """Implements consensus.api.ConsensusHost. Create it before `server.start()`: it registers its handlers.

    directory: the log's own. on_fatal: what to do after a failed sync or apply; the default ends the process.
    """

    def __init__(
        self,
        node_id: int,
        directory: Path,
        server: Server,
        pool: ChannelPool,
        addresses: Addresses,
        *,
        clock: Clock,
        rng: random.Random,
        config: ConsensusConfig | None = None,
        on_fatal: Callable[[CurveError], None] = end_process,
    ) -> None:
        self.node_id = node_id
        self.clock = clock
        self.config = config or ConsensusConfig()
        self.metrics = HostMetrics()
        self.fatal_error: CurveError | None = None
        self.engine: Engine
        self._directory = directory
        self._pool = pool
        self._addresses = addresses
        self._rng = rng
        self._on_fatal = on_fatal
        self._running = False
        self._flush_due = False
        self._syncing = False
        self._loop: asyncio.AbstractEventLoop
        self._peers: Peers
        self._peers_changed = True
        self._incarnation = 0
        self._heads: dict[int, BatchHead] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sync = SyncThread(self._synced)
        self._maintenance = ThreadPoolExecutor(1, thread_name_prefix="log-maintenance")
        self._preparing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._inflight_requests = 0
        self._inflight_bytes = 0
        self._slow_tick_at = 0.0
        self._checkpointer = Checkpointer(self)
        self._sender = SnapshotSender(self)
        self._receiver = SnapshotReceiver(self)
        server.handle(_RAFT_BATCH, self._on_batch, scope="cluster")
        self._receiver.register(server)

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens the log. Raises DiskFailed, Corruption. Damaged groups are named in the log and in their status."""
        self._loop = asyncio.get_running_loop()

        def open_log() -> SharedLog:
            disk = RealDisk(self._directory)
            self._incarnation = next_incarnation(self._directory / "incarnation", self.clock.wall)
            opened = SharedLog(disk, self.config.log)
            opened.open()
            return opened

        shared = await self.in_background(open_log)
        for place in shared.damage:
            log.error("the log is damaged", what=place)
        for number, group in shared.groups.items():
            if group.corrupt:
                log.error(
                    "replica is damaged and takes no part",
                    group=number,
                    reason=group.corrupt,
                    todo="It is rebuilt from its peers: remove it here and add this node again",
                )
        self.engine = Engine(self.node_id, shared, self.config.raft, self._rng, self)
        self._peers = Peers(self.config.raft, self.engine)
        self._sync.start()
        self._running = True
        self._tick()

    async def stop(self) -> None:
        """Hands leaderships over, makes everything durable, and fails what still waits with Unavailable."""
        if not self._running:
            self._maintenance.shutdown(wait=True)
            return
        now = self.clock.monotonic()
        for group in self.engine.groups.values():
            if group.raft is not None and group.raft.role is Role.LEADER:
                group.raft.resign(now)
                self.engine.mark(group)
        self._flush()
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.engine.close(self._down())
        await self.in_background(self._sync.stop)
        with contextlib.suppress(CurveError):
            await self.in_background(self.engine.log.seal_end)
        self._maintenance.shutdown(wait=True)
        self.engine.log.close()

    def fatal(self, error: CurveError) -> None:
        """Nothing more is written, acknowledged or answered."""
        if self.fatal_error is not None:
            return
        self.fatal_error = error
        self._running = False
        log.error("consensus stops", error=str(error))
        self.engine.close(error)
        self._on_fatal(error)

    def spawn(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", task=task.get_name(), error=f"{type(error).__name__}: {error}")

    async def in_background(self, action: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._maintenance, action)

    # --- the turn ----------------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if not self._running:
            return
        engine = self.engine
        now = self.clock.monotonic()
        try:
            if not engine.flush(now):
                self.schedule()
            if not self._syncing:
                self._submit()
        except CurveError as error:
            self.fatal(error)
            return
        except Exception as error:
            log.exception("the consensus engine failed")
            self.fatal(Internal(f"{type(error).__name__}: {error}", where=f"node {self.node_id}"))
            return
        if engine.outgoing:
            outgoing, engine.outgoing = engine.outgoing, {}
            for node, messages in outgoing.items():
                self._post(node, messages, now)

    def _submit(self) -> None:
        engine = self.engine
        if engine.log.stalled:
            engine.log.resume()
        batch = engine.take_batch()
        if batch is not None:
            self._syncing = True
            self._sync.submit(batch)

    def _synced(self, batch: Batch, error: CurveError | None, seconds: float) -> None:
        """In the sync thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._batch_done, batch, error, seconds)

    def _batch_done(self, batch: Batch, error: CurveError | None, seconds: float) -> None:
        self._syncing = False
        if self.fatal_error is not None:
            return
        if error is not None:
            self.fatal(error)
            return
        self.metrics.sync_seconds.observe(seconds)
        self.metrics.counted_log_bytes += batch.size
        self.engine.batch_done(batch)
        self._flush()
        if self.engine.log.pool.wants_more():
            self._prepare_segment()

    def _prepare_segment(self) -> None:
        if self._preparing or not self._running:
            return
        self._preparing = True

        async def prepare() -> None:
            try:
                await self.in_background(self.engine.log.pool.prepare)
            except CurveError as error:
                log.warning("cannot prepare a log segment", error=str(error))
            finally:
                self._preparing = False
            self.schedule()

        self.spawn(prepare(), "prepare-segment")

    def recycle(self, files: list[DiskFile]) -> None:
        async def run() -> None:
            try:
                for file in files:
                    await self.in_background(lambda file=file: self.engine.log.pool.recycle(file))  # type: ignore[misc]
            except CurveError as error:
                self.fatal(error)
                return
            self.schedule()

        self.spawn(run(), "recycle-segments")

    # --- network -----------------------------------------------------------------------------------------------------

    def channel(self, node: int) -> Channel | None:
        address = self._addresses.address(node)
        return self._pool.channel(address) if address else None

    def _post(self, node: int, messages: list[Any], now: float) -> None:
        peer = self._peers.known.get(node)
        channel = self.channel(node)
        if channel is None:
            return
        head = self._heads.get(node)
        if head is None:
            head = self._heads[node] = BatchHead(self.node_id, node, self._incarnation)
        for meta, payload in encode(head, messages, self.config.max_frame_bytes):
            if channel.post(_RAFT_BATCH, meta, payload):
                self.metrics.counted_sent += 1
                if peer is not None:
                    peer.sent = now
            else:
                self.metrics.counted_unsent += 1

    def _on_batch(self, request: Request) -> None:
        if not self._running:
            return
        head = decode_head(request.meta)
        if head.destination != self.node_id:
            log.warning("a frame for another node", sender=head.source, destination=head.destination)
            return
        now = self.clock.monotonic()
        if not self._peers.received(head.source, head.incarnation, now):
            return
        try:
            messages = decode(request.meta, request.payload)
        except Corruption as error:
            log.warning("frame dropped", error=str(error))
            return
        step = self.engine.step
        for message in messages:
            step(message, now)
        self.schedule()

    # --- time --------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if not self._running:
            return
        now = self.clock.monotonic()
        self._timer = self._loop.call_later(self.config.tick, self._tick)
        engine, peers = self.engine, self._peers
        if self._peers_changed:
            self._peers_changed = False
            members: set[int] = set()
            for group in engine.groups.values():
                members |= group.membership.members
            peers.retain(members, now)
        peers.tick(now)
        engine.tick(now)
        self._flush()
        if not self._running:
            return
        # Only after the flush: what it sent counts as the process' heartbeat.
        for peer in list(peers.known.values()):
            channel = self.channel(peer.node)
            if channel is not None:
                peers.link(peer, channel.connected, now)
                if now - peer.sent >= self.config.raft.heartbeat:
                    self._post(peer.node, [], now)
        if now >= self._slow_tick_at:
            self._slow_tick_at = now + 0.25
            self._slow_tick(now)

    def _slow_tick(self, now: float) -> None:
        engine, metrics = self.engine, self.metrics
        self._checkpointer.release()
        self._checkpointer.tick(now)
        if not self._syncing and engine.log.seal_idle():
            self._submit()
        self._receiver.expire(now)
        self._sender.unpin(now)
        if engine.log.pool.wants_more() or (engine.log.stalled and not engine.log.pool.free):
            self._prepare_segment()
        metrics.publish()
        metrics.segments.set(len(engine.log.segments))
        metrics.ready_segments.set(engine.log.pool.free)
        metrics.groups.set(len(engine.groups))
        rafts = [group.raft for group in engine.groups.values() if group.raft is not None]
        metrics.corrupt.set(len(engine.groups) - len(rafts))
        metrics.leaders.set(sum(raft.role is Role.LEADER for raft in rafts))
        metrics.hibernating.set(sum(raft.hibernating for raft in rafts))
        metrics.inflight.set(self._inflight_bytes)
        metrics.applied.inc(engine.applied_entries)
        metrics.leaderships.inc(engine.leaderships)
        engine.applied_entries = engine.leaderships = 0

    # --- Waiter ------------------------------------------------------------------------------------------------------

    def done(self, token: Waiting, result: Any) -> None:
        if token.size:
            self._inflight_requests -= 1
            self._inflight_bytes -= token.size
        if not token.future.done():
            token.future.set_result(result)

    def failed(self, token: Waiting, error: CurveError) -> None:
        if token.size:
            self._inflight_requests -= 1
            self._inflight_bytes -= token.size
        if not token.future.done():
            token.future.set_exception(error)

    def snapshot_needed(self, group: Group, node: int) -> None:
        self._sender.start(group, node)

    def members_changed(self, group: Group) -> None:
        self._peers_changed = True

    # --- ConsensusHost -----------------------------------------------------------------------------------------------

    def known_groups(self) -> list[int]:
        return sorted(self.engine.log.groups)

    def add_group(self, group: int, machine: StateMachine, membership: Membership | None = None) -> None:
        found = self.engine.add_group(group, machine, membership, self.clock.monotonic())
        if found.raft is None:
            log.error("replica is damaged and takes no part", group=group, reason=found.log.corrupt)
        self._peers_changed = True
        machine.on_membership(found.membership)
        self.schedule()

    async def remove_group(self, group: int) -> None:
        found = self.engine.groups.get(group)
        if found is not None and found.raft is not None and found.raft.role is Role.LEADER:
            found.raft.resign(self.clock.monotonic())
            self.engine.mark(found)
            self._flush()
        self._receiver.drop(group)
        self._sender.drop(group)
        removed: asyncio.Future[None] = self._loop.create_future()
        self.engine.remove_group(group, lambda: None if removed.done() else removed.set_result(None))
        self._peers_changed = True
        self.schedule()
        await removed

    def propose(self, group: int, header: bytes, payload: Buffer = b"") -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        engine = self.engine
        size = len(header) + len(payload) + 1
        try:
            if not self._running:
                raise self._down()
            found = engine.group(group)
            if not header:
                raise InvalidArgument("a command needs a header: an empty one marks the group's own entries")
            if (
                self._inflight_requests >= self.config.max_queued_requests
                or self._inflight_bytes + size > self.config.max_queued_bytes
                or engine.log.stalled
            ):
                raise self._overloaded()
            if size > engine.log.max_entry:
                raise ResourceExhausted(f"a command of {size} bytes is too large", where=f"group {group}")
            engine.propose(found, header, payload, Waiting(future, size))
        except CurveError as error:
            future.set_exception(error)
            return future
        self._inflight_requests += 1
        self._inflight_bytes += size
        self.metrics.counted_proposals += 1
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        return future

    def _down(self) -> CurveError:
        error = self.fatal_error
        what = f"this node has failed: {error.what}" if error else "this node is shutting down"
        return Unavailable(what, where=f"node {self.node_id}", todo="Ask another replica")

    def _overloaded(self) -> CurveError:
        self.metrics.overloaded.inc()
        what = f"{self._inflight_requests} commands with {self._inflight_bytes} bytes wait for a result"
        if self.engine.log.stalled:
            blockers = self.engine.log.blockers()
            what = "the log is full" + (f": group {blockers[0]} is being checkpointed" if blockers else "")
        return Overloaded(what, where=f"node {self.node_id}", todo="Retry in a moment")

    def lease_valid(self, group: int) -> bool:
        found = self.engine.groups.get(group)
        return found is not None and found.raft is not None and found.raft.lease_valid(self.clock.monotonic())

    def read_barrier(self, group: int) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        try:
            if not self._running:
                raise self._down()
            self.engine.read(group, Waiting(future, 0), self.clock.monotonic())
        except CurveError as error:
            future.set_exception(error)
            return future
        self.schedule()
        return future

    def status(self, group: int) -> GroupStatus:
        return self.engine.status(self.engine.group(group))

    def statuses(self) -> list[GroupStatus]:
        return [self.engine.status(group) for group in self.engine.groups.values()]

    def change_members(self, group: int, voters: tuple[int, ...]) -> None:
        self.engine.raft_of(group).change_members(voters, self.clock.monotonic())
        self.engine.mark(self.engine.group(group))
        self.schedule()

    def transfer_leader(self, group: int, to: int) -> None:
        raft = self.engine.raft_of(group)
        if raft.role is not Role.LEADER:
            raise NotLeader("only the leader can transfer leadership", leader=str(raft.leader or ""))
        raft.transfer(to, self.clock.monotonic())
        self.engine.mark(self.engine.group(group))
        self.schedule()
