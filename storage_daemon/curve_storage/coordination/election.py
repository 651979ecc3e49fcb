"""Which of several processes is the leader, by leases in etcd.

Every candidate holds a key `<key>/<lease id>` that vanishes with its lease; the one with the smallest create revision
leads, each other waits for the one just before it. A winner reads its own key once more before it acts, since a watch
also ends when its own lease is the one that expired.

Two things keep a second leader out: a leader counts its time from the moment it *sent* its last successful renewal, so
it stops before etcd can let the lease expire; and its writes are transactions guarded by the create revision of its key
(see guarded.py), so that even a process that was paused after its last check changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec

from curve_storage.clock import Clock
from curve_storage.coordination.etcd import EtcdClient
from curve_storage.coordination.model import Compare, KeyValue, Lease
from curve_storage.coordination.watch import watch
from curve_storage.errors import CurveError, InvalidArgument, NotLeader
from curve_storage.telemetry import logs, metrics

_POLL = 1.0
_leader_gauge = metrics.gauge("curve_election_leader", "1 while this process is the leader")
_won = metrics.counter("curve_election_won_total", "Times this process became the leader")

log = logs.get("coordination.election")


class Candidate(msgspec.Struct, frozen=True):
    """value: what the candidate wants others to know, e.g. its address. term: grows with every new leader."""

    name: str
    value: str
    term: int = 0


class Election:
    """One candidate. ttl, margin in seconds: the lease, and how long before its end the leader stops by itself."""

    def __init__(
        self,
        client: EtcdClient,
        key: bytes,
        name: str,
        value: str,
        ttl: float,
        clock: Clock,
        *,
        margin: float | None = None,
    ) -> None:
        self._client = client
        self._key = key.rstrip(b"/")
        self._name = name
        self._value = value
        self._ttl = ttl
        self._clock = clock
        self._margin = max(0.2, ttl / 10) if margin is None else margin
        if not 0 < self._margin < ttl / 2:
            raise InvalidArgument(
                f"a margin of {self._margin:g} s does not fit a lease of {ttl:g} s", todo="Choose a longer lease"
            )
        self._lease: Lease | None = None
        self._own = b""
        self._revision = 0
        self._deadline = 0.0  # monotonic; before it the lease cannot have expired
        self._leading = False
        self._lost = asyncio.Event()
        self._lost_reason = ""
        self._renewing: asyncio.Task[None] | None = None

    # ---- the leader's view

    def is_leader(self) -> bool:
        return self._leading and self._clock.monotonic() < self._deadline

    @property
    def lease_id(self) -> int:
        return self._lease.id if self._lease is not None else 0

    @property
    def term(self) -> int:
        """The create revision of the own key: higher for every later leader. 0 when not a candidate."""
        return self._revision

    @property
    def key(self) -> bytes:
        """The own key in etcd while a candidate."""
        return self._own

    def commit_key(self, slot: int) -> bytes:
        """Where GuardedStore keeps the mark of a commit slot: beside the candidates' keys, under the same lease."""
        return self._key + b".commit/%016x/%d" % (self.lease_id, slot)

    @property
    def guard(self) -> Compare:
        """True in etcd exactly as long as this candidate leads. Raises NotLeader when it certainly does not."""
        if not self.is_leader():
            raise NotLeader("this process is not the leader", todo="Ask the leader")
        return Compare.created(self._own, self._revision)

    async def wait_lost(self) -> str:
        """Returns the reason, in a sentence, when leadership is lost (at once when it is not held)."""
        if not self._leading:
            return self._lost_reason or "not elected"
        await self._lost.wait()
        return self._lost_reason

    def abandon(self, reason: str) -> None:
        """Stops leading at once, without waiting for etcd; `resign` or `campaign` clean up."""
        if self._leading:
            _leader_gauge.set(0)
            log.warning("leadership lost", name=self._name, term=self._revision, reason=reason)
        self._leading = False
        self._deadline = 0.0
        self._lost_reason = self._lost_reason or reason
        self._lost.set()

    # ---- campaigning

    async def campaign(self) -> None:
        """Returns when this candidate leads. Waits without end, through failures of etcd; cancel it to give up."""
        if self._leading:
            await self.resign()
        while True:
            try:
                if await self._try():
                    log.info("elected", name=self._name, term=self._revision)
                    return
            except CurveError as error:
                log.warning("campaign interrupted", name=self._name, error=str(error))
                await self._withdraw("the campaign was interrupted")
                await asyncio.sleep(_POLL / 4)
            except BaseException:
                await self._withdraw("the campaign was cancelled")
                raise

    async def _try(self) -> bool:
        await self._withdraw("a new campaign")
        sent = self._clock.monotonic()
        lease = self._lease = await self._client.grant(self._ttl)
        self._deadline = sent + lease.ttl - self._margin
        self._lost = asyncio.Event()
        self._lost_reason = ""
        self._own = self._key + b"/%016x" % lease.id
        self._renewing = asyncio.get_running_loop().create_task(self._renew(lease))
        body = msgspec.json.encode({"name": self._name, "value": self._value})
        result = await self._client.txn(
            [Compare.absent(self._own)],
            {self._own: body},
            lease=lease.id,
            otherwise_get=[self._own],
            repeatable=True,
        )
        if result.succeeded:
            self._revision = result.revision
        else:  # an earlier attempt of this very transaction took effect
            mine = result.found[0]
            assert mine is not None
            self._revision = mine.create_revision
        while not self._lost.is_set():
            kvs, revision = await self._client.get_prefix(self._key + b"/")
            before = [kv for kv in kvs if kv.create_revision < self._revision]
            if not before:
                break
            await self._wait_deleted(max(before, key=lambda kv: kv.create_revision), revision)
        # Winning may only mean that every lease has expired, this one included: look at the own key again.
        mine = await self._client.get(self._own)
        if mine is None or mine.create_revision != self._revision or self._lost.is_set():
            return False
        self._leading = True
        if not self.is_leader():  # the answers took longer than the lease
            self._leading = False
            return False
        _leader_gauge.set(1)
        _won.inc()
        return True

    async def _wait_deleted(self, predecessor: KeyValue, revision: int) -> None:
        """Until the predecessor's key is deleted, or for a moment: a watch may hang on a broken connection."""

        async def deleted() -> None:
            async with aclosing(watch(self._client, predecessor.key, start_revision=revision + 1)) as changes:
                async for events in changes:
                    if any(event.kind == "delete" for event in events):
                        return

        waiting = [asyncio.create_task(deleted()), asyncio.create_task(self._lost.wait())]
        try:
            await asyncio.wait(waiting, timeout=_POLL, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    # ---- renewing

    async def _renew(self, lease: Lease) -> None:
        """Renews the lease every third of it and looks whether the own key is still there."""
        interval = lease.ttl / 3
        while True:
            rest = self._deadline - self._clock.monotonic()
            if rest <= 0:
                self.abandon("the lease could not be renewed in time")
                return
            await asyncio.sleep(min(interval, rest))
            sent = self._clock.monotonic()
            rest = self._deadline - sent
            if rest <= 0:
                continue
            try:
                async with asyncio.timeout(rest):
                    ttl = await self._client.renew(lease.id, deadline=rest, attempt=lease.ttl / 5)
                    if ttl <= 0:
                        self.abandon("the lease has expired")
                        return
                    self._deadline = max(self._deadline, sent + ttl - self._margin)
                    interval = lease.ttl / 3
                    if self._leading:
                        mine = await self._client.get(self._own, deadline=rest)
                        if mine is None or mine.create_revision != self._revision:
                            self.abandon("the leader key was deleted")
                            return
            except (CurveError, TimeoutError) as error:
                log.info("lease not renewed yet", name=self._name, error=str(error))
                interval = min(0.1, lease.ttl / 10)

    # ---- leaving

    async def resign(self) -> None:
        """Stops leading (or waiting) and lets the next candidate lead at once. Stop serving before calling this."""
        await self._withdraw("resigned")

    async def _withdraw(self, reason: str) -> None:
        self.abandon(reason)
        self._revision = 0
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None
        lease = self._lease  # kept until it is revoked: this may be cancelled and then called again
        if lease is not None:
            try:
                await self._client.revoke(lease.id, deadline=min(2.0, lease.ttl))
            except CurveError as error:  # it expires by itself
                log.info("lease not revoked", name=self._name, error=str(error))
            self._lease = None

    # ---- everyone's view

    async def candidates(self) -> list[Candidate]:
        """All candidates, the leader first."""
        kvs, _revision = await self._client.get_prefix(self._key + b"/")
        return [_candidate(kv) for kv in sorted(kvs, key=lambda kv: kv.create_revision)]

    async def leader(self) -> Candidate | None:
        found = await self.candidates()
        return found[0] if found else None

    async def observe(self) -> AsyncIterator[Candidate | None]:
        """The leader now, and each change of it; None while there is none. Survives failures of etcd."""
        last: Candidate | None = None
        first = True
        while True:
            try:
                kvs, revision = await self._client.get_prefix(self._key + b"/")
            except CurveError as error:
                log.info("cannot see the leader", error=str(error))
                await asyncio.sleep(_POLL / 2)
                continue
            ordered = sorted(kvs, key=lambda kv: kv.create_revision)
            now = _candidate(ordered[0]) if ordered else None
            if first or now != last:
                first, last = False, now
                yield now
            await self._changed(revision)

    async def _changed(self, revision: int) -> None:
        changes = watch(self._client, self._key + b"/", prefix=True, start_revision=revision + 1)
        try:
            async with asyncio.timeout(_POLL * 2), aclosing(changes):
                await anext(changes)
        except (TimeoutError, CurveError):
            pass  # look again: a watch may hang on a broken connection


def _candidate(kv: KeyValue) -> Candidate:
    try:
        body = msgspec.json.decode(kv.value, type=Candidate)
    except msgspec.MsgspecError:
        return Candidate(kv.key.decode(errors="replace"), "", kv.create_revision)
    return Candidate(body.name, body.value, kv.create_revision)
