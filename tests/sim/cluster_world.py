"""A whole cluster in one thread: etcd, MDSs, chunkservers and clients, each the real daemon on a machine of its own."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import sys
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from cluster_disk import MOUNTS, Disk, SimPath
from cluster_etcd import ADDRESS as ETCD
from cluster_etcd import Etcd
from cluster_loop import Numbered, Process, Scheduler
from cluster_network import Network
from cluster_rpc import Rpc

from curve_storage.chunkserver.config import ChunkServerConfig, LogConfig, PoolConfig, ScrubConfig
from curve_storage.chunkserver.daemon import ChunkServer
from curve_storage.client.cluster import Cluster
from curve_storage.client.config import ClientConfig
from curve_storage.config import EtcdConfig
from curve_storage.errors import Corruption, CurveError, DiskFailed
from curve_storage.mds.config import HeartbeatConfig, MdsConfig, SchedulersConfig
from curve_storage.mds.daemon import Daemon
from curve_storage.mds.term import Term
from curve_storage.units import KiB, MiB

MDS = ("mds1:6700", "mds2:6700")
KEYRING = Path("/keyring")


class Violation(AssertionError):
    """what: without the trace; trace: what happened last, one line each."""

    def __init__(self, what: str, trace: list[str] | None = None) -> None:
        self.what = what
        self.trace = trace or []
        super().__init__("\n".join([what, *self.trace]))


class World:
    """The machines, what connects them, and the record of what happened."""

    def __init__(self, seed: int) -> None:
        Numbered.numbers = itertools.count()
        self.seed = seed
        self.rng = random.Random(seed)
        self.scheduler = Scheduler()
        self.steps = 0
        self.events = 0
        self.calm = False
        self.counts: Counter[str] = Counter()
        self.trace: list[str] = []
        self.violation: Violation | None = None
        self.network = Network(self)
        self.rpc = Rpc(self)
        self.etcd = Etcd(self)
        self.mds = [MdsMachine(self, address) for address in MDS]
        self.chunkservers: list[StorageMachine] = []

    # --- the record --------------------------------------------------------------------------------------------------

    def note(self, who: str, what: str, level: str = "info") -> None:
        self.trace.append(f"{self.scheduler.time:9.4f} {who}: {what}")

    def fail(self, what: str, upto: int | None = None) -> None:
        """The first violation counts; its trace ends at line `upto`."""
        if self.violation is None:
            end = len(self.trace) if upto is None else upto
            self.violation = Violation(what, self.trace[max(0, end - 100) : end])

    def unforeseen(self, process: Process, message: str, error: BaseException | None) -> None:
        """A callback or a task of a living process raised what nobody caught."""
        if error is None or isinstance(error, (asyncio.CancelledError, CurveError)):
            return
        self.fail(f"{process.name}: {message}: {type(error).__name__}: {error}")

    def ended(self, process: Process, error: BaseException) -> None:
        """A daemon gave up with an error that it names, and is started again; nothing else may end by itself."""
        self.note(process.name, f"ends: {type(error).__name__}: {error}")
        if (
            not isinstance(error, CurveError)
            or isinstance(error, (DiskFailed, Corruption))
            or process not in self.daemons()
        ):
            self.fail(f"{process.name} ends: {type(error).__name__}: {error}")
            return
        self.kill(process, power=False)
        self.scheduler.later(1.0, lambda: None if process.alive else process.start())

    def daemons(self) -> list[Process]:
        return [*(each.process for each in self.mds), *(each.process for each in self.chunkservers)]

    # --- time --------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        self.scheduler.step()
        if self.violation is not None:
            raise self.violation

    def kill(self, process: Process, *, power: bool, silent: float = 0.0) -> None:
        """power: unsynced writes are lost; silent: seconds until its peers notice."""
        if not process.alive:
            return
        process.kill()
        self.fell(process, power=power, silent=silent)

    def fell(self, process: Process, *, power: bool, silent: float = 0.0) -> None:
        self.network.process_died(process.name, silent=silent)
        if process is self.etcd.process:
            self.etcd.killed()
        disk = MOUNTS.get(process.name)
        if power and disk is not None:
            disk.lose_power(self.rng)

    def processes(self) -> list[Process]:
        return [self.etcd.process, *self.daemons()]

    def dispose(self, clients: list[Process]) -> None:
        """Frees everything; what coroutines of killed processes do in their `finally` blocks touches nothing."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            for process in [*self.processes(), *clients]:
                process.dispose()
            MOUNTS.clear()
            self.mds.clear()
            self.chunkservers.clear()
            gc.collect()
        finally:
            sys.unraisablehook = hook

    def term(self) -> Term | None:
        """The MDS's present term of leadership."""
        for machine in self.mds:
            daemon = machine.daemon
            leading = machine.process.alive and daemon is not None and daemon._term is not None
            if leading and daemon is not None and daemon._election.is_leader():
                return daemon._term
        return None


