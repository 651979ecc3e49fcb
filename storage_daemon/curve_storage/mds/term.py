"""One term of leadership: everything that exists only while this MDS leads, and its background work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from curve_storage.clock import Clock
from curve_storage.errors import CurveError, FailedPrecondition, NotLeader
from curve_storage.mds.attachment import Attachments
from curve_storage.mds.cleaner import Cleaner
from curve_storage.mds.config import MdsConfig
from curve_storage.mds.core import Core, Signer
from curve_storage.mds.fence import CopysetCaller, Target, Transport
from curve_storage.mds.heartbeat import Heartbeats
from curve_storage.mds.namespace import Namespace
from curve_storage.mds.records import ClusterRecord
from curve_storage.mds.scheduling import Scheduling
from curve_storage.mds.segments import Segments
from curve_storage.mds.sessions import Sessions
from curve_storage.mds.state import ClusterState, CopysetKey
from curve_storage.mds.store import Store
from curve_storage.mds.topology import Topology
from curve_storage.units import CHUNK_SIZE, SEGMENT_SIZE

T = TypeVar("T")
log = structlog.get_logger(source="mds.term")

EXPIRY_INTERVAL = 1.0
CLEANING_INTERVAL = 2.0
BACKGROUND_SHARE = 5.0


class Term:
    """`ended` is set when this MDS must stop leading; `reason` says why."""

    def __init__(
        self,
        config: MdsConfig,
        clock: Clock,
        store: Store,
        signer: Signer,
        transport: Transport,
        *,
        rng: random.Random | None = None,
        on_event: Callable[[str, dict[str, object]], None] | None = None,
    ) -> None:
        self.ended = asyncio.Event()
        self.reason = ""
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        state = ClusterState(store, self._abandoned)
        self.core = Core(config, clock, state, signer, rng or random.SystemRandom())
        if on_event is not None:
            self.core.on_event = on_event
        self.core.fencer = CopysetCaller(transport, self._locate, clock)
        self.sessions = Sessions(self.core)
        self.namespace = Namespace(self.core, self.sessions)
        self.attachments = Attachments(self.core, self.namespace, self.sessions)
        self.segments = Segments(self.core, self.namespace, self.sessions, self.attachments)
        self.topology = Topology(self.core)
        self.heartbeats = Heartbeats(self.core, self.topology)
        self.scheduling = Scheduling(self.core)
        self.cleaner = Cleaner(self.core, self.namespace)

    async def start(self, *, background: bool = True) -> int:
        """Loads all of the state; returns the number of records. Raises Corruption, NotLeader, Unavailable."""
        count = await self.core.state.load()
        await self._identify()
        self.core.monitor.started = self.core.clock.monotonic()
        self.sessions.start()
        if background:
            self._spawn(self._loop("schedulers", self.core.config.schedulers.interval, self._schedule, self.core.wake))
            self._spawn(self._loop("sessions", EXPIRY_INTERVAL, self.sessions.expire))
            self._spawn(self._loop("cleaner", CLEANING_INTERVAL, self.cleaner.round))
        return count

    async def _identify(self) -> None:
        core = self.core
        cluster = core.tables.cluster
        wanted = core.config.cluster_id
        if cluster is None:
            made = wanted or f"{core.rng.getrandbits(128):032x}"
            await core.state.commit(
                ClusterRecord(
                    cluster_id=made, created_ms=core.now_ms(), segment_size=SEGMENT_SIZE, chunk_size=CHUNK_SIZE
                )
            )
            return
        if wanted and wanted != cluster.cluster_id:
            raise FailedPrecondition(
                f"etcd holds the metadata of cluster {cluster.cluster_id}, the configuration says {wanted}",
                where=",".join(core.config.etcd.endpoints),
                todo="Correct cluster_id, or the endpoints or prefix of etcd",
            )
        if (cluster.segment_size, cluster.chunk_size) != (SEGMENT_SIZE, CHUNK_SIZE):
            raise FailedPrecondition(
                f"the cluster has segments of {cluster.segment_size} and chunks of {cluster.chunk_size} bytes",
                where=",".join(core.config.etcd.endpoints),
                todo="Run the version of the MDS that made it",
            )

    def close(self) -> None:
        """Nothing is changed any more from here on; requests under way end with NotLeader."""
        self._closed = True
        self.core.state.abandon(NotLeader("this MDS stopped leading", todo="Repeat the request"))
        for task in self._tasks:
            if task.get_name().startswith("loop:"):
                task.cancel()

    def _abandoned(self, error: CurveError) -> None:
        self.reason = self.reason or str(error)
        self.ended.set()

    # ---- work

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        name = getattr(work, "__qualname__", "")
        task = asyncio.create_task(work, name="loop:" + name if name.endswith("_loop") else name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a request to its end even when the caller has gone away, so that nothing is left half done."""
        return await asyncio.shield(self._spawn(work))

    async def _loop(
        self,
        name: str,
        interval: float,
        work: Callable[[], Awaitable[object]],
        wake: asyncio.Event | None = None,
    ) -> None:
        """Rounds of `work`, `interval` seconds apart, or as soon as `wake` is set."""
        pause = interval
        while not self._closed:
            if wake is not None and pause <= interval:
                with suppress(TimeoutError):
                    await asyncio.wait_for(wake.wait(), pause)
                wake.clear()
            else:
                await asyncio.sleep(pause)
            began = self.core.clock.monotonic()
            try:
                await work()
            except NotLeader:
                return
            except CurveError as error:
                log.warning("background work failed, it is repeated", work=name, error=str(error))
            except Exception:
                # A defect in one round must not end scheduling or cleaning for good.
                log.exception("background work failed, it is repeated", work=name)
            # In a very large cluster a round takes long; it must not keep requests waiting for more of the time.
            pause = max(interval, BACKGROUND_SHARE * (self.core.clock.monotonic() - began))

    async def _schedule(self) -> None:
        self.scheduling.round()
        for chunkserver in await self.topology.retire_drained():
            log.info("chunkserver is empty and retired", chunkserver=chunkserver)

    def _locate(self, key: CopysetKey) -> Target:
        record = self.core.tables.copysets.get(key)
        if record is None:
            return Target({}, 0)
        report = self.core.monitor.leaders.get(key)
        members = {member: self.core.tables.address_of(member) for member in record.members}
        return Target(members, report.leader if report else 0)
