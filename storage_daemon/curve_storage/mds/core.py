"""What all services of one term of leadership share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from curve_storage.clock import Clock
from curve_storage.errors import FailedPrecondition
from curve_storage.mds import capacity
from curve_storage.mds.config import MdsConfig
from curve_storage.mds.locks import KeyedLocks
from curve_storage.mds.monitor import Limits, Monitor, Online
from curve_storage.mds.operators import Operators
from curve_storage.mds.picture import RETIRED
from curve_storage.mds.records import PoolRecord
from curve_storage.mds.state import ClusterState, CopysetKey, Tables

DEFAULT_POOLSET = "default"


class Fencer(Protocol):
    """Carries FENCE and DELETE_VOLUME to the leaders of copysets."""

    async def fence(self, volume: int, epoch: int, copysets: list[CopysetKey], timeout: float) -> None:
        """Returns when every copyset has the epoch; Unavailable naming those that have not."""
        ...

    async def delete(self, volume: int, copyset: CopysetKey, chunks: list[int], timeout: float) -> None: ...


class Signer(Protocol):
    """wire.token.Keyring."""

    def sign(self, scope: str, *, epoch: int, rights: str, expires: float) -> bytes: ...


@dataclass(slots=True)
class Core:
    config: MdsConfig
    clock: Clock
    state: ClusterState
    signer: Signer
    rng: random.Random
    fencer: Fencer | None = None
    locks: KeyedLocks = field(default_factory=KeyedLocks)  # by entry: held for every change of that entry, taken first
    directories: KeyedLocks = field(default_factory=KeyedLocks)  # by directory: for what it contains, held shortly
    topology: asyncio.Lock = field(default_factory=asyncio.Lock)  # chunkservers, pools, copysets
    monitor: Monitor = field(init=False)
    operators: Operators = field(init=False)
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # set when a step has ended: the next may begin
    promising: dict[str, int] = field(default_factory=dict)  # poolset → bytes being created just now
    on_event: Callable[[str, dict[str, object]], None] = lambda event, fields: None

    def __post_init__(self) -> None:
        beat = self.config.heartbeat
        limits = Limits(beat.unhealthy_after, beat.offline_after, beat.grace, self.config.schedulers.cooling)
        self.monitor = Monitor(limits, self.clock.monotonic())
        schedulers = self.config.schedulers
        self.operators = Operators(schedulers.transfer_timeout, schedulers.change_timeout)

    @property
    def tables(self) -> Tables:
        return self.state.tables

    def now_ms(self) -> int:
        return int(self.clock.wall() * 1000)

    # ---- pools and space

    def pools_of(self, poolset: str) -> list[PoolRecord]:
        return [p for p in self.tables.pools.values() if p.poolset == poolset and p.complete]

    def require_pools(self, poolset: str) -> list[PoolRecord]:
        pools = self.pools_of(poolset)
        if not pools:
            known = sorted({p.poolset for p in self.tables.pools.values() if p.complete})
            hint = f"Poolsets with a pool: {', '.join(known)}" if known else "Create one first: curve pool create"
            raise FailedPrecondition(f"there is no pool in poolset {poolset!r}", where=poolset, todo=hint)
        return pools

    def members_of_pool(self, pool: PoolRecord) -> list[int]:
        """Chunkservers that hold copysets of the pool."""
        return sorted(self.tables.members_in.get(pool.id, ()))

    def reported(self, chunkserver: int) -> tuple[int, int]:
        """(capacity, used) in bytes: as last reported, else as stored."""
        state = self.monitor.servers.get(chunkserver)
        if state is not None and state.beat.capacity:
            return state.beat.capacity, state.beat.used
        record = self.tables.chunkservers.get(chunkserver)
        return (record.capacity if record else 0), 0

    def pool_capacity(self, pool: PoolRecord) -> int:
        """Usable bytes, after replication."""
        now = self.clock.monotonic()
        zones: dict[int, tuple[str, int]] = {}
        for member in self.members_of_pool(pool):
            record = self.tables.chunkservers.get(member)
            if record is None or record.admin == RETIRED or self.monitor.online(member, now) is Online.OFFLINE:
                continue
            zones[member] = (record.zone, self.reported(member)[0])
        return capacity.usable(capacity.by_zone(zones), pool.replicas, pool.zones)

    def promised(self, poolset: str) -> int:
        """Bytes that volumes may come to use: the sizes of the live ones, what those in the recycle bin hold."""
        recycled = sum(self.tables.allocated(e.id) for e in self.tables.recycled() if e.poolset == poolset)
        return self.tables.live_bytes[poolset] + recycled + self.promising.get(poolset, 0)

    def check_space(self, poolset: str, wanted: int) -> None:
        """Raises NoSpace with figures, FailedPrecondition when the poolset has no pool."""
        total = sum(self.pool_capacity(pool) for pool in self.require_pools(poolset))
        capacity.check_promise(
            poolset=poolset,
            capacity=total,
            promised=self.promised(poolset),
            wanted=wanted,
            over_provisioning=self.config.over_provisioning,
        )

    def promise(self, poolset: str, size: int) -> Promise:
        self.check_space(poolset, size)
        return Promise(self, poolset, size)


class Promise:
    """Keeps the bytes of a creation under way from being promised twice."""

    def __init__(self, core: Core, poolset: str, size: int) -> None:
        self._core, self._poolset, self._size = core, poolset, size

    def __enter__(self) -> None:
        self._core.promising[self._poolset] = self._core.promising.get(self._poolset, 0) + self._size

    def __exit__(self, *_: object) -> None:
        self._core.promising[self._poolset] -= self._size
