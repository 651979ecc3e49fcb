"""Volumes and directories: create, look up, list, delete, recover, rename, extend, update.

Every call may be repeated: what is done already is success. Changes take the lock of the volume and then those of the
directories concerned, look again, and write one transaction.
"""

from __future__ import annotations

import msgspec

from curve_storage.errors import Aborted, AlreadyExists, FailedPrecondition, InUse, InvalidArgument, NotFound
from curve_storage.mds import paths
from curve_storage.mds.core import DEFAULT_POOLSET, Core
from curve_storage.mds.records import CREATED, DELETING, RECYCLE_ID, ROOT_ID, Entry
from curve_storage.mds.sessions import Sessions

ROOT = Entry(id=ROOT_ID, parent=ROOT_ID, name="", directory=True)
RECYCLE_BIN = Entry(id=RECYCLE_ID, parent=ROOT_ID, name=paths.RECYCLE_NAME, directory=True)


class Namespace:
    def __init__(self, core: Core, sessions: Sessions) -> None:
        self._core = core
        self._sessions = sessions

    # ---- looking up

    def lookup(self, names: list[str]) -> Entry | None:
        entry = ROOT
        for depth, name in enumerate(names):
            if depth == 0 and name == paths.RECYCLE_NAME:
                entry = RECYCLE_BIN
                continue
            child = self._core.tables.children.get(entry.id, {}).get(name)
            if child is None:
                return None
            entry = self._core.tables.entries[child]
        return entry

    def find(self, path: str, entry_id: int) -> Entry:
        """The volume or directory of a reference; NotFound when there is none, also in the recycle bin."""
        entry = self._core.tables.entries.get(entry_id) if entry_id else self.lookup(paths.split(path))
        if entry is None:
            raise NotFound(
                "no such volume or directory",
                where=path or f"volume {entry_id}",
                todo="List what exists: curve volume list",
            )
        return entry

    def find_volume(self, path: str, entry_id: int) -> Entry:
        """A live volume: not a directory, not deleted."""
        entry = self.find(path, entry_id)
        where = path or self._core.tables.path(entry)
        if entry.directory:
            raise InvalidArgument("this is a directory, not a volume", where=where, todo="Give the path of a volume")
        if entry.parent == RECYCLE_ID:
            raise NotFound(
                "the volume was deleted" + (" and is being removed" if entry.status == DELETING else ""),
                where=entry.original_path,
                todo="" if entry.status == DELETING else f"Get it back: curve volume recover {entry.original_path}",
            )
        return entry

    def list_directory(self, path: str, *, recursive: bool, limit: int, start_after: str) -> tuple[list[Entry], bool]:
        """Entries in order of their paths (a directory before what is in it), and whether there are more."""
        directory = self.find(path, 0)
        if not directory.directory:
            return [directory], False
        after = paths.split(start_after) if start_after else []
        base = paths.split(path)
        found: list[Entry] = []
        stack: list[tuple[list[str], Entry]] = [(base, directory)]
        while stack:
            names, entry = stack.pop()
            if entry is not directory and names > after:
                if limit and len(found) == limit:
                    return found, True
                found.append(entry)
            if entry is directory or (recursive and entry.directory):
                children = self._core.tables.children.get(entry.id, {})
                for name in sorted(children, reverse=True):
                    stack.append(([*names, name], self._core.tables.entries[children[name]]))
        return found, False

    # ---- making

    async def create_volume(
        self,
        path: str,
        size: int,
        *,
        owner: str = "",
        poolset: str = "",
        labels: dict[str, str] | None = None,
        iops: int = 0,
        bytes_per_second: int = 0,
        create_parents: bool = False,
    ) -> Entry:
        names = paths.split_new(path)
        poolset = poolset or DEFAULT_POOLSET
        paths.check_size(size, self._core.config, where=path)
        parent = await self._parent(names, create_parents, owner)
        async with self._core.directories.hold(parent.id):
            self._still_there(parent, path)
            existing = self._child(parent, names[-1])
            if existing is not None:
                return self._same(existing, path, size=size, owner=owner, poolset=poolset)
            with self._core.promise(poolset, size):
                entry = Entry(
                    id=await self._core.state.reserve("entry"),
                    parent=parent.id,
                    name=names[-1],
                    owner=owner,
                    created_ms=self._core.now_ms(),
                    size=size,
                    poolset=poolset,
                    labels=labels or {},
                    iops=iops,
                    bytes_per_second=bytes_per_second,
                )
                await self._core.state.commit(entry)
                return entry

    async def create_directory(self, path: str, *, owner: str = "", create_parents: bool = False) -> Entry:
        names = paths.split_new(path)
        parent = await self._parent(names, create_parents, owner)
        return await self._directory(parent, names[-1], path, owner)

    async def _directory(self, parent: Entry, name: str, path: str, owner: str) -> Entry:
        async with self._core.directories.hold(parent.id):
            self._still_there(parent, path)
            existing = self._child(parent, name)
            if existing is not None:
                if not existing.directory:
                    raise AlreadyExists("a volume has this path", where=path, todo="Choose another path")
                return existing
            entry = Entry(
                id=await self._core.state.reserve("entry"),
                parent=parent.id,
                name=name,
                directory=True,
                owner=owner,
                created_ms=self._core.now_ms(),
            )
            await self._core.state.commit(entry)
            return entry

    async def _parent(self, names: list[str], create: bool, owner: str) -> Entry:
        parent = ROOT
        for depth, name in enumerate(names[:-1], start=1):
            path = "/" + "/".join(names[:depth])
            child = self._child(parent, name)
            if child is None:
                if not create:
                    raise NotFound(
                        "the directory does not exist", where=path, todo=f"Create it: curve volume mkdir {path}"
                    )
                child = await self._directory(parent, name, path, owner)
            if not child.directory:
                raise InvalidArgument("this is a volume, not a directory", where=path, todo="Choose another path")
            parent = child
        return parent

    def _child(self, parent: Entry, name: str) -> Entry | None:
        child = self._core.tables.children.get(parent.id, {}).get(name)
        return None if child is None else self._core.tables.entries[child]

    def _still_there(self, directory: Entry, path: str) -> None:
        if directory is not ROOT and self._core.tables.entries.get(directory.id) != directory:
            raise Aborted("the directory was removed or renamed meanwhile", where=path, todo="Repeat the request")

    def _same(self, existing: Entry, path: str, *, size: int, owner: str, poolset: str) -> Entry:
        if existing.directory:
            raise AlreadyExists("a directory has this path", where=path, todo="Choose another path")
        differs = [
            f"{what} {have}, not {want}"
            for what, have, want in (
                ("size", existing.size, size),
                ("owner", existing.owner or "(none)", owner or "(none)"),
                ("poolset", existing.poolset, poolset),
            )
            if have != want
        ]
        if differs:
            raise AlreadyExists(
                f"a volume of this path exists with {' and '.join(differs)}",
                where=path,
                todo="Choose another path, or delete that volume first",
            )
        return existing

    # ---- deleting and getting back

    async def delete(self, path: str, entry_id: int, *, force: bool) -> None:
        """Into the recycle bin; force: removed for good, now."""
        if not entry_id and self.lookup(paths.split(path)) is None and self._deleted_from(path):
            return  # repeated
        entry = self.find(path, entry_id)
        if entry.id in (ROOT_ID, RECYCLE_ID):
            raise InvalidArgument("this directory cannot be deleted", where=path, todo="")
        inside = (entry.parent, entry.id) if entry.directory else (entry.parent,)
        async with self._core.locks.hold(entry.id), self._core.directories.hold(*inside):
            entry = self._again(entry)
            if entry.directory:
                if self._core.tables.children.get(entry.id):
                    raise FailedPrecondition(
                        "the directory is not empty",
                        where=self._core.tables.path(entry),
                        todo="Delete what is in it first",
                    )
                await self._core.state.commit(delete=[entry])
                return
            if entry.status == DELETING or (entry.parent == RECYCLE_ID and not force):
                return
            where = self._core.tables.path(entry)
            if entry.parent != RECYCLE_ID:
                self._check_unused(entry, where)
            changed = self._recycled(entry, where)
            if force:
                changed = msgspec.structs.replace(changed, status=DELETING)
            await self._sessions.drop_all(entry.id, changed)
            self._core.on_event("volume_deleted", {"volume": entry.id, "path": where, "force": force})

    def _check_unused(self, entry: Entry, where: str) -> None:
        if entry.attached_node:
            raise InUse(
                f"the volume is attached to node {entry.attached_node}",
                where=where,
                todo=f"Detach it there first, or release it: curve volume release {where}",
            )
        writers = self._sessions.live_writers(entry.id)
        if writers:
            raise InUse(
                f"the volume is open for writing by {writers[0].client or 'a client'}",
                where=where,
                todo="Close it there; a client that has died is forgotten after "
                f"{self._core.config.session_ttl:g} seconds",
            )

    def _recycled(self, entry: Entry, where: str) -> Entry:
        if entry.parent == RECYCLE_ID:
            return entry
        now = self._core.now_ms()
        suffix = f"-{entry.id}-{now // 1000}"
        name = entry.name.encode()[: paths.MAX_NAME - len(suffix)].decode(errors="ignore") + suffix
        return msgspec.structs.replace(entry, parent=RECYCLE_ID, name=name, original_path=where, deleted_ms=now)

    def _deleted_from(self, path: str) -> list[Entry]:
        canonical = "/" + "/".join(paths.split(path))
        found = [e for e in self._core.tables.recycled() if e.original_path == canonical]
        return sorted(found, key=lambda e: e.deleted_ms)

    async def recover(self, path: str, entry_id: int, *, target_path: str) -> Entry:
        if entry_id:
            entry = self.find("", entry_id)
        else:
            names = paths.split(path)
            in_bin = self.lookup(names) if names[:1] == [paths.RECYCLE_NAME] else None
            candidates = [in_bin] if in_bin is not None else self._deleted_from(path)
            candidates.sort(key=lambda e: (e.status != DELETING, e.deleted_ms))
            if not candidates:
                live = self.lookup(names)
                if live is not None and not live.directory:
                    return live  # repeated
                raise NotFound(
                    "no deleted volume had this path",
                    where=path,
                    todo="See what can be recovered: curve volume list --deleted",
                )
            entry = candidates[-1]
        target = target_path or entry.original_path
        if entry.parent != RECYCLE_ID:
            if not target_path or self._core.tables.path(entry) == target_path:
                return entry  # repeated
            raise FailedPrecondition("the volume is not deleted", where=self._core.tables.path(entry), todo="Rename it")
        names = paths.split_new(target)
        parent = await self._parent(names, False, entry.owner)
        async with self._core.locks.hold(entry.id), self._core.directories.hold(parent.id):
            self._still_there(parent, target)
            entry = self._again(entry)
            if entry.parent != RECYCLE_ID:
                return entry
            if entry.status == DELETING:
                raise FailedPrecondition(
                    "the volume is being removed for good and cannot be recovered", where=entry.original_path, todo=""
                )
            self._free_target(parent, names[-1], target)
            with self._core.promise(entry.poolset, entry.size - self._core.tables.allocated(entry.id)):
                changed = msgspec.structs.replace(
                    entry, parent=parent.id, name=names[-1], original_path="", deleted_ms=0, status=CREATED
                )
                await self._core.state.commit(changed)
            return changed

    async def purge(self, older_than_ms: int) -> int:
        """Marks what has been in the recycle bin for longer for removal; returns how many volumes."""
        limit = self._core.now_ms() - older_than_ms
        purged = 0
        for entry in self._core.tables.recycled():
            if entry.status == DELETING or entry.deleted_ms > limit:
                continue
            async with self._core.locks.hold(entry.id):
                now = self._core.tables.entries.get(entry.id)
                if now is None or now.parent != RECYCLE_ID or now.status == DELETING:
                    continue
                await self._core.state.commit(msgspec.structs.replace(now, status=DELETING))
                purged += 1
        return purged

    # ---- changing

    async def rename(self, path: str, entry_id: int, target_path: str) -> Entry:
        names = paths.split_new(target_path)
        target = "/" + "/".join(names)
        if not entry_id and self.lookup(paths.split(path)) is None:
            moved = self.lookup(names)
            if moved is not None and moved.previous_path == "/" + "/".join(paths.split(path)):
                return moved  # repeated
        entry = self.find(path, entry_id)
        if entry.parent == RECYCLE_ID or entry.id in (ROOT_ID, RECYCLE_ID):
            raise FailedPrecondition("this cannot be renamed", where=path, todo="A deleted volume is recovered first")
        parent = await self._parent(names, False, entry.owner)
        # Directories move one at a time, so that two moves cannot make a circle.
        concerned = (entry.parent, parent.id, ROOT_ID) if entry.directory else (entry.parent, parent.id)
        async with self._core.locks.hold(entry.id), self._core.directories.hold(*concerned):
            self._still_there(parent, target)
            entry = self._again(entry)
            source = self._core.tables.path(entry)
            if source == target:
                return entry
            above = parent
            while above.id != ROOT_ID:
                if above.id == entry.id:
                    raise InvalidArgument("a directory cannot be moved into itself", where=target, todo="")
                above = self._core.tables.entries.get(above.parent, ROOT)
            self._free_target(parent, names[-1], target)
            changed = msgspec.structs.replace(entry, parent=parent.id, name=names[-1], previous_path=source)
            await self._core.state.commit(changed)
            return changed

    async def extend(self, path: str, entry_id: int, size: int) -> Entry:
        entry = self.find_volume(path, entry_id)
        async with self._core.locks.hold(entry.id):
            entry = self.find_volume("", entry.id)
            if size <= entry.size:
                return entry
            where = self._core.tables.path(entry)
            paths.check_size(size, self._core.config, where=where)
            with self._core.promise(entry.poolset, size - entry.size):
                changed = msgspec.structs.replace(entry, size=size)
                await self._core.state.commit(changed)
            return changed

    async def update(
        self, path: str, entry_id: int, *, throttle: tuple[int, int] | None, labels: dict[str, str]
    ) -> Entry:
        """labels are merged into the present ones; an empty value removes one."""
        entry = self.find_volume(path, entry_id)
        async with self._core.locks.hold(entry.id):
            entry = self.find_volume("", entry.id)
            merged = {k: v for k, v in {**entry.labels, **labels}.items() if v}
            iops, rate = throttle if throttle is not None else (entry.iops, entry.bytes_per_second)
            changed = msgspec.structs.replace(entry, labels=merged, iops=iops, bytes_per_second=rate)
            if changed != entry:
                await self._core.state.commit(changed)
            return changed

    def _again(self, entry: Entry) -> Entry:
        """The entry as it is now that its lock is held."""
        now = self._core.tables.entries.get(entry.id)
        if now is None:
            raise NotFound("it was removed meanwhile", where=f"volume {entry.id}", todo="")
        if now.parent != entry.parent:
            raise FailedPrecondition(
                "it was moved meanwhile", where=self._core.tables.path(now), todo="Repeat the request"
            )
        return now

    def _free_target(self, parent: Entry, name: str, path: str) -> None:
        if self._child(parent, name) is not None:
            raise AlreadyExists(
                "something has the target path", where=path, todo="Choose another path or delete it first"
            )
