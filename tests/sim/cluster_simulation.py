"""One life of a whole cluster from one seed: load, volume operations and faults, then calm, and the reckoning."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster_checker import Broken, History
from cluster_disk import SimPath
from cluster_faults import Faults
from cluster_loop import Killed, Process
from cluster_patches import simulated
from cluster_workload import Director
from cluster_world import StorageMachine, Violation, World
from crc32c import crc32c

from curve_storage.chunkserver.chunk_directory import chunk_file_name
from curve_storage.chunkserver.chunk_file import BLOCKS, DATA_START
from curve_storage.mds import health

EVENTS = 400
"""Operations of clients, of volumes, and faults, in a life."""
_READY_WITHIN = 60.0
_CALM_WITHIN = 120.0
_LOAD_WITHIN = 400.0

__all__ = ["EVENTS", "Life", "Violation", "run"]


class Life:
    def __init__(self, seed: int, events: int) -> None:
        self.seed = seed
        self.events = events
        self.world = world = World(seed)
        world.chunkservers += [StorageMachine(world, number) for number in (1, 2, 3, 4, 5)[: world.rng.choice((4, 5))]]
        self.history = History(world)
        self.director = Director(world, self.history)
        self.faults = Faults(world, self.director)

    @property
    def digest(self) -> int:
        """Of everything that happened: equal for equal seeds."""
        return zlib.crc32("\n".join(self.world.trace).encode())

    def live(self) -> None:
        world, scheduler = self.world, self.world.scheduler
        for process in world.processes():
            process.start()
        self.director.process.start()
        for node in self.director.nodes:
            node.process.start()
        self._until(lambda: self.director.ready, _READY_WITHIN, "the cluster is not ready")
        self.faults.start()
        deadline = scheduler.time + _LOAD_WITHIN
        start = world.events
        while world.events - start < self.events and scheduler.time < deadline:
            world.step()
        self._settle()
        try:
            world.counts["units"] = self.history.check()
        except Broken as broken:
            world.fail(str(broken), broken.upto)
            assert world.violation is not None
            raise world.violation from None

    # --- the end -----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Without faults everything must come to rest, whole and equal."""
        world, faults = self.world, self.faults
        world.note("-", "calm")
        world.calm = True
        world.network.set_cut(set())
        world.network.jitter = world.network.duplicates = 0.0
        for process in faults.processes():
            process.paused_until = 0.0
            process.crash_after = 0
            process.slow = 1.0
            if process.loop is not None:
                process.loop._wake(world.scheduler.time)
            else:
                # A machine that died in the middle of its work loses power like any other.
                faults.restart(process)
        self._until(lambda: self.director.idle, _CALM_WITHIN, "an operation on a volume does not end")
        world.counts["verify"] = 1
        self._until(lambda: self.director.verified, _CALM_WITHIN, "not everything can be read")
        self._until(self._healthy, _CALM_WITHIN, "the copysets do not become healthy")
        self._until(self._equal, _CALM_WITHIN, "the replicas do not become equal")

    def _until(self, condition: Any, seconds: float, what: str) -> None:
        world = self.world
        deadline = world.scheduler.time + seconds
        look = 0.0
        while True:
            world.step()
            now = world.scheduler.time
            if now >= look:
                look = now + 0.2
                reason = condition()
                if reason is True:
                    return
            if now > deadline:
                world.fail(f"liveness: {seconds:g} s without faults, and {what}{f': {reason}' if reason else ''}")
                assert world.violation is not None
                raise world.violation

    def _healthy(self) -> Any:
        term = self.world.term()
        if term is None:
            return "no MDS leads"
        counts = health.counts(term.core)
        if counts.total == 0 or counts.healthy < counts.total:
            return f"{counts.healthy} of {counts.total} copysets are healthy"
        return True

    def _equal(self) -> Any:
        """True, or what differs."""
        term = self.world.term()
        if term is None:
            return "no MDS leads"
        machines = {}
        for machine in self.world.chunkservers:
            server = machine.server
            if machine.process.alive and server is not None and server.host is not None:
                machines[server.host.node_id] = machine
        for key, record in sorted(term.core.tables.copysets.items()):
            if len(record.members) != term.core.tables.pools[record.pool].replicas:
                return f"copyset {key} has members {record.members}"
            states = {}
            for member in record.members:
                if member not in machines:
                    return f"chunkserver {member} does not run"
                state = _replica(machines[member], key[0] << 32 | key[1])
                if isinstance(state, str):
                    return f"copyset {key} on {machines[member].process.name}: {state}"
                states[member] = state
            if len(set(states.values())) != 1:
                return f"copyset {key} differs: {states}"
        return True


@contextmanager
def _inside(process: Process) -> Iterator[None]:
    Process.running = process
    try:
        yield
    except Killed:
        raise AssertionError("a machine died while it was looked at") from None
    finally:
        Process.running = None


def _replica(machine: StorageMachine, group: int) -> tuple[Any, ...] | str:
    """What a replica holds, or what is wrong with it."""
    server = machine.server
    assert server is not None
    copyset = server.copysets.by_group.get(group)
    if copyset is None:
        return f"there is none ({server.copysets.damaged.get(group, '')})"
    if copyset.chunks.hollow:
        return f"chunks without a file: {sorted(copyset.chunks.hollow)}"
    chunks: list[tuple[int, int]] = []
    with _inside(machine.process):
        for number in copyset.chunks.ids():
            chunk = copyset.chunks.get(number)
            if chunk is None or chunk.blank:
                continue
            if chunk.bad:
                return f"chunk {number} has bad blocks {sorted(chunk.bad)[:5]}"
            entries = chunk.entries(0, BLOCKS)
            file: Any = machine.disk.get(SimPath(copyset.path / chunk_file_name(number)))
            for block, entry in enumerate(array("I", entries)):
                if entry and (crc32c(file.read(DATA_START + block * 4096, 4096)) or 1) != entry:
                    return f"chunk {number} block {block} does not match its checksum"
            chunks.append((number, zlib.crc32(entries)))
    writers = copyset.writers.dump()
    return copyset.applied, tuple(chunks), zlib.crc32(repr(sorted(writers["fences"].items())).encode())


def run(seed: int, events: int = EVENTS) -> Life:
    """Raises Violation naming the seed, with the last 100 events before it."""
    life = Life(seed, events)
    with simulated(life.world):
        try:
            life.live()
        except Violation as violation:
            what = f"seed {seed}, at {life.world.scheduler.time:.3f} s: {violation.what}"
            raise Violation(what, violation.trace) from None
        except Exception as error:
            world = life.world
            what = f"seed {seed}, at {world.scheduler.time:.3f} s: {type(error).__name__}: {error}"
            raise Violation(what, world.trace[-100:]) from error
        finally:
            life.world.dispose([life.director.process, *(node.process for node in life.director.nodes)])
    return life
