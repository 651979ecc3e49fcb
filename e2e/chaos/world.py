"""What the run has in its hands: namespaces, disks, the playground, and a supervisor that restarts what ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from grpc.aio import AioRpcError

from curve_storage.cli.playground import Place, Playground, PlaygroundOptions
from curve_storage.cli.playground.cluster import last_lines
from curve_storage.cli.playground.layout import Layout
from curve_storage.cli.playground.processes import Identity, alive, identity, send
from curve_storage.errors import CurveError, Unavailable
from curve_storage.proto import mds_pb2, volumehost_pb2, volumehost_pb2_grpc
from curve_storage.rpc.channel import unix_channel
from curve_storage.rpc.errors import from_rpc_error
from curve_storage.rpc.leader import MdsClient
from curve_storage.units import GiB
from curve_storage.volumehost import packet
from e2e.chaos import network
from e2e.chaos.disks import SIZE, Disk

CHUNKSERVERS = ("chunkserver1", "chunkserver2", "chunkserver3")
METADATA = ("etcd", "mds1", "mds2", "mds3")
NODE_PROCESSES = ("keeper", "volumehost")
POOL_SIZE = 16 * GiB
_RESTART = 0.5  # between looks of the supervisor
_UP = 240.0
_READY = 2.0

Say = Callable[[str], None]


class World:
    """held: names of processes that a fault keeps down for now. unexpected: a sentence for each process that has ended
    although no fault ended it."""

    def __init__(self, directory: Path, seed: int, say: Say) -> None:
        self.directory = directory
        self.say = say
        self.playground = Playground(directory / "pg", lambda text: say(f"  {text}"))
        self.disks = {
            name: Disk(name, directory / "disks" / name, SIZE, seed + n) for n, name in enumerate(CHUNKSERVERS)
        }
        self.held: set[str] = set()
        self.unexpected: list[str] = []
        self._expected: set[str] = set()
        self.seats: dict[str, network.Seat] = {}
        self.layout: Layout
        self.mds: MdsClient
        self._supervisor: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    # ---- up and down

    async def up(self) -> None:
        """Healthy when it returns; the process must be in network and mount namespaces of its own."""
        network.create_hub()
        names = [*METADATA, *CHUNKSERVERS, "node"]
        self.seats = network.create_seats(names, self.directory / "net")
        for disk in self.disks.values():
            await asyncio.to_thread(disk.create)
        places = {name: self._place(name) for name in (*METADATA, *CHUNKSERVERS, *NODE_PROCESSES)}
        options = PlaygroundOptions(chunkservers=len(CHUNKSERVERS), pool_size=POOL_SIZE, volumehost=True, places=places)
        self.layout = await self.playground.up(options, timeout=_UP)
        self.mds = MdsClient(self.layout.mds_addresses, deadline=5.0)
        self._supervisor = asyncio.create_task(self._supervise())

    def _place(self, name: str) -> Place:
        seat = self.seats["node" if name in NODE_PROCESSES else name]
        data = str(self.disks[name].data) if name in self.disks else ""
        return Place(address=seat.address, namespace=str(seat.file), data=data)

    async def down(self) -> list[str]:
        problems = []
        await self.stop_supervisor()
        for seat in self.seats.values():
            with contextlib.suppress(CurveError):
                network.heal(seat)
        if hasattr(self, "mds"):
            await self.mds.close()
        if self.playground.exists:
            for known in self.playground.processes():
                send(known, signal.SIGCONT)
            problems += await self.playground.down()
        for disk in self.disks.values():
            problems += await asyncio.to_thread(disk.remove)
        for seat in self.seats.values():
            try:
                network.remove(seat)
            except CurveError as error:
                problems.append(str(error))
        return problems

    async def stop_supervisor(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None

    # ---- processes

    async def _supervise(self) -> None:
        """As systemd or a kubelet would: what has ended is started again, unless a fault holds it down."""
        while True:
            await asyncio.sleep(_RESTART)
            try:
                await self._start_missing()
            except CurveError as error:
                self.say(f"  not started: {error}")

    async def _start_missing(self) -> None:
        async with self._starting:
            started = await asyncio.to_thread(self.playground.start_missing, self.layout, frozenset(self.held))
        for name in started:
            if name in self._expected:
                self._expected.discard(name)
            else:
                lines = last_lines(self.layout.logs / f"{name}.log", 5)
                self.unexpected.append(f"{name} has ended by itself; the end of its log:\n{lines}")
                self.say(self.unexpected[-1])

    @contextlib.asynccontextmanager
    async def hold(self, *names: str) -> AsyncIterator[None]:
        """The supervisor leaves these alone; that they end is expected."""
        async with self._starting:
            self.held.update(names)
            self._expected.update(names)
        try:
            yield
        finally:
            self.held.difference_update(names)

    def process(self, name: str) -> Identity:
        """Raises Unavailable when it does not run."""
        known = self.layout.state.identity(name)
        if known is None or not alive(known):
            raise Unavailable("does not run", where=name)
        return known

    def signal(self, names: tuple[str, ...], number: int) -> None:
        for name in names:
            known = self.layout.state.identity(name)
            if known is not None:
                send(known, number)

    async def gone(self, name: str, seconds: float) -> bool:
        """Whether the process ends within `seconds`."""
        deadline = time.monotonic() + seconds
        while alive(self.layout.state.identity(name)):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    # ---- health

    async def until(self, what: str, seconds: float, check: Callable[[], Awaitable[str | None]]) -> None:
        """Until `check` gives None; Unavailable with the last reason after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                reason = await check()
            except CurveError as error:
                reason = str(error)
            if reason is None:
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"{what}: not within {seconds:.0f} s: {reason}")
            await asyncio.sleep(0.1)

    async def replicas_ready(self) -> str | None:
        """None when all chunkservers serve; else which does not, and why."""
        for name in CHUNKSERVERS:
            url = f"http://{self.layout.address(f'{name}.http')}/readyz"
            try:
                status = await asyncio.to_thread(_status, url)
            except OSError as error:
                return f"{name}: {error}"
            if status != 200:
                return f"{name}: not ready ({status})"
        return None

    async def metadata_ready(self) -> str | None:
        status = await self.mds.admin.GetStatus(mds_pb2.Empty(), timeout=_READY)
        return None if status.health != "unavailable" else "; ".join(reason.message for reason in status.reasons)

    async def node_ready(self) -> str | None:
        """None when the host answers, all volumes have a process, and the keeper the descriptors it must keep."""
        kept = await asyncio.to_thread(_kept, self.layout.host_root / "keeper.sock")
        if kept is None:
            return "the keeper does not answer"
        for one in await self.attachments():
            if not one.pid or one.health in (volumehost_pb2.HEALTH_FAILED, volumehost_pb2.HEALTH_FENCED):
                return f"{one.path}: {one.message or 'no data process'}"
            if one.backend == volumehost_pb2.BACKEND_LOOP and f"volume-{one.volume_id}" not in kept:
                return f"{one.path}: the keeper has not got its descriptor"
        return None

    async def healthy(self) -> str | None:
        status = await self.mds.admin.GetStatus(mds_pb2.Empty(), timeout=_READY)
        if status.health != "healthy":
            return "; ".join(reason.message for reason in status.reasons) or str(status.health)
        return await self.replicas_ready() or await self.node_ready()

    async def attachments(self) -> list[volumehost_pb2.Attachment]:
        async with unix_channel(self.layout.host_socket) as channel:
            stub = volumehost_pb2_grpc.VolumeHostStub(channel)
            try:
                return list((await stub.List(volumehost_pb2.ListRequest(), timeout=_READY)).attachments)
            except AioRpcError as error:
                raise from_rpc_error(error, where="volume host") from None

    async def data_process(self, volume: str) -> Identity:
        for one in await self.attachments():
            if one.path == volume and one.pid:
                known = identity(one.pid)
                if known is not None:
                    return known
        raise Unavailable("has no data process", where=volume)

    # ---- commands

    async def curve(self, *arguments: str, timeout: float = 150.0) -> str:
        """Standard output of the `curve` command. Raises Unavailable with its error."""
        return await asyncio.to_thread(self._curve, arguments, timeout)

    def _curve(self, arguments: tuple[str, ...], timeout: float) -> str:
        environment = {
            **os.environ,
            "CURVE_CLIENT_CONFIG": str(self.playground.directory / "config" / "client.yaml"),
            "CURVE_VOLUMEHOST": str(self.layout.host_socket),
        }
        command = [sys.executable, "-m", "curve_storage.cli.main", *arguments]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"not done in {timeout:.0f} s", where=f"curve {' '.join(arguments)}") from None
        if done.returncode:
            raise Unavailable((done.stderr + done.stdout).strip()[-500:], where=f"curve {' '.join(arguments)}")
        return done.stdout


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=_READY) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _kept(path: Path) -> list[str] | None:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(_READY)
            connection.connect(str(path))
            packet.send(connection, {"version": packet.VERSION, "op": "list"})
            received = packet.receive(connection)
            return list(received[0]["names"]) if received is not None else None
    except (OSError, ValueError, KeyError):
        return None
