"""Clients: they write, read and discard on volumes that are attached elsewhere, extended and deleted meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from cluster_checker import BLOCK, SECTOR, History, Operation, Unit, Writer, pattern
from cluster_loop import Process
from cluster_world import ClientMachine, World

from curve_storage.client.cluster import Cluster
from curve_storage.client.volume import BlockVolume
from curve_storage.errors import CurveError, FailedPrecondition, Fenced, NotFound, OutOfRange, ResourceExhausted
from curve_storage.proto import mds_pb2 as pb
from curve_storage.units import CHUNK_SIZE, GiB

PER_CHUNK = CHUNK_SIZE // BLOCK
HOT = (0, 1, 2, 3)
"""Blocks of a chunk that are used; the last block of the chunk before is too. Block 3 is written in sectors."""
T = TypeVar("T")


class Volume:
    """Where writers may write: chunks (numbers in the volume); who holds it."""

    def __init__(self, path: str, chunks: tuple[int, ...]) -> None:
        self.path = path
        self.name = path
        self.chunks = chunks
        self.extended = False
        self.epoch = 0
        self.holder: Node | None = None
        self.writers = 0

    def blocks(self) -> list[int]:
        chunks = [*self.chunks, GiB // CHUNK_SIZE] if self.extended else list(self.chunks)
        found = {chunk * PER_CHUNK + block for chunk in chunks for block in HOT}
        return sorted(found | {chunk * PER_CHUNK - 1 for chunk in self.chunks if chunk})


def sectored(block: int) -> bool:
    return block % PER_CHUNK == 3


def units_of(name: str, block: int) -> list[Unit]:
    return [(name, block, sector) for sector in range(8)] if sectored(block) else [(name, block, -1)]


class WriterSession:
    """One opening of a volume: several operations at a time until it is fenced, or the simulation grows calm."""

    def __init__(self, world: World, history: History, process: Process, volume: Volume, handle: BlockVolume) -> None:
        volume.writers += 1
        self.world = world
        self.history = history
        self.name = process.name
        self.volume = volume
        self.handle = handle
        self.writer: Writer = (handle.epoch, volume.writers)
        self.rng = random.Random(world.rng.getrandbits(64))
        self.pace = self.rng.choice((0.02, 0.1, 0.3))

    async def run(self) -> None:
        await asyncio.gather(*(self._worker() for _ in range(self.rng.choice((1, 3, 5)))))

    async def _worker(self) -> None:
        rng = self.rng
        while not self.world.calm and not self.handle.fenced:
            try:
                await self.once()
            except Fenced:
                return
            except OutOfRange:
                await self.handle.refresh()
            await asyncio.sleep(rng.expovariate(1 / self.pace))

    async def once(self) -> None:
        rng, blocks = self.rng, self.volume.blocks()
        first = rng.choice(blocks)
        count = 1
        while count < 4 and first + count in blocks and rng.random() < 0.4:
            count += 1
        action = rng.random()
        if action < 0.45:
            await self.read(first, count)
        elif action < 0.85:
            if sectored(first) and rng.random() < 0.7:
                await self.write_sectors(first)
            else:
                await self.write(first, count)
        elif action < 0.98:
            await self.discard(first, count)
        else:
            await self.discard_chunk(first // PER_CHUNK)

    async def read(self, first: int, count: int) -> Operation:
        units = [unit for block in range(first, first + count) for unit in units_of(self.volume.name, block)]
        what = f"read {self.volume.name}[{first}+{count}]"
        operation = self.history.begin(self.name, what, self.writer, units, reading=True)
        data = await self.handle.read(first * BLOCK, count * BLOCK)
        self.history.decode(operation, bytes(data), first)
        self.history.end(self.name, operation)
        return operation

    async def write(self, first: int, count: int) -> None:
        units = [unit for block in range(first, first + count) for unit in units_of(self.volume.name, block)]
        operation = self.history.begin(self.name, f"write {self.volume.name}[{first}+{count}]", self.writer, units)
        data = b"".join(pattern(operation.number, unit) for unit in units)
        await self.handle.write(first * BLOCK, data)
        self.history.end(self.name, operation)

    async def write_sectors(self, block: int) -> None:
        first = self.rng.randrange(8)
        count = self.rng.randint(1, 8 - first)
        units = [(self.volume.name, block, sector) for sector in range(first, first + count)]
        what = f"write {self.volume.name}[{block}:{first}+{count} sectors]"
        operation = self.history.begin(self.name, what, self.writer, units)
        data = b"".join(pattern(operation.number, unit) for unit in units)
        await self.handle.write(block * BLOCK + first * SECTOR, data)
        self.history.end(self.name, operation)

    async def discard(self, first: int, count: int) -> None:
        units = [unit for block in range(first, first + count) for unit in units_of(self.volume.name, block)]
        what = f"discard {self.volume.name}[{first}+{count}]"
        operation = self.history.begin(self.name, what, self.writer, units, zeros=True)
        await self.handle.discard(first * BLOCK, count * BLOCK)
        self.history.end(self.name, operation)

    async def discard_chunk(self, chunk: int) -> None:
        blocks = [block for block in self.volume.blocks() if block // PER_CHUNK == chunk]
        units = [unit for block in blocks for unit in units_of(self.volume.name, block)]
        what = f"discard {self.volume.name} chunk {chunk}"
        operation = self.history.begin(self.name, what, self.writer, units, zeros=True)
        await self.handle.discard(chunk * CHUNK_SIZE, CHUNK_SIZE)
        self.history.end(self.name, operation)


class Node(ClientMachine):
    """A machine with workloads: opens the volumes it holds, again after each crash."""

    def __init__(self, world: World, name: str, history: History, volumes: list[Volume]) -> None:
        super().__init__(world, name)
        self.history = history
        self.volumes = volumes

    async def work(self, cluster: Cluster) -> None:
        begun: set[tuple[str, int]] = set()
        tasks = set()
        while True:
            for volume in self.volumes:
                key = volume.path, volume.epoch
                if volume.holder is self and key not in begun:
                    begun.add(key)
                    task = asyncio.get_running_loop().create_task(self._hold(cluster, volume, volume.epoch))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.05)

    async def _hold(self, cluster: Cluster, volume: Volume, epoch: int) -> None:
        process = Process.running
        assert process is not None
        try:
            handle = await BlockVolume.open(cluster, path=volume.path, epoch=epoch, patience=None)
        except Fenced:
            return
        await WriterSession(self.world, self.history, process, volume, handle).run()


class Director(ClientMachine):
    """Makes the pool and volumes, and changes them: the machine itself never fails, its requests do."""

    def __init__(self, world: World, history: History) -> None:
        super().__init__(world, "director")
        self.history = history
        self.volumes = [Volume("/a", (0, 1, 2)), Volume("/b", (0, 5))]
        self.nodes = [Node(world, f"node{number}", history, self.volumes) for number in (1, 2, 3)]
        self.ready = False
        self.idle = False
        self.verified = False
        self._serial = 0

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeats what failed for now."""
        said = ""
        while True:
            try:
                return await call()
            except CurveError as error:
                early = isinstance(error, FailedPrecondition) and not self.ready
                if not (error.retryable or early or isinstance(error, ResourceExhausted)):
                    raise
                if str(error) != said:
                    said = str(error)
                    self.world.note("director", f"waits: {said}")
            await asyncio.sleep(0.2)

    async def work(self, cluster: Cluster) -> None:
        mds = cluster.mds
        rng = random.Random(self.world.rng.getrandbits(64))
        pool = pb.CreatePoolRequest(name="pool", replicas=3, copysets=3, zones=3)
        await asyncio.sleep(1.0)
        await self.persist(lambda: mds.topology.CreatePool(pool, timeout=10))
        for volume in self.volumes:
            await self.persist(
                lambda path=volume.path: mds.namespace.CreateVolume(  # type: ignore[misc]
                    pb.CreateVolumeRequest(path=path, size=GiB), timeout=5
                )
            )
            await self._attach(cluster, volume, rng.choice(self.nodes))
        self.ready = True
        self.world.note("director", "the cluster is ready")
        while not self.world.calm:
            await asyncio.sleep(rng.expovariate(1 / 4.0))
            if not self.world.calm:
                self.world.events += 1
                await self._change(cluster, rng)
        self.idle = True
        while not self.world.counts["verify"]:
            await asyncio.sleep(0.1)
        await self._verify(cluster)

    async def _change(self, cluster: Cluster, rng: random.Random) -> None:
        volume = rng.choice(self.volumes)
        action = rng.random()
        if action < 0.5:
            await self._attach(cluster, volume, rng.choice([node for node in self.nodes if node is not volume.holder]))
        elif action < 0.6:
            request = pb.ExtendVolumeRequest(volume=pb.VolumeRef(path=volume.path), size=2 * GiB)
            await self.persist(lambda: cluster.mds.namespace.ExtendVolume(request, timeout=5))
            volume.extended = True
            self.world.counts["extended"] += 1
        elif action < 0.7:
            self.world.counts["rapid"] += 1
            await self.persist(lambda: cluster.mds.schedule.RapidLeader(pb.RapidLeaderRequest(), timeout=5))
        else:
            await self._short_lived(cluster, rng)

    async def _attach(self, cluster: Cluster, volume: Volume, node: Node) -> None:
        request = pb.AttachVolumeRequest(volume=pb.VolumeRef(path=volume.path), node=node.process.name, force=True)
        self.world.note("director", f"attaches {volume.path} to {node.process.name}")
        if volume.holder is not None and not self.world.calm and self.world.rng.random() < 0.6:
            self._keep_unaware(volume.holder)
        reply = await self.persist(lambda: cluster.mds.namespace.AttachVolume(request, timeout=10))
        if reply.epoch < volume.epoch:
            self.world.fail(f"{volume.path} was at epoch {volume.epoch}, is attached at {reply.epoch}")
        self.world.counts["attached"] += 1
        self.history.fence(volume.name, reply.epoch)
        volume.epoch, volume.holder = reply.epoch, node

    def _keep_unaware(self, node: Node) -> None:
        """The old holder cannot hear of it from the MDS for a while: it goes on writing, and must be refused."""
        network = self.world.network
        name = node.process.name
        links = {link for mds in self.world.mds for link in ((name, mds.process.name), (mds.process.name, name))}
        self.world.note("fault", f"{name} and the MDSs do not hear each other")
        network.set_cut(network.cut | links)
        self.world.scheduler.later(6.0, lambda: network.set_cut(network.cut - links))

    async def _short_lived(self, cluster: Cluster, rng: random.Random) -> None:
        """A volume is made, must be empty, is written to, and is deleted for good with its chunks."""
        self._serial += 1
        volume = Volume("/short", (0, 1))
        volume.name = f"/short.{self._serial}"
        namespace = cluster.mds.namespace
        create = pb.CreateVolumeRequest(path=volume.path, size=GiB)
        made = await self.persist(lambda: namespace.CreateVolume(create, timeout=5))
        identity = made.volume.id
        handle = await BlockVolume.open(cluster, volume_id=identity, patience=None)
        assert Process.running is not None
        session = WriterSession(self.world, self.history, Process.running, volume, handle)
        blocks = volume.blocks()
        await session.read(blocks[0], 3)
        for _ in range(rng.randint(1, 6)):
            await session.write(rng.choice(blocks), 1)
        for block in blocks:
            await session.read(block, 1)
        await handle.close()
        delete = pb.DeleteVolumeRequest(volume=pb.VolumeRef(id=identity), force=True)

        async def remove() -> None:
            try:
                await namespace.DeleteVolume(delete, timeout=5)
            except NotFound:
                pass  # an earlier attempt took effect

        while True:
            try:
                await self.persist(remove)
                break
            except FailedPrecondition:  # its session has not run out yet
                await asyncio.sleep(0.5)
        self.world.counts["deleted"] += 1

    async def _verify(self, cluster: Cluster) -> None:
        """Every block once more, from a new holder."""
        for volume in self.volumes:
            request = pb.AttachVolumeRequest(volume=pb.VolumeRef(path=volume.path), node="director", force=True)
            reply: Any = await self.persist(
                lambda request=request: cluster.mds.namespace.AttachVolume(request, timeout=10)
            )  # type: ignore[misc]
            self.history.fence(volume.name, reply.epoch)
            handle = await BlockVolume.open(cluster, path=volume.path, epoch=reply.epoch, patience=None)
            assert Process.running is not None
            session = WriterSession(self.world, self.history, Process.running, volume, handle)
            for block in volume.blocks():
                await session.read(block, 1)
            await handle.close()
        self.verified = True
