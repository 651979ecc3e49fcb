"""One MDS process: campaigns, leads while it may, serves, and stops.

Every MDS answers on its gRPC port at all times; those that do not lead name the leader. A term of leadership ends
when the lease is lost, when the outcome of a transaction is unknown, or at SIGTERM; each time the old key is given up
first, so that the next term, here or elsewhere, starts from what etcd holds.
"""

from __future__ import annotations

import asyncio

from curve_storage.clock import Clock
from curve_storage.coordination.election import Candidate, Election
from curve_storage.coordination.etcd import EtcdClient
from curve_storage.coordination.guarded import GuardedStore
from curve_storage.errors import CurveError, NotLeader
from curve_storage.mds.config import MdsConfig
from curve_storage.mds.etcd_store import EtcdStore
from curve_storage.mds.figures import Figures
from curve_storage.mds.servicers import add_services
from curve_storage.mds.term import Term
from curve_storage.mds.transport import WireTransport
from curve_storage.rpc.server import listen, make_server
from curve_storage.telemetry import logs, metrics
from curve_storage.telemetry.http import HttpEndpoint
from curve_storage.wire.channel import split_address
from curve_storage.wire.token import Keyring

log = logs.get("mds")

ELECTION_KEY = b"mds/leader"
LOOK_INTERVAL = 1.0
COMPLAIN_INTERVAL = 10.0
FIGURES_INTERVAL = 5.0
STOP_LIMIT = 1.5
RETRY_PAUSE = 2.0


class Daemon:
    def __init__(self, config: MdsConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._keyring = Keyring.load(config.keyring, clock)
        self._etcd = EtcdClient(config.etcd)
        self._election = Election(self._etcd, ELECTION_KEY, config.name, config.advertise, config.election_ttl, clock)
        self._transport = WireTransport(self._keyring, clock, name=config.name, ttl=config.token_ttl, tls=config.tls)
        self._figures = Figures()
        self._term: Term | None = None
        self._known: Candidate | None = None
        self._candidates: list[Candidate] = []
        self._etcd_error = "etcd has not answered yet"
        self._load_error = ""
        self._stopping = asyncio.Event()

    # ---- Leadership, for the services

    def term(self) -> Term:
        if self._term is not None and self._election.is_leader():
            return self._term
        name, address = self.leader()
        if address == self._config.advertise:
            # Elected, but not (or no longer) ready: naming oneself would send clients round in circles.
            raise NotLeader(
                self._load_error or f"MDS {name} is taking over",
                where=self._config.advertise,
                todo="Correct what is named, see its log" if self._load_error else "Repeat the request",
            )
        raise NotLeader(
            f"MDS {self._config.name} is not the leader"
            + (f", {name} at {address} is" if address else " and no leader is known"),
            leader=address,
            where=self._config.advertise,
            todo="Ask the leader" if address else (self._etcd_error or "Repeat the request"),
        )

    def leader(self) -> tuple[str, str]:
        known = self._known
        return (known.name, known.value) if known is not None else ("", "")

    async def members(self) -> list[tuple[str, str]]:
        return [(c.name, c.value) for c in self._candidates]

    def ready(self) -> str | None:
        if self._etcd_error:
            return self._etcd_error
        if self._load_error:
            return self._load_error
        if self._known is None:
            return "no leader is elected yet"
        if self._known.value == self._config.advertise and self._term is None:
            return "taking over"
        return None

    def stop(self) -> None:
        self._stopping.set()

    # ---- life

    async def run(self) -> None:
        """Until `stop` is called. Raises Unavailable when a port cannot be had."""
        config = self._config
        endpoint = HttpEndpoint(*split_address(config.http), metrics.registry(), lambda: None, self.ready)
        server = make_server()
        add_services(server, self)
        listen(server, config.listen, config.tls)
        await endpoint.start()
        await server.start()
        log.info("serving", listen=config.listen, advertise=config.advertise, http=config.http)
        tasks = [asyncio.create_task(work) for work in (self._lead(), self._observe(), self._look(), self._measure())]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # only a defect ends one of them: show it
        finally:
            await self._wind_down(tasks)
            await asyncio.gather(server.stop(0.2), endpoint.stop(), self._transport.close(), self._etcd.close())
            log.info("stopped")

    async def _wind_down(self, tasks: list[asyncio.Task[None]]) -> None:
        """Stops serving as leader, then lets the next one lead at once."""
        self._end_term("this MDS is being stopped")
        for task in tasks:
            task.cancel()
        try:
            async with asyncio.timeout(STOP_LIMIT):
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._election.resign()
        except TimeoutError:
            log.warning("could not resign in time, the lease expires by itself", ttl=self._config.election_ttl)

    async def _lead(self) -> None:
        while not self._stopping.is_set():
            await self._election.campaign()
            term = Term(
                self._config,
                self._clock,
                EtcdStore(self._etcd, GuardedStore(self._etcd, self._election)),
                self._keyring,
                self._transport,
                on_event=self._event,
            )
            started = self._clock.monotonic()
            try:
                records = await term.start()
            except CurveError as error:
                term.close()
                self._load_error = "" if isinstance(error, NotLeader) else f"cannot lead: {error}"
                log.error("cannot lead", error=str(error), code=error.code)
                await self._election.resign()
                await asyncio.sleep(RETRY_PAUSE)
                continue
            self._load_error = ""
            self._term = term
            self._known = Candidate(self._config.name, self._config.advertise, self._election.term)
            self._figures.became_leader()
            took = round(self._clock.monotonic() - started, 3)
            log.info("leading", term=self._election.term, records=records, load_seconds=took)
            lost = asyncio.create_task(self._election.wait_lost())
            ended = asyncio.create_task(term.ended.wait())
            try:
                await asyncio.wait([lost, ended], return_when=asyncio.FIRST_COMPLETED)
            finally:
                reason = lost.result() if lost.done() and not lost.cancelled() else term.reason
                lost.cancel()
                ended.cancel()
                self._end_term(reason)
            await self._election.resign()

    def _end_term(self, reason: str) -> None:
        term, self._term = self._term, None
        if term is None:
            return
        term.close()
        if self._known is not None and self._known.value == self._config.advertise:
            self._known = None
        self._figures.stopped_leading()
        log.warning("not leading any more", reason=reason)

    def _event(self, event: str, fields: dict[str, object]) -> None:
        self._figures.event(event)
        log.info(event, **fields)

    async def _observe(self) -> None:
        async for candidate in self._election.observe():
            if candidate != self._known:
                log.info("leader changed", leader=candidate.name if candidate else "", known=candidate is not None)
            self._known = candidate

    async def _look(self) -> None:
        """Who takes part, and whether etcd answers."""
        complained = -COMPLAIN_INTERVAL
        while True:
            try:
                self._candidates = await self._election.candidates()
                if self._etcd_error:
                    log.info("etcd answers", endpoints=self._config.etcd.endpoints)
                self._etcd_error = ""
            except CurveError as error:
                endpoints = ", ".join(self._config.etcd.endpoints)
                self._etcd_error = f"etcd does not answer at {endpoints}: {error.what}"
                now = self._clock.monotonic()
                if now - complained >= COMPLAIN_INTERVAL:
                    complained = now
                    log.error(self._etcd_error, todo="Start etcd or correct etcd.endpoints; this MDS keeps trying")
            await asyncio.sleep(LOOK_INTERVAL)

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(FIGURES_INTERVAL)
            if self._term is not None:
                self._figures.collect(self._term)
