"""One task per cluster: it runs a round when woken and when its time has come, and never two at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from curve_operator.kube import pause
from curve_operator.metrics import CLUSTERS, DURATION, ERRORS, ROUNDS
from curve_operator.reconcile import Outcome
from curve_storage.clock import Clock
from curve_storage.errors import CurveError
from curve_storage.telemetry import logs

log = logs.get("curve_operator.work")

GATHER = 0.2
"""Seconds to let a burst of events gather into one round."""
MAX_BACKOFF = 60.0
STALE = 300.0
"""A worker without a finished round for this long makes the operator unhealthy."""

Round = Callable[[str, str], Awaitable[Outcome]]


class Workers:
    def __init__(self, run: Round, clock: Clock, gather: float = GATHER) -> None:
        self._run = run
        self._clock = clock
        self._gather = gather
        self._wakes: dict[tuple[str, str], asyncio.Event] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._finished: dict[tuple[str, str], float] = {}
        self._closed = False

    def wake(self, namespace: str, name: str) -> None:
        key = (namespace, name)
        if self._closed:
            return
        event = self._wakes.get(key)
        if event is None:
            event = self._wakes[key] = asyncio.Event()
            self._finished[key] = self._clock.monotonic()
            self._tasks[key] = asyncio.create_task(self._work(key, event), name=f"cluster {namespace}/{name}")
            CLUSTERS.set(len(self._tasks))
        event.set()

    def stuck(self) -> str | None:
        """For the health endpoint: the cluster whose rounds do not end, if any."""
        now = self._clock.monotonic()
        for (namespace, name), at in self._finished.items():
            if now - at > STALE:
                return f"no round of {namespace}/{name} has ended for {now - at:.0f} s"
        return None

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, key: tuple[str, str], wake: asyncio.Event) -> None:
        namespace, name = key
        wait, failures = 0.0, 0
        while True:
            woken = await pause(wait, wake) if wait else True
            if woken:
                await asyncio.sleep(self._gather)
                wake.clear()
            started = self._clock.monotonic()
            try:
                outcome = await self._run(namespace, name)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                failures += 1
                ERRORS.inc()
                wait = min(MAX_BACKOFF, 2.0 ** min(failures, 6)) * random.uniform(0.8, 1.2)
                known = isinstance(error, CurveError)
                log.error("round failed", cluster=f"{namespace}/{name}", error=str(error), exc_info=not known)
                wake.clear()  # events do not shorten the wait: the API server may be the one in trouble
                await asyncio.sleep(min(wait, 1.0))
                continue
            finally:
                self._finished[key] = self._clock.monotonic()
                ROUNDS.inc()
                DURATION.observe(self._clock.monotonic() - started)
            failures = 0
            if outcome.gone:
                if wake.is_set():
                    continue  # made again while we looked
                self._forget(key)
                return
            wait = outcome.again

    def _forget(self, key: tuple[str, str]) -> None:
        for table in (self._wakes, self._tasks, self._finished):
            table.pop(key, None)
        CLUSTERS.set(len(self._tasks))
