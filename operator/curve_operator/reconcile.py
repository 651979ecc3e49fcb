"""One round for one cluster: observe → plan → act → report. Called for every reason there is; always does the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from curve_operator import names
from curve_operator.act import act
from curve_operator.interpret import interpret
from curve_operator.kube import Kube
from curve_operator.mds_view import MdsConnection
from curve_operator.models.status import ClusterStatus
from curve_operator.observe import observe
from curve_operator.plan import make_plan
from curve_operator.report import EventText, changed, make_status, transitions, unreadable
from curve_storage.errors import Aborted, CurveError, InvalidArgument, NotFound
from curve_storage.telemetry import logs

log = logs.get("curve_operator.reconcile")
API = f"{names.GROUP}/{names.VERSION}"


@dataclass(frozen=True)
class Outcome:
    """again: seconds until the next look; gone: the cluster is no more."""

    again: float
    gone: bool = False


SETTLED = 30.0
WAITING = 5.0
ACTED = 0.5


@dataclass
class Reconciler:
    kube: Kube
    image: str
    identity: str
    leading: Callable[[], bool]
    wall: Callable[[], float] = time.time
    _connections: dict[str, MdsConnection] = field(default_factory=dict)

    async def close(self) -> None:
        for connection in self._connections.values():
            await connection.close()
        self._connections.clear()

    async def round(self, namespace: str, name: str) -> Outcome:
        """Raises CurveError when the API server refuses to let it look; the caller tries again later."""
        resource = await self.kube.get(API, names.KIND, name, namespace)
        if resource is None:
            connection = self._connections.pop(f"{namespace}/{name}", None)
            if connection is not None:
                await connection.close()
            return Outcome(0, gone=True)
        now = datetime.fromtimestamp(self.wall(), UTC)
        try:
            settings = interpret(resource, default_image=self.image)
        except InvalidArgument as error:
            await self._report(resource, unreadable(resource, str(error), now))
            return Outcome(SETTLED)
        mds = self._connections.setdefault(f"{namespace}/{name}", MdsConnection())
        observed = await observe(self.kube, mds, settings, resource)
        plan, where = make_plan(settings, observed, now)
        if not self.leading():
            return Outcome(WAITING)
        errors, different = await act(self.kube, mds, settings, observed, plan, now)
        status = make_status(settings, observed, plan, where, now, errors)
        await self._report(resource, status)
        if errors:
            return Outcome(WAITING)
        if different:
            return Outcome(ACTED)
        return Outcome(WAITING if plan.waiting else SETTLED)

    async def _report(self, resource: dict[str, Any], status: ClusterStatus) -> None:
        before = resource.get("status") or {}
        after = status.dump()
        if not changed(before, after):
            return
        metadata = resource["metadata"]
        try:
            await self.kube.patch(
                API, names.KIND, metadata["name"], metadata["namespace"], {"status": after}, subresource="status"
            )
        except Aborted:
            return  # changed meanwhile: the next round looks anew
        except NotFound:
            pass  # just deleted: what went wrong with that is still worth an event
        for event in transitions(before, status):
            log.info("event", cluster=f"{metadata['namespace']}/{metadata['name']}", reason=event.reason)
            await self._event(resource, event)

    async def _event(self, resource: dict[str, Any], event: EventText) -> None:
        metadata = resource["metadata"]
        stamp = datetime.fromtimestamp(self.wall(), UTC)
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{int(stamp.timestamp() * 1e6):x}.{names.short_hash(event.reason)}",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": API,
                "kind": names.KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": self.identity,
            "firstTimestamp": stamp.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lastTimestamp": stamp.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "count": 1,
        }
        try:
            await self.kube.create(body)
        except CurveError as error:
            log.warning("event not written", error=str(error))
