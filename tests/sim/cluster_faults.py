"""What goes wrong: one fault after the other until the simulation grows calm. At no time more is broken for good than
what is promised to be survived: one lost disk at a time, or rotten blocks on one machine, never both in one life."""

from __future__ import annotations

import random
from collections.abc import Callable

from cluster_disk import PAGE
from cluster_loop import Process
from cluster_workload import Director
from cluster_world import StorageMachine, World

from curve_storage.chunkserver.chunk_file import DATA_START
from curve_storage.mds import health


class Faults:
    def __init__(self, world: World, director: Director) -> None:
        self.world = world
        self.director = director
        self.rng = rng = random.Random(world.rng.getrandbits(64))
        self.interval = rng.choice((0.15, 0.4, 1.0))
        self.rot = rng.random() < 0.5
        self.rotten = rng.choice(world.chunkservers)
        self.network = world.network
        self.network.jitter = rng.choice((0.0, 0.02, 0.2))
        self.network.duplicates = rng.choice((0.0, 0.05, 0.3))
        self.lull_until = 0.0
        self.gentle = rng.random() < 0.15
        """Few crashes: long stretches in which everything else is under load."""
        everything: dict[str, tuple[int, Callable[[], None]]] = {
            "crash": (6, self.crash),
            "crash in the middle": (5, self.crash_in_the_middle),
            "power": (1, self.power),
            "pause": (5, self.pause),
            "partition": (5, self.partition),
            "one-way": (4, self.one_way),
            "heal": (7, self.heal),
            "reset": (4, self.reset),
            "slow disk": (3, self.slow_disk),
            "wall clock": (2, self.wall_clock),
            "rot": (6 if self.rot else 0, self.flip),
            "lose a disk": (0 if self.rot else 3, self.lose_disk),
        }
        self.names = list(everything)
        self.weights = [weight for weight, _ in everything.values()]
        self.actions = {name: action for name, (_, action) in everything.items()}

    def start(self) -> None:
        self.world.scheduler.later(self.rng.expovariate(1 / self.interval), self._next)

    def _next(self) -> None:
        if self.world.calm:
            return
        self.start()
        if not self.director.ready or self.world.scheduler.time < self.lull_until:
            return
        name = self.rng.choices(self.names, self.weights)[0]
        if self.gentle and name in ("crash", "crash in the middle", "power", "pause") and self.rng.random() < 0.8:
            return
        self.world.events += 1
        self.world.counts[name] += 1
        self.actions[name]()

    # --- processes -----------------------------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        return [*self.world.processes(), *(node.process for node in self.director.nodes)]

    def _victim(self) -> Process:
        """Chunkservers more often than others: there are more of their states."""
        if self.rng.random() < 0.6:
            return self.rng.choice(self.world.chunkservers).process
        return self.rng.choice(self.processes())

    def crash(self) -> None:
        process = self._victim()
        if process.alive:
            power = self.rng.random() < 0.5
            self.world.note("fault", f"{'loss of power of' if power else 'kill -9 of'} {process.name}")
            silent = self.rng.choice((0.0, 0.0, 3.0)) if power else 0.0
            self.world.kill(process, power=power, silent=silent)
            self._restart_later(process)

    def crash_in_the_middle(self) -> None:
        """After some callbacks or file operations, wherever that is."""
        process = self._victim()
        if not process.alive or process.crash_after:
            return
        process.crash_after = self.rng.choice((3, 30, 300, 3000)) * self.rng.randint(1, 10)
        power = self.rng.random() < 0.6
        self.world.note("fault", f"{process.name} will die in {process.crash_after} steps")
        life = process.lives

        def look() -> None:
            if process.lives != life or (process.alive and not process.crash_after):
                return
            if process.alive:
                self.world.scheduler.later(0.01, look)
                return
            self.world.fell(process, power=power)
            self._restart_later(process)

        look()

    def power(self) -> None:
        """Everything at once."""
        self.world.note("fault", "loss of power everywhere")
        for process in self.world.processes():
            if process.alive:
                self.world.kill(process, power=True)
                self._restart_later(process)

    def _restart_later(self, process: Process) -> None:
        delay = self.rng.choice((0.05, 1.0, 1.0, 6.0)) * self.rng.random()
        self.world.scheduler.later(delay, lambda: self.restart(process))

    def restart(self, process: Process) -> None:
        if not process.alive:
            self.world.note("fault", f"{process.name} starts again")
            process.start()

    def pause(self) -> None:
        process = self._victim()
        seconds = self.rng.choice((0.3, 1.0, 4.0, 8.0)) * self.rng.random()
        self.world.note("fault", f"{process.name} stands still for {seconds:.2f} s")
        process.paused_until = max(process.paused_until, self.world.scheduler.time + seconds)

    # --- network -------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return [*(process.name for process in self.processes()), "director"]

    def partition(self) -> None:
        """Some machines on each side; clients may see both."""
        names = self._names()
        side = {name for name in names if self.rng.random() < 0.35}
        both = {name for name in names if self.rng.random() < 0.3}
        cut = {
            (a, b)
            for a in names
            for b in names
            if (a in side) != (b in side) and a not in both and b not in both
        }  # fmt: skip
        self.world.note("fault", f"partition: {', '.join(sorted(side - both)) or 'nobody'}")
        self.network.set_cut(self.network.cut | cut)

    def one_way(self) -> None:
        name = self._victim().name
        others = [other for other in self._names() if other != name and self.rng.random() < 0.5]
        mute = self.rng.random() < 0.5
        self.world.note("fault", f"{name} {'is not heard by' if mute else 'does not hear'} {', '.join(others)}")
        links = {(name, other) if mute else (other, name) for other in others}
        self.network.set_cut(self.network.cut | links)

    def heal(self) -> None:
        if self.network.cut:
            self.world.note("fault", "the network is whole")
            self.network.set_cut(set())

    def reset(self) -> None:
        connections = list(self.network.connections)
        for connection in connections:
            if self.rng.random() < 0.2:
                self.network.reset(connection)
        self.world.note("fault", "connections are reset")

    # --- clocks and disks ----------------------------------------------------------------------------------------

    def wall_clock(self) -> None:
        process = self._victim()
        jump = self.rng.choice((-1, 1)) * self.rng.choice((1.0, 60.0, 4000.0)) * self.rng.random()
        self.world.note("fault", f"the time of day of {process.name} jumps by {jump:.1f} s")
        process.wall_offset += jump

        def corrected() -> None:
            process.wall_offset -= jump

        self.world.scheduler.later(self.rng.uniform(1.0, 20.0), corrected)

    def slow_disk(self) -> None:
        process = self.rng.choice(self.world.chunkservers).process
        process.slow = self.rng.choice((10.0, 100.0))
        self.world.note("fault", f"the disk of {process.name} is slow")

        def fast() -> None:
            process.slow = 1.0

        self.world.scheduler.later(self.rng.uniform(0.2, 4.0), fast)

    def flip(self) -> None:
        """One bit of a chunk file: data mostly, header or table at times."""
        machine = self.rotten
        files = [(name, file) for name, file in machine.disk.files(machine.disk.root) if "/copysets/" in f"/{name}"]
        chunks = sorted(name for name, _ in files if "/chunk_" in name and ".incoming" not in name)
        if not chunks:
            return
        name = self.rng.choice(chunks)
        file = dict(files)[name]
        pages = sorted(page for page in file.pages if page * PAGE >= DATA_START)
        if pages and self.rng.random() < 0.85:
            position = self.rng.choice(pages) * PAGE + self.rng.randrange(PAGE)
        else:
            position = self.rng.randrange(DATA_START)
        file.flip(position, self.rng.randrange(8))
        self.world.note("fault", f"a bit of {machine.process.name} {name} at {position} flips")

    def lose_disk(self) -> None:
        """A chunkserver's disk is gone for good; a new, empty one takes its place after a while. Before that, other
        faults pause until all copies are there: the loss of one is survived, not of two."""
        if self.lull_until > self.world.scheduler.time:
            return
        self.lull_until = self.world.scheduler.time + 15.0
        self.heal()
        self._lose_when_whole()

    def _lose_when_whole(self) -> None:
        world, scheduler = self.world, self.world.scheduler
        term = world.term()
        if world.calm or scheduler.time > self.lull_until:
            return
        counts = health.counts(term.core) if term is not None else None
        machine: StorageMachine = self.rng.choice(world.chunkservers)
        whole = counts is not None and counts.total and counts.healthy == counts.total
        if not whole or not machine.process.alive or not replicas_are_whole(world):
            scheduler.later(0.1, self._lose_when_whole)
            return
        self.lull_until = 0.0
        world.note("fault", f"{machine.process.name} loses its disk")
        world.counts["disks lost"] += 1
        world.kill(machine.process, power=True)
        machine.format()
        scheduler.later(self.rng.uniform(1.0, 12.0), lambda: self.restart(machine.process))


def replicas_are_whole(world: World) -> bool:
    """Every group has all its voters running, each with what is committed: the next loss meets full redundancy."""
    hosts = {}
    for machine in world.chunkservers:
        server = machine.server
        if machine.process.alive and server is not None and server.host is not None and not server._status:
            hosts[server.host.node_id] = server.host
    groups = {group for host in hosts.values() for group in host.engine.groups}
    for group in groups:
        leaders = [
            status
            for host in hosts.values()
            if group in host.engine.groups and (status := host.status(group)).role.value == "leader"
        ]
        if len(leaders) != 1 or len(leaders[0].membership.voters) < 3 or leaders[0].membership.outgoing:
            return False
        for node in leaders[0].membership.voters:
            host = hosts.get(node)
            if host is None or group not in host.engine.groups:
                return False
            status = host.status(group)
            if status.corrupt or status.applied < leaders[0].commit:
                return False
    return True
