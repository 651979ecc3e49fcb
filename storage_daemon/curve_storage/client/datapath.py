"""Chunk requests of one volume: sent to the leader of the copyset, repeated until answered.

The fast path is one coroutine frame in the caller's task, no timer and no task of its own. A request that fails goes
through `retry.judge`; a repetition keeps its sequence number, so it is applied once however often it arrives. A
watchdog looks at requests that have been under way for half a second: it asks the copyset's members who leads now,
and moves the requests when that has changed, without waiting for a timeout and without sending anything twice to a
leader that is only slow.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from curve_storage.client.cluster import Cluster
from curve_storage.client.retry import Backoff, Verdict, judge
from curve_storage.client.routing import Route
from curve_storage.client.sequence import Sequence
from curve_storage.client.session import Session
from curve_storage.client.stall import StallMonitor
from curve_storage.errors import Cancelled, Corruption, CurveError, DeadlineExceeded, Fenced, NotLeader, Unavailable
from curve_storage.telemetry import logs
from curve_storage.wire.channel import Channel, ChannelPool, Reply
from curve_storage.wire.messages import CHUNK, MessageType

Buffer = bytes | bytearray | memoryview

ATTEMPT_TIMEOUT = 5.0
MAX_ATTEMPT_TIMEOUT = 20.0
SLOW_AFTER = 0.5
WATCH_INTERVAL = 0.25
STALLED_AFTER = 1.0
MAX_REDIRECTS = 3
CORRUPT_ATTEMPTS = 5

_WORD: dict[int, str] = {
    MessageType.CHUNK_READ: "read",
    MessageType.CHUNK_WRITE: "write",
    MessageType.CHUNK_DISCARD: "discard",
}

_log = logs.get("client")


class _Moved(Unavailable):
    """The copyset has another leader now: repeat there."""


class _Flight:
    """A request under way. key: its name at the stall monitor, 0 while all is well."""

    __slots__ = (
        "address",
        "attempts",
        "backoff",
        "deadline",
        "future",
        "key",
        "kind",
        "node",
        "redirects",
        "route",
        "sent",
    )

    def __init__(self, kind: int, route: Route, deadline: float | None) -> None:
        self.kind = kind
        self.route = route
        self.deadline = deadline
        self.node = 0
        self.address = ""
        self.sent = 0.0
        self.future: asyncio.Future[Reply] | None = None
        self.key = 0
        self.attempts = 0
        self.redirects = 0
        self.backoff: Backoff | None = None


class DataPath:
    def __init__(
        self, cluster: Cluster, session: Session, stall: StallMonitor, *, patience: float | None, rng: random.Random
    ) -> None:
        self._session = session
        self._router = cluster.router
        self._health = cluster.health
        self._stall = stall
        self._patience = patience
        self._rng = rng
        self._monotonic = cluster.clock.monotonic
        self._pool: ChannelPool = cluster.channels(lambda: session.token)
        self._channels: dict[str, Channel] = {}
        self._routes: dict[int, Route] = {}
        self._sequences: dict[int, Sequence] = {}
        self._flights: dict[_Flight, None] = {}  # in order of arrival: they are also moved and failed in it
        self._keys = 0
        self._watch: asyncio.Task[None] | None = None
        self.dead: CurveError | None = None
        self.retries = 0
        self.on_fenced: Callable[[Fenced], None] = lambda _error: None
        self._router.on_change.append(self._leader_changed)

    def start(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._watch_forever())

    @property
    def inflight(self) -> int:
        return len(self._flights)

    def next_key(self) -> int:
        """A name for the stall monitor."""
        self._keys += 1
        return self._keys

    def deadline(self) -> float | None:
        return None if self._patience is None else self._monotonic() + self._patience

    async def read(self, group: int, chunk: int, offset: int, length: int) -> memoryview:
        """Bytes of a chunk, block-aligned. Raises ChunkNotExist (zeros), Corruption, or what `judge` lets fail."""
        reply = await self._request(MessageType.CHUNK_READ, group, chunk, offset, length, b"", None, 0)
        if len(reply.payload) != length:
            raise CurveError(
                f"asked for {length} bytes, got {len(reply.payload)}",
                where=str(self._routes[group]),
                todo="Use a client of the cluster's version",
            )
        return reply.payload

    async def mutate(
        self, kind: MessageType, group: int, chunk: int, offset: int, length: int, payload: Buffer
    ) -> None:
        """A write or discard, block-aligned, applied exactly once. `payload` must not change until this returns."""
        sequence = self._sequences.get(group)
        if sequence is None:
            sequence = self._sequences[group] = Sequence()
        seq = sequence.begin()
        try:
            await self._request(kind, group, chunk, offset, length, payload, sequence, seq)
        finally:
            sequence.end(seq)

    def die(self, error: CurveError) -> None:
        """All requests, present and future, fail with `error`."""
        if self.dead is not None:
            return
        self.dead = error
        for flight in list(self._flights):
            if flight.future is not None and not flight.future.done():
                flight.future.set_exception(error)
        if isinstance(error, Fenced):
            _log.error("volume_fenced", volume=self._session.volume.path, error=str(error))
            self.on_fenced(error)

    async def close(self) -> None:
        self.die(Cancelled("the volume is closed", where=self._session.volume.path, todo="Open it again"))
        self._router.on_change.remove(self._leader_changed)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._pool.close()

    async def pause(self, key: int, delay: float, deadline: float | None, reason: str, error: CurveError) -> None:
        """Waits `delay` seconds in the name of `key`; DeadlineExceeded when patience ends first."""
        self._stall.waiting(key, reason)
        if deadline is not None and self._monotonic() + delay >= deadline:
            self._stall.done(key)
            raise DeadlineExceeded(
                f"no success within {self._patience:g} s, waiting for {reason}",
                where=self._session.volume.path,
                todo="See `curve status`",
            ) from error
        await asyncio.sleep(delay)

    # ---- one request

    async def _request(
        self,
        kind: int,
        group: int,
        chunk: int,
        offset: int,
        length: int,
        payload: Buffer,
        sequence: Sequence | None,
        seq: int,
    ) -> Reply:
        session = self._session
        route = self._routes.get(group)
        if route is None:
            route = self._routes[group] = self._router.route(group)
        flight = _Flight(kind, route, None if self._patience is None else self._monotonic() + self._patience)
        self._flights[flight] = None
        try:
            while True:
                if self.dead is not None:
                    raise self.dead
                flight.node, flight.address = node, address = route.target(self._health)
                if not node:
                    await self._find_leader(flight, Unavailable("the MDS has not told its members"))
                    continue
                channel = self._channels.get(address)
                if channel is None:
                    channel = self._channels[address] = self._pool.channel(address)
                generation = session.generation
                low = sequence.low if sequence is not None else 0
                meta = CHUNK.pack(
                    group, chunk, session.volume_id, session.epoch, generation, offset, length, 0, seq, low
                )
                flight.sent = self._monotonic()
                flight.future = channel.call(kind, meta, payload, timeout=self._attempt_timeout(flight))
                try:
                    reply = await flight.future
                except CurveError as error:
                    await self._failed(flight, generation, error)
                    continue
                self._health.answered(address)
                route.leader = node
                return reply
        finally:
            del self._flights[flight]
            if flight.key:
                self._stall.done(flight.key)

    def _attempt_timeout(self, flight: _Flight) -> float:
        timeout = ATTEMPT_TIMEOUT
        if flight.attempts:
            timeout = min(MAX_ATTEMPT_TIMEOUT, ATTEMPT_TIMEOUT * 2.0 ** min(flight.attempts, 8))
        if flight.deadline is not None:
            timeout = max(0.05, min(timeout, flight.deadline - flight.sent))
        return timeout

    async def _failed(self, flight: _Flight, generation: int, error: CurveError) -> None:
        """Returns when the request may be repeated; raises what its caller must see."""
        if self.dead is not None:
            raise self.dead
        flight.future = None
        flight.attempts += 1
        self.retries += 1
        verdict = judge(error)
        if isinstance(error, Corruption) and flight.attempts < CORRUPT_ATTEMPTS:
            verdict = Verdict.WAIT  # a damaged block is repaired from another replica meanwhile
        match verdict:
            case _ if isinstance(error, _Moved):
                return
            case Verdict.FAIL:
                raise error
            case Verdict.FENCED:
                if generation == self._session.generation:
                    self.die(error)
                    raise error
                # Sent before the session was opened anew: its own successor fenced it.
            case Verdict.REDIRECT:
                await self._redirected(flight, error)
            case Verdict.SEARCH:
                if isinstance(error, DeadlineExceeded):
                    self._health.timed_out(flight.address)
                elif isinstance(error, Unavailable):
                    self._health.refused(flight.address)
                else:
                    flight.route.refreshed = float("-inf")
                await self._find_leader(flight, error)
            case Verdict.AUTHENTICATE:
                await self._authenticate(flight, generation, error)
            case Verdict.WAIT:
                await self._wait(flight, error, str(error))

    async def _redirected(self, flight: _Flight, error: CurveError) -> None:
        leader = int(error.leader) if isinstance(error, NotLeader) and error.leader.isdigit() else 0
        if leader and leader not in flight.route.members:
            flight.route.refreshed = float("-inf")  # a member this client has not heard of
        if self._router.redirect(flight.route, flight.node, leader):
            flight.redirects += 1
            if flight.redirects <= MAX_REDIRECTS:
                return
            flight.redirects = 0
        elif flight.route.leader == flight.node:
            flight.route.leader = 0
        await self._find_leader(flight, error)

    async def _find_leader(self, flight: _Flight, error: CurveError) -> None:
        await asyncio.wait({self._router.search(flight.route, self._pool)})
        leader = flight.route.leader
        if leader and leader != flight.node and not self._health.shunned(flight.route.members.get(leader, "")):
            flight.redirects = 0
            return
        asked = f"asked chunkserver {flight.node}: {error}" if flight.node else str(error)
        await self._wait(flight, error, f"a leader of {flight.route}; {asked}", cap=0.25)

    async def _authenticate(self, flight: _Flight, generation: int, error: CurveError) -> None:
        token = self._session.token
        try:
            await self._session.renew_or_reopen(generation)
        except CurveError as refused:
            if self.dead is not None:
                raise self.dead from refused
            error = refused
        if self._session.token != token and flight.attempts <= 2:
            return
        await self._wait(flight, error, f"a capability token: {error}")

    async def _wait(self, flight: _Flight, error: CurveError, reason: str, cap: float = 1.0) -> None:
        if flight.key == 0:
            flight.key = self.next_key()
        if flight.backoff is None:
            flight.backoff = Backoff(0.01, cap, rng=self._rng)
        await self.pause(flight.key, flight.backoff.next(), flight.deadline, reason, error)

    # ---- beside the requests

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            if self._flights:
                self._look_at_slow_ones()

    def _look_at_slow_ones(self) -> None:
        now = self._monotonic()
        for flight in list(self._flights):
            age = now - flight.sent
            if flight.future is None or flight.future.done() or age < SLOW_AFTER:
                continue
            leader = flight.route.leader
            if leader and leader != flight.node:  # a request sent later has found it
                self._move(flight)
                continue
            self._health.timed_out(flight.address)
            self._router.search(flight.route, self._pool)
            if age >= STALLED_AFTER:
                flight.key = flight.key or self.next_key()
                self._stall.waiting(
                    flight.key,
                    f"chunkserver {flight.node} ({flight.address}) to answer a {_WORD.get(flight.kind, 'request')} of "
                    f"{flight.route}",
                    age,
                )

    def _leader_changed(self, route: Route) -> None:
        if not route.leader:
            return
        for flight in list(self._flights):
            if flight.route is route and flight.node != route.leader:
                self._move(flight)

    def _move(self, flight: _Flight) -> None:
        future = flight.future
        if future is not None and not future.done():
            future.set_exception(_Moved(f"{flight.route} is led by chunkserver {flight.route.leader} now"))
