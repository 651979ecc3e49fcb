"""Each fault of the plan done to the world, held, and cured."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field

from curve_storage.cli.playground.processes import Identity, alive, send
from curve_storage.errors import CurveError, Unavailable
from curve_storage.units import parse_size
from e2e.chaos import network
from e2e.chaos.plan import Action, Domain, Fault
from e2e.chaos.world import CHUNKSERVERS, METADATA, World

# Seconds. Far above what a quiet machine needs: on one that is busy with other things all of it takes its time.
_GATE = 300.0  # for what an earlier fault left to recover
_RESTORE = 300.0
_EXIT = 120.0  # for a chunkserver whose disk fails to notice it
_COMMAND = 300.0


@dataclass
class Outcome:
    """started, cured, restored: monotonic seconds; the last is when the fault's domain was whole again."""

    fault: Fault
    started: float = 0.0
    cured: float = 0.0
    restored: float = 0.0
    notes: list[str] = field(default_factory=list)
    skipped: str = ""
    problem: str = ""
    waits: dict[str, float] = field(default_factory=dict)


class Faults:
    """Does faults one after the other in each domain, at the same time in different ones."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._locks = {domain: asyncio.Lock() for domain in Domain}
        self._ready = {
            Domain.REPLICAS: world.replicas_ready,
            Domain.METADATA: world.metadata_ready,
            Domain.NODE: world.node_ready,
        }

    async def do(self, fault: Fault, deadline: float) -> Outcome:
        """Never raises CurveError: what went wrong is in the outcome. A fault that had to wait for earlier ones until
        `deadline` (monotonic) is skipped."""
        outcome = Outcome(fault)
        held = [self._locks[domain] for domain in Domain if domain in fault.kind.domains]
        for lock in held:
            await lock.acquire()
        try:
            if time.monotonic() > deadline:
                outcome.skipped = "the run's time is over"
                return outcome
            try:
                await self._whole(fault, _GATE)
            except CurveError as error:
                outcome.skipped = str(error)
                return outcome
            outcome.started = time.monotonic()
            try:
                await self._act(fault, outcome)
            except CurveError as error:
                outcome.problem = str(error)
            outcome.cured = outcome.cured or time.monotonic()
            try:
                await self._whole(fault, _RESTORE)
            except CurveError as error:
                outcome.problem = outcome.problem or f"not restored: {error}"
            outcome.restored = time.monotonic()
        finally:
            for lock in held:
                lock.release()
        return outcome

    async def _whole(self, fault: Fault, seconds: float) -> None:
        for domain in Domain:
            if domain in fault.kind.domains:
                await self._world.until(domain.value, seconds, self._ready[domain])

    async def _act(self, fault: Fault, outcome: Outcome) -> None:
        world, target, action = self._world, fault.target, fault.kind.action
        match action:
            case Action.KILL:
                await self._kill((target,), fault, outcome)
            case Action.KILL_ALL:
                names = {"chunkservers": CHUNKSERVERS, "metadata": METADATA, "cluster": (*METADATA, *CHUNKSERVERS)}
                await self._kill(names[target], fault, outcome)
            case Action.STOP:
                known = world.process(target)
                send(known, signal.SIGSTOP)
                await asyncio.sleep(fault.seconds)
                send(known, signal.SIGCONT)
            case Action.CUT | Action.CUT_INCOMING | Action.CUT_OUTGOING | Action.LOSE_PACKETS | Action.SLOW_CABLE:
                await self._cable(fault)
            case Action.DISK_FULL:
                disks = list(world.disks.values()) if target == "chunkservers" else [world.disks[target]]
                taken = [await asyncio.to_thread(disk.fill) for disk in disks]
                outcome.notes.append(f"{sum(taken) >> 20} MiB of ballast")
                await asyncio.sleep(fault.seconds)
                for disk in disks:
                    await asyncio.to_thread(disk.free)
            case Action.DISK_SLOW:
                delay = 5 + round(fault.strength * 195)
                outcome.notes.append(f"{delay} ms")
                await asyncio.to_thread(world.disks[target].tell, f"slow {delay}")
                await asyncio.sleep(fault.seconds)
                await asyncio.to_thread(world.disks[target].tell, "ok")
            case Action.DISK_EIO_WRITE | Action.DISK_EIO_SYNC | Action.DISK_EIO_READ:
                await self._eio(fault, outcome)
            case Action.KILL_DATA_PROCESS:
                known = await world.data_process(target)
                send(known, signal.SIGKILL)
                outcome.cured = time.monotonic()
                await self._replaced(target, known)
            case Action.STOP_DATA_PROCESS:
                known = await world.data_process(target)
                send(known, signal.SIGSTOP)
                await asyncio.sleep(fault.seconds)
                outcome.notes.append("not replaced meanwhile" if alive(known) else "replaced meanwhile")
                send(known, signal.SIGCONT)
            case Action.KILL_HOST_AND_DATA:
                known = await world.data_process(target)
                async with world.hold("volumehost"):
                    world.signal(("volumehost",), signal.SIGKILL)
                    send(known, signal.SIGKILL)
                    await asyncio.sleep(fault.seconds)
                outcome.cured = time.monotonic()
                await self._replaced(target, known)
            case Action.UPGRADE:
                await self._repeat(outcome, "volume", "upgrade", target)
            case Action.EXTEND:
                await self._extend(target, outcome)

    async def _kill(self, names: tuple[str, ...], fault: Fault, outcome: Outcome) -> None:
        async with self._world.hold(*names):
            self._world.signal(names, signal.SIGKILL)
            await asyncio.sleep(fault.seconds)
        outcome.cured = time.monotonic()

        async def running() -> str | None:
            missing = [name for name in names if not alive(self._world.layout.state.identity(name))]
            return f"{', '.join(missing)} not started" if missing else None

        await self._world.until("the restart", _RESTORE, running)

    async def _replaced(self, volume: str, old: Identity) -> None:
        async def another() -> str | None:
            return None if await self._world.data_process(volume) != old else f"{volume}: still the old data process"

        await self._world.until("the replacement", _RESTORE, another)

    async def _cable(self, fault: Fault) -> None:
        seat = self._world.seats[fault.target]
        match fault.kind.action:
            case Action.CUT:
                network.pull(seat)
            case Action.CUT_INCOMING:
                network.drop(seat, incoming=True, outgoing=False)
            case Action.CUT_OUTGOING:
                network.drop(seat, incoming=False, outgoing=True)
            case Action.LOSE_PACKETS:
                network.drop(seat, incoming=True, outgoing=True, percent=2 + round(fault.strength * 18))
            case _:
                network.slow(seat, 2000 + round(fault.strength * 8000))
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            network.heal(seat)

    async def _eio(self, fault: Fault, outcome: Outcome) -> None:
        """The disk fails for a while. A chunkserver whose disk has failed it must end; it is started again when the
        disk has been checked, and must be whole then with what the log and the others have."""
        world, name = self._world, fault.target
        disk = world.disks[name]
        operation = {Action.DISK_EIO_WRITE: "write", Action.DISK_EIO_SYNC: "sync"}.get(fault.kind.action, "read")
        fraction = 1.0 if operation == "sync" else 0.1 + 0.9 * fault.strength
        async with world.hold(name):
            before = await asyncio.to_thread(disk.tell, "failed")
            if operation == "read":
                await asyncio.to_thread(disk.forget_cache)
            await asyncio.to_thread(disk.tell, f"eio {fraction:.2f} {operation}")
            await asyncio.sleep(fault.seconds)
            after = await asyncio.to_thread(disk.tell, "failed")
            hurt = sum(after.values()) - sum(before.values())
            outcome.notes.append(f"{hurt} operations failed")
            if operation != "read" and hurt and not await world.gone(name, _EXIT):
                outcome.problem = f"{name} goes on after its disk failed to {operation}"
            elif not alive(world.layout.state.identity(name)):
                outcome.notes.append("the chunkserver ended")
            world.signal((name,), signal.SIGKILL)
            if not await world.gone(name, _EXIT):
                raise Unavailable("does not end", where=name)
            outcome.notes.append(f"file system {await asyncio.to_thread(disk.repair)}")

    async def _extend(self, target: str, outcome: Outcome) -> None:
        world = self._world
        size = next(one.size for one in await world.attachments() if one.path == target)
        wanted = size + parse_size("1Gi")
        await self._repeat(outcome, "volume", "extend", target, "--size", str(wanted))

        async def larger() -> str | None:
            sizes = {one.path: one.size for one in await world.attachments()}
            return None if sizes.get(target) == wanted else f"{target} has {sizes.get(target)} bytes, not {wanted}"

        await world.until("the device to grow", _COMMAND, larger)

    async def _repeat(self, outcome: Outcome, *arguments: str) -> None:
        """A command is refused while what it needs is out by another fault: then it is given again."""
        deadline = time.monotonic() + _COMMAND
        attempts = 0
        while True:
            attempts += 1
            try:
                await self._world.curve(*arguments)
                break
            except CurveError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.5)
        if attempts > 1:
            outcome.notes.append(f"done at attempt {attempts}")
