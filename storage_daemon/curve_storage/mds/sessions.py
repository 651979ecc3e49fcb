"""Sessions: who has a volume open. Stored, so that they outlive a change of leader; only their deadlines are in memory.

A session's id says what it was opened as (`w.<epoch>.<generation>.<random>`). A refresh of an id that is not known
any more (the client was paused for longer than the TTL) is accepted again as long as nobody else has opened the
volume since.
"""

from __future__ import annotations

import msgspec

from curve_storage.errors import Fenced, InvalidArgument
from curve_storage.mds.core import Core
from curve_storage.mds.records import Entry, Session
from curve_storage.mds.store import MAX_CHANGES


class Sessions:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._deadlines: dict[str, float] = {}

    def start(self) -> None:
        """At the beginning of a term every session gets its full time: its client could not refresh meanwhile."""
        for sessions in self._core.tables.sessions.values():
            for session in sessions.values():
                self._touch(session)

    def _touch(self, session: Session) -> None:
        self._deadlines[session.id] = self._core.clock.monotonic() + self._core.config.session_ttl

    def of(self, volume: int) -> list[Session]:
        now = self._core.clock.monotonic()
        known = self._core.tables.sessions.get(volume, {})
        return [s for s in known.values() if self._deadlines.get(s.id, 0.0) > now]

    def live_writers(self, volume: int) -> list[Session]:
        return [s for s in self.of(volume) if s.write]

    def count(self) -> int:
        return sum(len(s) for s in self._core.tables.sessions.values())

    async def open(self, entry: Entry, *, write: bool, client: str) -> tuple[Entry, Session]:
        """Under the volume's lock. A writer raises the generation and ends the sessions of older writers, in the same
        transaction as its own session: the generation is durable before anybody hears of it."""
        if write:
            entry = msgspec.structs.replace(entry, generation=entry.generation + 1)
        token = f"{self._core.rng.getrandbits(64):016x}"
        session = Session(
            id=f"{'w' if write else 'r'}.{entry.epoch}.{entry.generation}.{token}",
            volume=entry.id,
            write=write,
            epoch=entry.epoch,
            generation=entry.generation,
            client=client,
            opened_ms=self._core.now_ms(),
        )
        old = [s for s in self._core.tables.sessions.get(entry.id, {}).values() if self._outdated(s, entry)]
        old = old[: MAX_CHANGES - 2]  # what is left over expires
        if write:
            await self._core.state.commit(entry, session, delete=old)
        else:
            await self._core.state.commit(session, delete=old)
        self._touch(session)
        self._forget(old)
        return entry, session

    def _outdated(self, session: Session, entry: Entry) -> bool:
        return session.epoch < entry.epoch or (session.write and session.generation < entry.generation)

    def _forget(self, sessions: list[Session]) -> None:
        for session in sessions:
            self._deadlines.pop(session.id, None)

    async def commit_epoch(self, entry: Entry) -> None:
        """Stores a volume whose epoch has grown and ends the sessions of older epochs with it."""
        old = [s for s in self._core.tables.sessions.get(entry.id, {}).values() if s.epoch < entry.epoch]
        old = old[: MAX_CHANGES - 1]
        await self._core.state.commit(entry, delete=old)
        self._forget(old)

    async def drop_all(self, volume: int, entry: Entry) -> None:
        """Stores the (deleted) volume and ends all its sessions."""
        old = list(self._core.tables.sessions.get(volume, {}).values())[: MAX_CHANGES - 1]
        await self._core.state.commit(entry, delete=old)
        self._forget(old)

    async def renew(self, entry: Entry, session_id: str) -> Session:
        """Under the volume's lock. Raises Fenced when a newer writer or epoch has taken over."""
        session = self._core.tables.sessions.get(entry.id, {}).get(session_id)
        if session is None:
            session = self._parse(entry, session_id)
            if not self._outdated(session, entry):
                await self._core.state.commit(session)
        if self._outdated(session, entry):
            raise Fenced(
                f"a newer writer has the volume (epoch {entry.epoch}, generation {entry.generation}; "
                f"this session has epoch {session.epoch}, generation {session.generation})",
                where=self._core.tables.path(entry),
                todo="Stop using this session; open the volume again where it is meant to be used",
            )
        self._touch(session)
        return session

    def _parse(self, entry: Entry, session_id: str) -> Session:
        try:
            kind, epoch, generation, token = session_id.split(".")
            if kind not in ("w", "r") or len(token) != 16:
                raise ValueError
            return Session(
                id=session_id, volume=entry.id, write=kind == "w", epoch=int(epoch), generation=int(generation),
                client="(renewed)", opened_ms=self._core.now_ms(),
            )  # fmt: skip
        except ValueError:
            raise InvalidArgument(
                f"{session_id[:60]!r} is not a session",
                where=self._core.tables.path(entry),
                todo="Open the volume first",
            ) from None

    async def close(self, volume: int, session_id: str) -> None:
        session = self._core.tables.sessions.get(volume, {}).get(session_id)
        if session is not None:
            await self._core.state.commit(delete=[session])
            self._forget([session])

    async def expire(self) -> list[Session]:
        """Deletes what was not refreshed in time; returns those sessions."""
        now = self._core.clock.monotonic()
        if len(self._deadlines) > self.count():  # some went with their volumes
            known = {one for sessions in self._core.tables.sessions.values() for one in sessions}
            self._deadlines = {one: deadline for one, deadline in self._deadlines.items() if one in known}
        late = [
            session
            for sessions in list(self._core.tables.sessions.values())
            for session in sessions.values()
            if self._deadlines.get(session.id, 0.0) <= now
        ]
        gone: list[Session] = []
        for session in late:
            async with self._core.locks.hold(session.volume):
                if self._deadlines.get(session.id, 0.0) <= self._core.clock.monotonic():
                    await self.close(session.volume, session.id)
                    gone.append(session)
        return gone
