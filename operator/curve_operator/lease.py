"""Leadership by a coordination Lease: one operator acts, the others stand by.

Two clocks never meet: a candidate measures with its own monotonic clock how long it has seen the same renewal, and
the holder stops acting before its own lease can have run out anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from curve_storage.clock import Clock
from curve_storage.errors import Aborted, AlreadyExists, CurveError
from curve_storage.telemetry import logs

Manifest = dict[str, Any]
API = "coordination.k8s.io/v1"

DURATION = 15.0
RENEW_EVERY = 3.0
STOP_AFTER = 10.0
"""Seconds without a successful renewal after which the holder stops; DURATION − STOP_AFTER is the safety margin."""

log = logs.get("curve_operator.lease")


class LeaseApi(Protocol):
    async def get(self, api: str, kind: str, name: str, namespace: str = "") -> Manifest | None: ...
    async def create(self, manifest: Manifest) -> Manifest: ...
    async def replace(self, manifest: Manifest) -> Manifest: ...


@dataclass
class Sighting:
    """The lease as last seen changing: its fingerprint and when, on the candidate's own monotonic clock."""

    fingerprint: tuple[str, str, int] = ("", "", -1)
    at: float = 0.0


def decide(lease: Manifest | None, identity: str, seen: Sighting, now: float) -> tuple[str, Sighting]:
    """One of: create, renew, take, wait. Pure; `now` is monotonic seconds."""
    if lease is None:
        return "create", seen
    spec = lease.get("spec") or {}
    holder = spec.get("holderIdentity") or ""
    fingerprint = (holder, spec.get("renewTime") or "", int(spec.get("leaseTransitions") or 0))
    if fingerprint != seen.fingerprint:
        seen = Sighting(fingerprint, now)
    if holder == identity:
        return "renew", seen
    if not holder or now - seen.at > float(spec.get("leaseDurationSeconds") or DURATION):
        return "take", seen
    return "wait", seen


class Lease:
    def __init__(self, api: LeaseApi, clock: Clock, *, name: str, namespace: str, identity: str) -> None:
        self._api = api
        self._clock = clock
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self._seen = Sighting()
        self._renewed: float | None = None

    def held(self) -> bool:
        return self._renewed is not None and self._clock.monotonic() - self._renewed < STOP_AFTER

    async def attempt(self) -> bool:
        """Acquire or renew once; False when another holds it or the write lost a race."""
        sent = self._clock.monotonic()
        lease = await self._api.get(API, "Lease", self._name, self._namespace)
        step, self._seen = decide(lease, self._identity, self._seen, self._clock.monotonic())
        if step == "wait":
            return False
        try:
            if step == "create":
                await self._api.create(self._manifest(None))
            else:
                assert lease is not None
                await self._api.replace(self._manifest(lease, transition=step == "take"))
        except (Aborted, AlreadyExists):
            return False
        self._renewed = sent
        return True

    async def acquire(self) -> None:
        """Returns when this process is the leader."""
        told = False
        while True:
            try:
                if await self.attempt():
                    log.info("leader", identity=self._identity)
                    return
                if not told:
                    log.info("standing by", holder=self._seen.fingerprint[0])
                    told = True
            except CurveError as error:
                log.warning("lease not readable", error=str(error))
            await asyncio.sleep(RENEW_EVERY)

    async def keep(self, lost: Callable[[], None]) -> None:
        """Renew until cancelled; calls `lost` once the lease may end elsewhere."""
        while True:
            await asyncio.sleep(RENEW_EVERY)
            try:
                if not await self.attempt() and not self.held():
                    break
                if self._seen.fingerprint[0] not in ("", self._identity):
                    break
            except CurveError as error:
                log.warning("lease not renewed", error=str(error))
            if not self.held():
                break
        log.error("leadership lost", identity=self._identity)
        lost()

    async def release(self) -> None:
        """Give it up at once, so that a standby need not wait for its end."""
        if self._renewed is None:
            return
        self._renewed = None
        try:
            lease = await self._api.get(API, "Lease", self._name, self._namespace)
            if lease and (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                lease["spec"]["holderIdentity"] = ""
                await self._api.replace(lease)
        except CurveError as error:
            log.warning("lease not released", error=str(error))

    def _manifest(self, lease: Manifest | None, *, transition: bool = False) -> Manifest:
        now = datetime.fromtimestamp(self._clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict((lease or {}).get("spec") or {})
        spec.update(
            holderIdentity=self._identity,
            leaseDurationSeconds=int(DURATION),
            renewTime=now,
        )
        if lease is None or transition:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (1 if transition else 0)
        metadata = (lease or {}).get("metadata") or {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": API, "kind": "Lease", "metadata": metadata, "spec": spec}
