"""Runs the schedulers over a picture of the cluster and turns their steps into operators."""

from __future__ import annotations

from curve_storage.errors import NotFound
from curve_storage.mds.core import Core
from curve_storage.mds.monitor import Online
from curve_storage.mds.operators import Finished
from curve_storage.mds.picture import RETIRED, view
from curve_storage.mds.records import CopysetRecord, SchedulerRecord
from curve_storage.mds.schedulers import copysets, leaders, recover, replica
from curve_storage.mds.view import Step, StepKind, View

NAMES = (recover.NAME, replica.NAME, copysets.NAME, leaders.NAME)


class Scheduling:
    def __init__(self, core: Core) -> None:
        self._core = core

    def enabled(self, name: str) -> bool:
        configured: bool = getattr(self._core.config.schedulers, name)
        return self._core.tables.schedulers.get(name, configured)

    async def switch(self, name: str, enabled: bool) -> None:
        if name not in NAMES:
            raise NotFound(f"no scheduler is called {name!r}", where=name, todo=f"There are {', '.join(NAMES)}")
        await self._core.state.commit(SchedulerRecord(name=name, enabled=enabled))

    def _view(self) -> View:
        core = self._core
        return view(
            core.tables,
            core.monitor,
            core.operators.steps(),
            now=core.clock.monotonic(),
            per_node=core.config.schedulers.per_chunkserver,
        )

    def round(self) -> list[Step]:
        """One round; returns the steps begun. Does nothing while reports are still coming in after a change of
        leader."""
        core = self._core
        now = core.clock.monotonic()
        for finished in core.operators.expire(now) + self._hopeless(now):
            self._tell(finished)
        known = [r.id for r in core.tables.chunkservers.values() if r.admin != RETIRED]
        if not core.tables.copysets or core.monitor.in_grace(known, now):
            return []
        picture = self._view()
        config = core.config.schedulers
        wanted: list[Step] = []
        if self.enabled(recover.NAME):
            wanted += recover.recover(picture)
        if self.enabled(replica.NAME):
            wanted += replica.replica(picture)
        if self.enabled(copysets.NAME):
            wanted += copysets.drain(picture)
            wanted += copysets.balance(picture, config.balance_tolerance)
        if self.enabled(leaders.NAME):
            wanted += leaders.leaders(picture, config.leader_transfers)
        return [step for step in wanted if self._begin(step)]

    def rapid_leader(self, pool: int) -> int:
        """Evens out the leaders of a pool (0: of all) at once; returns the number of moves begun."""
        picture = self._view()
        if pool and pool not in self._core.tables.pools:
            raise NotFound("no such pool", where=f"pool {pool}", todo="List them: curve pool list")
        steps = leaders.leaders(picture, len(picture.groups), pool)
        return sum(1 for step in steps if self._begin(step))

    def _begin(self, step: Step) -> bool:
        core = self._core
        record: CopysetRecord = core.tables.copysets[step.copyset]
        now, wall = core.clock.monotonic(), core.clock.wall()
        if not core.operators.add(step, record.epoch, now=now, wall=wall):
            return False
        core.on_event(
            "operator_started",
            {"copyset": step.copyset, "step": str(step), "scheduler": step.scheduler, "why": step.why},
        )
        return True

    def _hopeless(self, now: float) -> list[Finished]:
        """Steps whose target has gone meanwhile."""
        core = self._core
        gone = []
        for key, step in core.operators.steps().items():
            online = core.monitor.online(step.target, now)
            leaves = step.kind is StepKind.REMOVE_PEER
            patience = Online.UNSTABLE if step.kind is StepKind.TRANSFER_LEADER else Online.OFFLINE
            if key not in core.tables.copysets or (not leaves and online.value >= patience.value):
                gone.append(key)
        return core.operators.cancel(gone, "the target chunkserver does not answer", now)

    def _tell(self, finished: Finished) -> None:
        step = finished.operator.step
        fields: dict[str, object] = {"copyset": step.copyset, "step": str(step), "why": finished.why}
        self._core.on_event(f"operator_{finished.outcome}", fields)
