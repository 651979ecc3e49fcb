"""Up, down and status of a playground.

Everything is level-triggered: `up` starts what does not run, in whatever state the last `up`, `down` or kill -9 left
the directory, and waits until the cluster is healthy; `down` ends whatever of it still runs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from grpc.aio import AioRpcError

from curve_storage.cli.playground import node, state
from curve_storage.cli.playground.layout import (
    DEFAULT_POOL_SIZE,
    LOG_SIZE,
    NODE,
    Layout,
    Program,
    choose_ports,
    find_etcd,
    kind_of,
    names,
)
from curve_storage.cli.playground.processes import (
    MARK,
    Identity,
    Usage,
    alive,
    command_line,
    end,
    holds_open,
    marked,
    send,
    spawn,
    usage,
)
from curve_storage.errors import CurveError, FailedPrecondition, InvalidArgument, NoSpace, NotFound, Unavailable
from curve_storage.proto import mds_pb2, volumehost_pb2, volumehost_pb2_grpc
from curve_storage.rpc.channel import unix_channel
from curve_storage.rpc.errors import from_rpc_error
from curve_storage.rpc.leader import MdsClient
from curve_storage.units import GiB, MiB, format_size

POOL = "default"
MIN_POOL_SIZE = 512 * MiB
POLL = 0.1
DETACH_TIMEOUT = 20.0
WRITE_BACK_TIMEOUT = 60.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PlaygroundOptions:
    """None: as the playground was made, else the default. volumehost None: where root runs it. places: by name of
    process, where it lives; whoever starts the playground must reach those addresses."""

    chunkservers: int | None = None
    pool_size: int | None = None
    volumehost: bool | None = None
    places: Mapping[str, state.Place] | None = None


@dataclass(frozen=True)
class ProcessStatus:
    name: str
    pid: int
    running: bool
    usage: Usage | None
    ports: dict[str, int]
    log: Path


class Playground:
    def __init__(self, directory: Path, progress: Progress = lambda _text: None) -> None:
        self.directory = directory.absolute()
        self._progress = progress
        self._started: set[str] = set()  # by the present `up`

    # ---- what is there

    @property
    def exists(self) -> bool:
        return (self.directory / "state.json").exists()

    def layout(self) -> Layout:
        """Raises NotFound when there is no playground."""
        known = state.load(self.directory)
        if known is None:
            raise NotFound(
                "there is no playground", where=str(self.directory), todo="Start one with `curve playground up`"
            )
        return Layout(self.directory, known)

    def status(self) -> list[ProcessStatus]:
        layout = self.layout()
        found = []
        for name in names(layout.state):
            known = layout.state.identity(name)
            running = alive(known)
            ports = {k.partition(".")[2]: v for k, v in layout.state.ports.items() if k.partition(".")[0] == name}
            found.append(
                ProcessStatus(
                    name,
                    known.pid if known is not None and running else 0,
                    running,
                    usage(known.pid) if known is not None and running else None,
                    ports,
                    layout.logs / f"{name}.log",
                )
            )
        return found

    def identity(self, name: str) -> Identity | None:
        """Of a running process, else None."""
        known = self.layout().state.identity(name)
        return known if alive(known) else None

    def processes(self) -> list[Identity]:
        """Everything that runs for this playground, data processes of volumes included."""
        layout = self.layout()
        found = {known for name in layout.state.processes if (known := layout.state.identity(name)) and alive(known)}
        return sorted(found | set(marked(layout.state.mark)), key=lambda known: known.pid)

    # ---- up

    async def up(self, options: PlaygroundOptions, *, timeout: float = 60.0) -> Layout:
        """Healthy when it returns. Raises NoSpace, NotFound (no etcd), FailedPrecondition (another shape than before),
        Unavailable when it does not become healthy in `timeout` seconds."""
        find_etcd()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot be created: {error.strerror}", where=str(self.directory), todo="Choose another --dir"
            ) from error
        with state.exclusive(self.directory):
            layout = self._prepare(options)
            self._started = set(self.start_missing(layout))
            deadline = time.monotonic() + timeout
            client = MdsClient(layout.mds_addresses, deadline=2.0)
            try:
                await self._until_mds(layout, client, deadline)
                await self._until_pool(layout, client, deadline)
                await self._until_healthy(layout, client, deadline)
            finally:
                await client.close()
            if layout.state.volumehost:
                await self._until_volumehost(layout, deadline)
            layout.client_file.write_text((self.directory / "config" / "client.yaml").read_text())
            return layout

    def start_missing(self, layout: Layout, leave: Collection[str] = ()) -> list[str]:
        """Starts every process that does not run, but those in `leave`; returns their names. Each is noted before the
        next is started."""
        started = []
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CURVE_")}
        environment[MARK] = layout.state.mark
        unnoted = [known for known in marked(layout.state.mark) if known not in self._noted(layout)]
        for program in layout.programs().values():
            if program.name in leave or alive(layout.state.identity(program.name)):
                continue
            twin = next((known for known in unnoted if command_line(known.pid) == program.argv), None)
            if twin is not None:  # an `up` that was interrupted between its start and its note
                layout.state.processes[program.name] = (twin.pid, twin.started)
                continue
            if program.name == "keeper":
                self._clean_dead_mounts(layout)
            self._progress(f"starting {program.name}")
            known = spawn(program.argv, program.log, environment, program.namespace)
            layout.state.processes[program.name] = (known.pid, known.started)
            state.save(self.directory, layout.state)
            started.append(program.name)
        state.save(self.directory, layout.state)
        return started

    def _prepare(self, options: PlaygroundOptions) -> Layout:
        known = state.load(self.directory)
        if known is None:
            count = 3 if options.chunkservers is None else options.chunkservers
            size = DEFAULT_POOL_SIZE if options.pool_size is None else options.pool_size
            _check_shape(count, size)
            wanted = options.volumehost if options.volumehost is not None else os.geteuid() == 0
            places = dict(options.places or {})
            known = state.State(
                mark=state.new_mark(), chunkservers=count, pool_size=size, volumehost=wanted, places=places
            )
            self._check_space(known)
        else:
            self._check_same(known, options)
            if options.volumehost is not None:
                known.volumehost = options.volumehost
            if options.places is not None:
                known.places = dict(options.places)
        layout = Layout(self.directory, known)
        if known.volumehost:
            if os.geteuid() != 0:
                raise FailedPrecondition(
                    "the volume host mounts FUSE and needs root", todo="Run as root, or with --no-volumehost"
                )
            if layout.socket_too_long:
                raise InvalidArgument(
                    "the path is too long for Unix sockets", where=str(self.directory), todo="Choose a shorter --dir"
                )
        running = [name for name in known.processes if alive(known.identity(name))]
        if not running:
            self._end_strays(known)
        choose_ports(known, anew=not running)
        state.save(self.directory, known)
        layout.write()
        return layout

    def _check_same(self, known: state.State, options: PlaygroundOptions) -> None:
        if options.chunkservers is not None and options.chunkservers != known.chunkservers:
            raise FailedPrecondition(
                f"this playground has {known.chunkservers} chunkservers, not {options.chunkservers}",
                where=str(self.directory),
                todo="`curve playground down --delete` first, or choose another --dir",
            )
        if options.pool_size is not None and options.pool_size != known.pool_size:
            raise FailedPrecondition(
                f"its chunkservers have {format_size(known.pool_size)}, not {format_size(options.pool_size)}",
                where=str(self.directory),
                todo="`curve playground down --delete` first, or choose another --dir",
            )

    def _check_space(self, wanted: state.State) -> None:
        """Of the playground's own file system: what is placed elsewhere has a disk of its own."""
        here = sum(1 for n in range(1, wanted.chunkservers + 1) if not wanted.place(f"chunkserver{n}").data)
        most = here * (wanted.pool_size + LOG_SIZE) + GiB // 2
        free = shutil.disk_usage(self.directory).free
        if free < most:
            raise NoSpace(
                f"{here} chunkservers of {format_size(wanted.pool_size)} may grow to "
                f"{format_size(most)} with their logs, {format_size(free)} are free",
                where=str(self.directory),
                todo="Free space, choose a smaller --pool-size, or another --dir",
            )

    def _end_strays(self, known: state.State) -> None:
        """Data processes that outlived everything else: nothing would look after them."""
        strays = marked(known.mark)
        if strays:
            self._progress(f"ending {len(strays)} processes that a crash has left")
            end(strays, patience=1.0)

    def _clean_dead_mounts(self, layout: Layout) -> None:
        """With neither a keeper nor a data process nothing can serve the old mounts again: they only fail, and are in
        the way. Data processes that live go on serving, and give a new keeper their descriptors."""
        root = layout.host_root
        if any(holds_open(known.pid, "/dev/fuse") for known in marked(layout.state.mark)):
            return
        if node.loops_under(root) or node.fuse_mounts(root):
            self._progress("removing mounts that a crash has left")
            host = layout.state.identity("volumehost")
            others = [known for known in marked(layout.state.mark) if known not in self._noted(layout)]
            end([*others, *([host] if host is not None else [])], patience=1.0)
            node.clean(root)

    def _noted(self, layout: Layout) -> set[Identity]:
        return {known for name in layout.state.processes if (known := layout.state.identity(name)) is not None}

    # ---- waiting

    async def _until_mds(self, layout: Layout, client: MdsClient, deadline: float) -> None:
        async def ready() -> str | None:
            await client.admin.GetStatus(mds_pb2.Empty(), timeout=2.0)
            return None

        await self._until("the MDS to elect a leader", layout, deadline, ready)

    async def _until_pool(self, layout: Layout, client: MdsClient, deadline: float) -> None:
        count = layout.state.chunkservers

        async def registered() -> str | None:
            reply = await client.topology.ListChunkServers(mds_pb2.ListChunkServersRequest(), timeout=2.0)
            online = sum(1 for c in reply.chunkservers if c.online == mds_pb2.ONLINE_STATE_ONLINE)
            return None if online >= count else f"{online} of {count} chunkservers are online"

        await self._until("the chunkservers to register", layout, deadline, registered)
        pools = await client.topology.ListPools(mds_pb2.Empty(), timeout=5.0)
        if any(pool.name == POOL and pool.copysets_healthy for pool in pools.pools):
            return

        async def created() -> str | None:
            request = mds_pb2.CreatePoolRequest(
                name=POOL, physical_pool="default", replicas=min(3, count), zones=min(3, count)
            )
            await client.topology.CreatePool(request, timeout=max(2.0, min(20.0, deadline - time.monotonic())))
            return None

        await self._until("the pool to be created", layout, deadline, created)

    async def _until_healthy(self, layout: Layout, client: MdsClient, deadline: float) -> None:
        async def healthy() -> str | None:
            reply = await client.admin.GetStatus(mds_pb2.Empty(), timeout=2.0)
            if reply.health == "healthy":
                return None
            return "; ".join(reason.message for reason in reply.reasons) or str(reply.health)

        await self._until("the cluster to be healthy", layout, deadline, healthy)

    async def _until_volumehost(self, layout: Layout, deadline: float) -> None:
        async def answers() -> str | None:
            async with unix_channel(layout.host_socket) as channel:
                stub = volumehost_pb2_grpc.VolumeHostStub(channel)
                try:
                    await stub.Info(volumehost_pb2.InfoRequest(), timeout=2.0)
                except AioRpcError as error:
                    raise from_rpc_error(error, where=str(layout.host_socket)) from None
            return None

        await self._until("the volume host", layout, deadline, answers)

    async def _until(
        self, what: str, layout: Layout, deadline: float, check: Callable[[], Awaitable[str | None]]
    ) -> None:
        """Repeats `check` until it returns None; a CurveError, or the sentence it returns, is the reason shown."""
        self._progress(f"waiting for {what}")
        shown = ""
        while True:
            try:
                reason = await check()
            except CurveError as error:
                reason = str(error)
            if reason is None:
                return
            dead = [p for p in layout.programs().values() if not alive(layout.state.identity(p.name))]
            if dead and dead[0].name not in self._started:  # it was dying of an earlier kill when `up` found it alive
                self._started |= set(self.start_missing(layout))
                continue
            if dead:
                raise self._ended(dead[0])
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"waited in vain for {what}: {reason}",
                    where=str(self.directory),
                    todo="See `curve playground logs`; `curve playground up` goes on waiting",
                )
            if reason[:40] != shown:
                shown = reason[:40]
                self._progress(f"waiting for {what}: {reason[:100]}")
            await asyncio.sleep(POLL)

    def _ended(self, program: Program) -> Unavailable:
        return Unavailable(
            f"{program.name} has ended; the last it logged:\n{last_lines(program.log)}\n",
            where=str(self.directory),
            todo=f"Correct what it says and run `curve playground up` again; all of it: {program.log}",
        )

    # ---- down

    async def down(self, *, delete: bool = False) -> list[str]:
        """Detaches volumes and ends everything; with `delete` removes the data too. Returns what could not be cleaned.

        Never hangs on a broken cluster: what cannot be written back in time is given up, as by a power cut."""
        if not self.exists:
            if delete and self.directory.is_dir():
                self._delete()
            return []
        with state.exclusive(self.directory):
            layout = self.layout()
            problems = []
            if node.mounts_of_devices(layout.host_root):
                self._progress("unmounting file systems on volumes")
                whole = all(alive(layout.state.identity(name)) for name in names(layout.state))
                timeout = WRITE_BACK_TIMEOUT if whole else 5.0
                problems += await asyncio.to_thread(node.unmount_filesystems, layout.host_root, timeout=timeout)
            problems += await self._detach_all(layout)
            self._progress("ending processes")
            problems += self._end_all(layout)
            problems += node.clean(layout.host_root)
            layout.state.processes.clear()
            state.save(self.directory, layout.state)
            layout.client_file.unlink(missing_ok=True)
            if delete and not (node.fuse_mounts(layout.host_root) or node.loops_under(layout.host_root)):
                self._progress("deleting data")
                self._delete()
            return problems

    async def _detach_all(self, layout: Layout) -> list[str]:
        if not alive(layout.state.identity("volumehost")):
            return []
        problems = []
        client = MdsClient(layout.mds_addresses, deadline=3.0)
        try:
            async with unix_channel(layout.host_socket) as channel:
                host = volumehost_pb2_grpc.VolumeHostStub(channel)
                try:
                    attached = (await host.List(volumehost_pb2.ListRequest(), timeout=5.0)).attachments
                except AioRpcError as error:
                    return [str(from_rpc_error(error, where="volume host"))]
                for one in attached:
                    self._progress(f"detaching {one.path}")
                    try:
                        request = volumehost_pb2.DetachRequest(volume_id=one.volume_id, force=True)
                        await host.Detach(request, timeout=DETACH_TIMEOUT)
                        release = mds_pb2.ReleaseVolumeRequest(volume=mds_pb2.VolumeRef(id=one.volume_id), node=NODE)
                        await client.namespace.ReleaseVolume(release, timeout=3.0)
                    except AioRpcError as error:
                        problems.append(f"{one.path}: {from_rpc_error(error, where='volume host')}")
                    except CurveError as error:
                        problems.append(f"{one.path}: {error}")
        finally:
            await client.close()
        return problems

    def _end_all(self, layout: Layout) -> list[str]:
        """In the reverse order of starting: nothing loses what it depends on before it has ended itself."""
        noted = self._noted(layout)
        data = [known for known in marked(layout.state.mark) if known not in noted]
        left: list[Identity] = []
        host = layout.state.identity("volumehost")
        if host is not None:
            left += end([host])  # first: it would replace the data processes
        left += end(data)
        kinds: dict[str, list[Identity]] = {}
        for name in layout.state.processes:
            known = layout.state.identity(name)
            if known is not None:
                kinds.setdefault(kind_of(name), []).append(known)
        for kind in ("keeper", "chunkserver", "mds", "etcd"):
            left += end(kinds.get(kind, []))
        left += end(marked(layout.state.mark))
        return [f"process {known.pid} does not end" for known in left if alive(known)]

    def kill_all(self, number: int = signal.SIGKILL) -> int:
        """A signal to everything at once, for tests of crashes; returns how many got it."""
        return sum(send(known, number) for known in self.processes())

    def _delete(self) -> None:
        for entry in sorted(self.directory.iterdir()):
            if entry.name == "lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _check_shape(chunkservers: int, pool_size: int) -> None:
    if not 1 <= chunkservers <= 32:
        raise InvalidArgument(f"{chunkservers} chunkservers", todo="Choose 1 to 32; 3 replicas need at least 3")
    if pool_size < MIN_POOL_SIZE:
        raise InvalidArgument(
            f"a pool of {format_size(pool_size)} is too small", todo=f"Use at least {format_size(MIN_POOL_SIZE)}"
        )


def last_lines(log: Path, count: int = 3) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line[:500] for line in lines[-count:])
