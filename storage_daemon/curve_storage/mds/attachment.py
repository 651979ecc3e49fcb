"""Attach, release, open, refresh, close: who may write a volume, and the fencing of who no longer may.

The order is what makes it safe. Attaching elsewhere: the new epoch is durable; every copyset that holds a segment of
the volume has the epoch (FENCE, through raft); that this is so is durable (`fenced_epoch`); only then is anybody
told. If the MDS dies in between, whoever attaches, opens or allocates next does the missing fencing first. All under
the volume's lock.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from curve_storage.errors import Fenced, InUse, InvalidArgument, PermissionDenied, Unavailable
from curve_storage.mds.core import Core
from curve_storage.mds.namespace import Namespace
from curve_storage.mds.records import Entry, Session
from curve_storage.mds.sessions import Sessions


@dataclass(frozen=True, slots=True)
class Opened:
    entry: Entry
    session: Session
    token: bytes
    token_expires_ms: int


class Attachments:
    def __init__(self, core: Core, namespace: Namespace, sessions: Sessions) -> None:
        self._core = core
        self._namespace = namespace
        self._sessions = sessions

    async def attach(
        self, path: str, entry_id: int, *, node: str, read_only: bool, force: bool, timeout: float
    ) -> Entry:
        if not node:
            raise InvalidArgument("the node to attach to is not given", where=path, todo="Give its name")
        entry = self._namespace.find_volume(path, entry_id)
        async with self._core.locks.hold(entry.id):
            entry = self._namespace.find_volume("", entry.id)
            where = self._core.tables.path(entry)
            if entry.attached_node == node:
                if entry.read_only_attach != read_only:
                    entry = await self._store(entry, read_only_attach=read_only)
                return await self.fence(entry, timeout)
            if entry.attached_node and not force:
                raise InUse(
                    f"the volume is attached to node {entry.attached_node}",
                    where=where,
                    todo="Detach it there first; if that node is lost, attach with force: it is fenced then",
                )
            previous = entry.attached_node
            changes: dict[str, object] = {"attached_node": node, "read_only_attach": read_only}
            # Whoever wrote in this epoch, here or elsewhere, must not write beside the new holder. An epoch in which
            # nobody ever opened the volume for writing needs no end.
            if previous or entry.generation:
                changes |= {"epoch": entry.epoch + 1, "generation": 0}
            entry = msgspec.structs.replace(entry, **changes)
            await self._sessions.commit_epoch(entry)
            self._core.on_event(
                "volume_attached", {"volume": entry.id, "node": node, "epoch": entry.epoch, "taken_from": previous}
            )
            return await self.fence(entry, timeout)

    async def release(self, path: str, entry_id: int, *, node: str) -> Entry:
        entry = self._namespace.find_volume(path, entry_id)
        async with self._core.locks.hold(entry.id):
            entry = self._namespace.find_volume("", entry.id)
            if not entry.attached_node or (node and node != entry.attached_node):
                return entry
            self._core.on_event("volume_released", {"volume": entry.id, "node": entry.attached_node})
            return await self._store(entry, attached_node="", read_only_attach=False)

    async def _store(self, entry: Entry, **changes: object) -> Entry:
        entry = msgspec.structs.replace(entry, **changes)
        await self._core.state.commit(entry)
        return entry

    async def fence(self, entry: Entry, timeout: float) -> Entry:
        """Under the volume's lock: every copyset with a segment of the volume has its epoch when this returns."""
        if entry.fenced_epoch >= entry.epoch:
            return entry
        copysets = sorted(self._core.tables.volume_copysets.get(entry.id, ()))
        if copysets:
            if self._core.fencer is None:
                raise Unavailable("this MDS cannot reach chunkservers", todo="Repeat the request")
            limit = min(timeout, self._core.config.fence_timeout)
            await self._core.fencer.fence(entry.id, entry.epoch, copysets, limit)
        return await self._store(entry, fenced_epoch=entry.epoch)

    async def open(self, path: str, entry_id: int, *, epoch: int, write: bool, client: str, timeout: float) -> Opened:
        entry = self._namespace.find_volume(path, entry_id)
        async with self._core.locks.hold(entry.id):
            entry = self._namespace.find_volume("", entry.id)
            where = self._core.tables.path(entry)
            self.check_epoch(entry, epoch or entry.epoch)
            if write and entry.read_only_attach:
                raise PermissionDenied(
                    f"the volume is attached read-only to node {entry.attached_node}",
                    where=where,
                    todo="Open it for reading, or attach it for writing",
                )
            entry = await self.fence(entry, timeout)
            entry, session = await self._sessions.open(entry, write=write, client=client)
            return self._grant(entry, session)

    async def refresh(self, volume: int, session_id: str) -> Opened:
        entry = self._namespace.find_volume("", volume)
        async with self._core.locks.hold(entry.id):
            entry = self._namespace.find_volume("", entry.id)
            return self._grant(entry, await self._sessions.renew(entry, session_id))

    async def close(self, volume: int, session_id: str) -> None:
        async with self._core.locks.hold(volume):
            await self._sessions.close(volume, session_id)

    def check_epoch(self, entry: Entry, epoch: int) -> None:
        where = self._core.tables.path(entry)
        if epoch < entry.epoch:
            holder = f", now attached to node {entry.attached_node}" if entry.attached_node else ""
            raise Fenced(
                f"epoch {epoch} is over, the volume is at epoch {entry.epoch}{holder}",
                where=where,
                todo="Attach the volume again to get the present epoch",
            )
        if epoch > entry.epoch:
            raise InvalidArgument(f"the volume never had epoch {epoch}, it is at {entry.epoch}", where=where, todo="")

    def _grant(self, entry: Entry, session: Session) -> Opened:
        expires = self._core.clock.wall() + self._core.config.token_ttl
        token = self._core.signer.sign(
            f"volume:{entry.id}", epoch=session.epoch, rights="rw" if session.write else "r", expires=expires
        )
        return Opened(entry, session, token, int(expires * 1000))
