"""Checkpoints: they release log segments, and the group that holds the log back comes first."""

from __future__ import annotations

import asyncio
import time

from curve_storage.consensus.engine import Group
from curve_storage.consensus.host_state import HostParts
from curve_storage.errors import CurveError, Internal, StoreReadOnly
from curve_storage.telemetry import logs

log = logs.get("consensus.checkpoints")


class Checkpointer:
    """One checkpoint at a time per process: they compete for the same disk."""

    def __init__(self, host: HostParts) -> None:
        self._host = host
        self._task: asyncio.Task[None] | None = None
        self._complained = -1

    def tick(self, now: float) -> None:
        """Starts what is due; cheap otherwise."""
        if self._task is None or self._task.done():
            due = self._due(now)
            if due or self._host.engine.log.stalled:
                self._task = self._host.spawn(self._run(due), "checkpoint")
        self._watch_stall()

    def _due(self, now: float) -> list[Group]:
        host = self._host
        engine = host.engine
        due: list[Group] = []
        if engine.log.stalled or len(engine.log.segments) * 2 >= engine.log.pool.max_files:
            due = [group for number in engine.log.blockers() if (group := engine.groups.get(number)) is not None]
            if engine.log.stalled:
                for group in due:  # the bound is passed: members that lag get a snapshot instead
                    group.log.pinned = None
        for group in engine.groups.values():
            if group in due or group.raft is None or not group.applied_bytes:
                continue
            if (
                group.applied_bytes >= host.config.checkpoint_bytes
                or now - group.checkpointed_at >= host.config.checkpoint_interval
            ):
                due.append(group)
        return [group for group in due if not group.installing]

    async def _run(self, due: list[Group]) -> None:
        for group in due:
            await self.checkpoint(group)
        freed = self.release()
        shared = self._host.engine.log
        if not freed and shared.stalled and not shared.pool.free and shared.pool.files >= shared.pool.max_files:
            # What fills the log is not committed yet: a vote or a truncation must get in to settle it.
            await self._host.in_background(lambda: shared.pool.prepare(beyond_limit=True))
            self._host.schedule()

    async def checkpoint(self, group: Group) -> None:
        host = self._host
        engine = host.engine
        if group.checkpointing or group.installing or group.raft is None:
            return
        group.checkpointing = True
        started = time.perf_counter()
        group.applied_bytes = 0
        try:
            index = await group.machine.checkpoint()
        except StoreReadOnly as error:
            log.warning("no checkpoint while the store is read-only", group=group.id, error=str(error))
            group.applied_bytes = 1
            return
        except CurveError as error:
            host.fatal(error)
            return
        except Exception as error:
            host.fatal(Internal(f"checkpoint failed: {type(error).__name__}: {error}", where=f"group {group.id}"))
            return
        finally:
            group.checkpointing = False
            group.checkpointed_at = host.clock.monotonic()
        host.metrics.checkpoints.observe(time.perf_counter() - started)
        raft = group.raft
        if raft is not None and engine.groups.get(group.id) is group:
            # No-ops and memberships after the last command need no state machine.
            engine.checkpointed(group, index)

    def release(self) -> bool:
        files = self._host.engine.collect()
        if files:
            self._host.recycle(files)
        return bool(files)

    def _watch_stall(self) -> None:
        engine = self._host.engine
        metrics = self._host.metrics
        stalled = engine.log.stalled
        if not stalled:
            if self._complained >= 0:
                log.info("the log has room again")
                metrics.stalled.set(0)
                metrics.blocking_group.set(0)
                self._complained = -1
            return
        blockers = engine.log.blockers()
        culprit = blockers[0] if blockers else 0
        metrics.stalled.set(1)
        metrics.blocking_group.set(culprit)
        if culprit != self._complained:
            self._complained = culprit
            log.warning(
                "the log is full: writes wait for a checkpoint",
                group=culprit,
                blockers=len(blockers),
                segments=len(engine.log.segments),
                todo="Raise log.max_size if this recurs; the group's checkpoint is being forced",
            )
