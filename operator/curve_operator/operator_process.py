"""The life of one operator process: health endpoint, Lease, kopf, workers; and its end when the Lease is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import kopf

from curve_operator import handlers
from curve_operator.kube import Kube, connect
from curve_operator.lease import Lease
from curve_operator.metrics import LEADER
from curve_operator.reconcile import Reconciler
from curve_operator.work import Workers
from curve_storage.clock import SystemClock
from curve_storage.errors import ConfigError
from curve_storage.telemetry import logs, metrics
from curve_storage.telemetry.http import HttpEndpoint

log = logs.get("curve_operator.process")


@dataclass
class OperatorProcess:
    image: str
    namespaces: Sequence[str]
    lease_namespace: str
    lease_name: str
    identity: str
    http: tuple[str, int]

    async def run(self, stop: asyncio.Event) -> int:
        """Exit code: 0 after `stop`, 1 when leadership was lost or a part of it died (start again as a standby)."""
        if not self.image:
            raise ConfigError(
                "no image for the daemons", where="--image", todo="Pass --image or set CURVE_IMAGE in the Deployment"
            )
        clock = SystemClock()
        self._workers: Workers | None = None
        endpoint = HttpEndpoint(*self.http, metrics.registry(), self._health, lambda: None)
        await endpoint.start()
        try:
            async with connect() as kube:
                lease = Lease(kube, clock, name=self.lease_name, namespace=self.lease_namespace, identity=self.identity)
                LEADER.set(0)
                acquiring = asyncio.create_task(lease.acquire())
                await _first(acquiring, asyncio.create_task(stop.wait()))
                if not acquiring.done():
                    acquiring.cancel()
                    return 0
                acquiring.result()
                LEADER.set(1)
                try:
                    return await self._lead(kube, lease, clock, stop)
                finally:
                    LEADER.set(0)
                    await lease.release()
        finally:
            await endpoint.stop()

    def _health(self) -> str | None:
        return self._workers.stuck() if self._workers is not None else None

    async def _lead(self, kube: Kube, lease: Lease, clock: SystemClock, stop: asyncio.Event) -> int:
        lost = asyncio.Event()
        reconciler = Reconciler(kube, self.image, self.identity, lease.held)
        self._workers = workers = Workers(reconciler.round, clock)
        ending = asyncio.Event()
        tasks = {
            "lease": asyncio.create_task(lease.keep(lost.set)),
            "watch": asyncio.create_task(
                kopf.operator(
                    registry=handlers.registry(workers.wake),
                    settings=handlers.settings(),
                    standalone=True,
                    clusterwide=not self.namespaces,
                    namespaces=tuple(self.namespaces),
                    stop_flag=ending,
                    identity=None,
                )
            ),
            "lost": asyncio.create_task(lost.wait()),
            "stop": asyncio.create_task(stop.wait()),
        }
        try:
            await _first(*tasks.values())
            if stop.is_set():
                log.info("stopping")
                return 0
            for name, task in tasks.items():
                if task.done() and not task.cancelled() and task.exception() is not None:
                    log.error("part of the operator died", part=name, error=str(task.exception()))
            return 1
        finally:
            await workers.close()  # first of all: nothing may act once the Lease is given up
            ending.set()
            await asyncio.wait([tasks["watch"]], timeout=5)
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            await reconciler.close()
            self._workers = None


async def _first(*tasks: asyncio.Task[object]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
