"""Chunkservers, pools and copysets: registration, pool creation, administrative states.

All changes are made under the topology lock. A chunkserver is who its disk's identity file says (uuid and secret),
wherever it runs.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from curve_storage.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from curve_storage.mds import placement
from curve_storage.mds.core import DEFAULT_POOLSET, Core
from curve_storage.mds.monitor import Beat, Disk, Online
from curve_storage.mds.picture import PENDING, READWRITE, RETIRED
from curve_storage.mds.records import ChunkServerRecord, CopysetRecord, PoolRecord
from curve_storage.mds.store import MAX_CHANGES

DEFAULT_PHYSICAL_POOL = "default"
DEFAULT_REPLICAS = 3
MAX_COPYSETS = 100_000


@dataclass(frozen=True, slots=True)
class Registration:
    uuid: str
    secret: str
    address: str
    server: str
    zone: str
    physical_pool: str = ""
    poolset: str = ""
    disk_type: str = ""
    disk_path: str = ""
    capacity: int = 0
    version: str = ""


class Topology:
    def __init__(self, core: Core) -> None:
        self._core = core

    # ---- chunkservers

    def authenticate(self, chunkserver: int, secret: str) -> ChunkServerRecord:
        record = self._core.tables.chunkservers.get(chunkserver)
        if record is None:
            raise NotFound(
                f"chunkserver {chunkserver} is not known to this cluster",
                where=f"chunkserver {chunkserver}",
                todo="Register it: restart it with the data directory that belongs to this cluster",
            )
        if not hmac.compare_digest(secret.encode(), record.secret.encode()):
            raise self._wrong_secret(record)
        return record

    def _wrong_secret(self, record: ChunkServerRecord) -> Unauthenticated:
        return Unauthenticated(
            f"the secret does not belong to chunkserver {record.id} (uuid {record.uuid})",
            where=f"chunkserver {record.id}",
            todo="Its identity file was changed or copied: restore the file, or empty the data directory so that it "
            "registers as a new chunkserver",
        )

    async def register(self, wish: Registration) -> ChunkServerRecord:
        """The record of a new or returning chunkserver. A repeated first registration (its answer was lost) gives the
        same; once the secret was presented it is always required."""
        for what, value in (
            ("uuid", wish.uuid),
            ("address", wish.address),
            ("server", wish.server),
            ("zone", wish.zone),
        ):
            if not value:
                raise InvalidArgument(
                    f"a registration without {what}", where=wish.address, todo="Correct its configuration"
                )
        async with self._core.topology:
            known = self._core.tables.by_uuid.get(wish.uuid)
            if known is None:
                if wish.secret:
                    raise Unauthenticated(
                        f"this cluster does not know the uuid {wish.uuid}",
                        where=wish.address,
                        todo="The disk belongs to another cluster: attach it there, or empty its data directory",
                    )
                record = await self._new(wish)
            else:
                record = await self._returning(self._core.tables.chunkservers[known], wish)
            await self._take_address(record)
            self._heard_of(record)
            return record

    def _heard_of(self, record: ChunkServerRecord) -> None:
        """A registration is a sign of life: a pool can be made at once, without waiting for the first heartbeat."""
        state = self._core.monitor.servers.get(record.id)
        beat = state.beat if state is not None else Beat(capacity=record.capacity, version=record.version)
        self._core.monitor.beat(record.id, beat, self._core.clock.monotonic(), self._core.clock.wall())

    async def _new(self, wish: Registration) -> ChunkServerRecord:
        record = ChunkServerRecord(
            id=await self._core.state.reserve("chunkserver", batch=1),
            uuid=wish.uuid,
            secret=f"{self._core.rng.getrandbits(192):048x}",
            address=wish.address,
            server=wish.server,
            zone=wish.zone,
            physical_pool=wish.physical_pool or DEFAULT_PHYSICAL_POOL,
            poolset=wish.poolset or DEFAULT_POOLSET,
            disk_type=wish.disk_type,
            disk_path=wish.disk_path,
            capacity=wish.capacity,
            version=wish.version,
        )
        self._check_place(record)
        await self._core.state.commit(record)
        self._core.on_event("chunkserver_registered", {"chunkserver": record.id, "address": record.address})
        return record

    async def _returning(self, record: ChunkServerRecord, wish: Registration) -> ChunkServerRecord:
        if wish.secret:
            self.authenticate(record.id, wish.secret)
        elif record.confirmed:
            raise self._wrong_secret(record)
        if record.admin == RETIRED:
            raise FailedPrecondition(
                f"chunkserver {record.id} was retired",
                where=wish.address,
                todo="Empty its data directory to use the disk anew",
            )
        changed = msgspec.structs.replace(
            record,
            address=wish.address,
            server=wish.server,
            zone=wish.zone,
            physical_pool=wish.physical_pool or DEFAULT_PHYSICAL_POOL,
            poolset=wish.poolset or DEFAULT_POOLSET,
            disk_type=wish.disk_type,
            disk_path=wish.disk_path,
            capacity=wish.capacity or record.capacity,
            version=wish.version,
        )
        moved = (changed.physical_pool, changed.poolset) != (record.physical_pool, record.poolset)
        if moved and self._core.tables.copysets_of.get(record.id):
            raise FailedPrecondition(
                f"chunkserver {record.id} holds copysets of physical pool {record.physical_pool} and cannot change to "
                f"{changed.physical_pool}",
                where=wish.address,
                todo="Set its physical_pool and poolset back, or drain it first",
            )
        self._check_place(changed)
        if changed != record:
            await self._core.state.commit(changed)
        return changed

    def _check_place(self, record: ChunkServerRecord) -> None:
        for other in self._core.tables.chunkservers.values():
            if other.id == record.id or other.admin == RETIRED or other.physical_pool != record.physical_pool:
                continue
            if other.server == record.server and other.zone != record.zone:
                raise FailedPrecondition(
                    f"server {record.server} is in zone {other.zone} (chunkserver {other.id}), not in {record.zone}",
                    where=record.address,
                    todo="Give all chunkservers of a server the same zone",
                )
            if other.poolset != record.poolset:
                raise FailedPrecondition(
                    f"physical pool {record.physical_pool} belongs to poolset {other.poolset}, not {record.poolset}",
                    where=record.address,
                    todo="Correct poolset or physical_pool in its configuration",
                )

    async def _take_address(self, record: ChunkServerRecord) -> None:
        """An address given to another pod must no longer lead to the chunkserver that had it."""
        former = [
            msgspec.structs.replace(other, address="")
            for other in self._core.tables.chunkservers.values()
            if other.id != record.id and other.address == record.address
        ]
        for start in range(0, len(former), MAX_CHANGES):
            await self._core.state.commit(*former[start : start + MAX_CHANGES])

    async def learn(self, record: ChunkServerRecord, *, address: str, capacity: int, version: str) -> ChunkServerRecord:
        """Keeps what a heartbeat says and a later leader needs before the first heartbeat reaches it."""
        grown = abs(capacity - record.capacity) * 50 > record.capacity if capacity else False
        if record.confirmed and not grown and address in ("", record.address) and version in ("", record.version):
            return record
        changed = msgspec.structs.replace(
            record,
            confirmed=True,
            address=address or record.address,
            capacity=capacity if grown else record.capacity,
            version=version or record.version,
        )
        async with self._core.topology:
            present = self._core.tables.chunkservers[record.id]
            changed = msgspec.structs.replace(
                present, confirmed=True, address=changed.address, capacity=changed.capacity, version=changed.version
            )
            await self._core.state.commit(changed)
            if changed.address != record.address:
                await self._take_address(changed)
                self._core.on_event("chunkserver_moved", {"chunkserver": record.id, "address": changed.address})
        return changed

    async def set_state(self, chunkserver: int, admin: int) -> None:
        async with self._core.topology:
            record = self._core.tables.chunkservers.get(chunkserver)
            if record is None:
                raise NotFound(
                    "no such chunkserver", where=f"chunkserver {chunkserver}", todo="List them: curve server list"
                )
            if record.admin == admin:
                return
            copysets = len(self._core.tables.copysets_of.get(chunkserver, ()))
            if record.admin == RETIRED:
                raise FailedPrecondition(
                    f"chunkserver {chunkserver} is retired for good",
                    where=record.address,
                    todo="Empty its data directory and start it: it registers as a new one",
                )
            if admin == RETIRED and copysets:
                raise FailedPrecondition(
                    f"chunkserver {chunkserver} still holds {copysets} copysets",
                    where=record.address,
                    todo="Drain it first (state pending) and wait until it is empty",
                )
            if admin not in (READWRITE, PENDING, RETIRED):
                raise InvalidArgument(f"state {admin} is not known", where=record.address, todo="")
            await self._core.state.commit(msgspec.structs.replace(record, admin=admin))
            self._core.on_event("chunkserver_state", {"chunkserver": chunkserver, "admin": admin})

    async def retire_drained(self) -> list[int]:
        """A drained chunkserver that holds nothing any more is retired."""
        retired = []
        for record in list(self._core.tables.chunkservers.values()):
            if record.admin != PENDING or self._core.tables.copysets_of.get(record.id):
                continue
            if any(step.target == record.id for step in self._core.operators.steps().values()):
                continue
            await self.set_state(record.id, RETIRED)
            retired.append(record.id)
        return retired

    # ---- pools

    async def create_pool(
        self,
        name: str,
        *,
        physical_pool: str = "",
        poolset: str = "",
        replicas: int = 0,
        copysets: int = 0,
        scatter_width: int = 0,
        zones: int = 0,
    ) -> PoolRecord:
        """Stores the pool and its copysets; chunkservers are told with their next heartbeats. A creation that was cut
        short is taken up where it stopped."""
        if not name:
            raise InvalidArgument("a pool needs a name", todo="Give one")
        replicas = replicas or DEFAULT_REPLICAS
        zones = zones or replicas
        physical_pool = physical_pool or DEFAULT_PHYSICAL_POOL
        if not 1 <= zones <= replicas <= 7:
            raise InvalidArgument(
                f"{replicas} replicas in {zones} zones are not possible",
                where=name,
                todo="Replicas from 1 to 7, zones from 1 to the number of replicas",
            )
        if copysets > MAX_COPYSETS:
            raise InvalidArgument(f"{copysets} copysets are too many", where=name, todo=f"At most {MAX_COPYSETS}")
        async with self._core.topology:
            pool = next((p for p in self._core.tables.pools.values() if p.name == name), None)
            if pool is not None:
                self._check_same(pool, physical_pool, poolset, replicas, copysets, scatter_width, zones)
                if pool.complete:
                    return pool
            candidates = self._candidates(physical_pool)
            # In a thread: for thousands of chunkservers it takes seconds, and the lease must be renewed meanwhile.
            plan = await asyncio.to_thread(
                placement.plan,
                candidates,
                replicas=replicas,
                zones=zones,
                count=copysets,
                scatter_width=scatter_width,
                per_chunkserver=self._core.config.copysets_per_chunkserver,
                where=f"physical pool {physical_pool}",
                rng=self._core.rng,
            )
            actual = self._core.tables.chunkservers[candidates[0].id].poolset
            if poolset and poolset != actual:
                raise FailedPrecondition(
                    f"physical pool {physical_pool} belongs to poolset {actual}", where=name, todo="Correct the poolset"
                )
            if pool is None:
                pool = PoolRecord(
                    id=await self._core.state.reserve("pool", batch=1),
                    name=name,
                    physical_pool=physical_pool,
                    poolset=actual,
                    replicas=replicas,
                    copysets=len(plan.copysets),
                    scatter_width=plan.least_scatter,
                    zones=zones,
                    requested_copysets=copysets,
                    requested_scatter=scatter_width,
                )
                await self._core.state.commit(pool)
            return await self._fill(pool, plan)

    async def _fill(self, pool: PoolRecord, plan: placement.Placement) -> PoolRecord:
        present = {copyset for pool_id, copyset in self._core.tables.copysets if pool_id == pool.id}
        missing = [
            CopysetRecord(pool=pool.id, id=number, members=members)
            for number, members in enumerate(plan.copysets, start=1)
            if number not in present
        ]
        for start in range(0, len(missing), MAX_CHANGES):
            await self._core.state.commit(*missing[start : start + MAX_CHANGES])
        pool = msgspec.structs.replace(pool, complete=True, copysets=len(plan.copysets))
        await self._core.state.commit(pool)
        self._core.on_event("pool_created", {"pool": pool.name, "id": pool.id, "copysets": pool.copysets})
        return pool

    def _check_same(
        self, pool: PoolRecord, physical_pool: str, poolset: str, replicas: int, copysets: int, scatter: int, zones: int
    ) -> None:
        differs = [
            f"{what} {have}, not {want}"
            for what, have, want in (
                ("physical pool", pool.physical_pool, physical_pool),
                ("poolset", pool.poolset, poolset or pool.poolset),
                ("replicas", pool.replicas, replicas),
                ("zones", pool.zones, zones),
                ("copysets", pool.copysets, copysets or pool.copysets),
                ("scatter width", pool.requested_scatter, scatter or pool.requested_scatter),
            )
            if have != want
        ]
        if differs:
            raise AlreadyExists(
                f"a pool of this name exists with {' and '.join(differs)}", where=pool.name, todo="Choose another name"
            )

    def _candidates(self, physical_pool: str) -> Sequence[placement.Candidate]:
        now = self._core.clock.monotonic()
        found = []
        for record in self._core.tables.chunkservers.values():
            state = self._core.monitor.servers.get(record.id)
            if record.physical_pool != physical_pool or record.admin != READWRITE or state is None:
                continue
            if self._core.monitor.online(record.id, now) is Online.ONLINE and state.beat.disk is not Disk.ERROR:
                found.append(placement.Candidate(record.id, record.zone, record.server))
        return found

    async def wait_for_leaders(self, pool: PoolRecord, timeout: float) -> None:
        """Until every copyset of the pool has a leader, or the time is up."""
        keys = [key for key in self._core.tables.copysets if key[0] == pool.id]
        deadline = self._core.clock.monotonic() + timeout
        while True:
            now = self._core.clock.monotonic()
            if now >= deadline or all(self._core.monitor.leader(key, now) for key in keys):
                return
            await asyncio.sleep(0.1)