class MdsMachine:
    def __init__(self, world: World, address: str) -> None:
        self.process = Process(world, address.partition(":")[0], self._boot)
        self.daemon: Daemon | None = None
        name = self.process.name
        self.config = MdsConfig(
            name=name,
            listen=address,
            advertise=address,
            http=f"{name}:6701",
            etcd=EtcdConfig(endpoints=[ETCD]),
            keyring=KEYRING,
            heartbeat=HeartbeatConfig(interval=0.5, unhealthy_after=2.5, offline_after=8.0, grace=3.0),
            session_ttl=6.0,
            recycle_retention=5.0,
            over_provisioning=1000.0,
            fence_timeout=8.0,
            schedulers=SchedulersConfig(interval=1.0, transfer_timeout=5.0, change_timeout=40.0, cooling=2.0),
        )

    def _boot(self, process: Process) -> Coroutine[Any, Any, None]:
        self.daemon = Daemon(self.config, process)
        return self.daemon.run()


class StorageMachine:
    """A chunkserver and its disk."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.process = process = Process(world, f"cs{number}", self._boot)
        self.disk = Disk(process)
        self.server: ChunkServer | None = None
        name = process.name
        config = ChunkServerConfig(
            name=name,
            data=Path("/unused"),
            listen=f"{name}:8200",
            advertise=f"{name}:8200",
            http=f"{name}:8201",
            mds=list(MDS),
            server=name,
            zone=f"zone{number}",
            pool=PoolConfig(size=40 * 17 * MiB, first_batch=2, ready=4, reserve=2),
            scrub=ScrubConfig(interval=world.rng.choice((4.0, 20.0)), bandwidth=1 << 30),
            keyring=KEYRING,
            heartbeat_interval=0.5,
            full_report_every=5,
            open_chunks=16,
            trash_retention=3.0,
        )
        log = LogConfig.model_construct(segment_size=256 * KiB, max_size=256 * KiB * world.rng.choice((6, 12)))
        self.config = config.model_copy(update={"data": SimPath(f"/{name}/data"), "log": log})

    def _boot(self, process: Process) -> Coroutine[Any, Any, None]:
        server = self.server = ChunkServer(self.config, clock=process, on_failed=self._failed)

        async def run() -> None:
            await server.start()

        return run()

    def _failed(self, error: CurveError) -> None:
        self.world.fail(f"{self.process.name} gives up: {error}")

    def format(self) -> None:
        """A new, empty disk with the mount point's directory."""
        self.disk.wipe()


class ClientMachine:
    """A process with a connection to the cluster; `work` runs in each of its lives."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.process = Process(world, name, self._boot)

    def cluster(self, process: Process) -> Cluster:
        return Cluster(ClientConfig(mds=list(MDS)), clock=process, deadline=5.0)

    def _boot(self, process: Process) -> Coroutine[Any, Any, None]:
        async def run() -> None:
            await self.work(self.cluster(process))

        return run()

    async def work(self, cluster: Cluster) -> None:
        raise NotImplementedError
