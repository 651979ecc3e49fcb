"""Where the product touches the machine: clocks, randomness, threads, files, sockets. For the length of a simulation
these names lead to the simulated ones; everything else in the product runs as it is.
"""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import random
import secrets
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import structlog
from cluster_disk import MOUNTS, SimOs
from cluster_loop import Process, ProcessLoop, SimExecutor
from cluster_rpc import SimChannel, SimGrpcServer
from grpc import aio

from curve_storage.chunkserver.chunk_file import Handle
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.consensus.log import Batch
from curve_storage.errors import CurveError, DiskFailed
from curve_storage.wire.token import Keyring

_P = "curve_storage"
_OS = (
    "consensus.disk", "consensus.incarnation", "consensus.log", "chunkserver.atomic_file",
    "chunkserver.chunk_directory", "chunkserver.chunk_file", "chunkserver.copyset", "chunkserver.copysets",
    "chunkserver.identity", "chunkserver.pool", "chunkserver.scrub", "chunkserver.snapshot", "chunkserver.daemon",
)  # fmt: skip
_TIME = ("chunkserver.pool", "chunkserver.copysets", "chunkserver.heartbeat")
_OTHERS = ("consensus.host", "mds.daemon", "rpc.leader", "coordination.etcd")
_PACKAGES = ("chunkserver", "client", "consensus", "coordination", "mds", "rpc", "wire")


class SimSync:
    """The thread that writes log batches: one at a time, each after as long as the disk takes."""

    def __init__(self, finished: Callable[[Batch, CurveError | None, float], None]) -> None:
        self._finished = finished

    def start(self) -> None:
        assert Process.running is not None and Process.running.loop is not None
        self._loop: ProcessLoop = Process.running.loop

    def submit(self, batch: Batch) -> None:
        delay = self._loop.process.disk_delay()

        def write() -> None:
            error: CurveError | None = None
            try:
                batch.write()
            except DiskFailed as failed:
                error = failed
            # The disk is done; the loop hears of it later.
            self._loop.later(self._loop.process.rng.uniform(0, 1e-3), lambda: self._finished(batch, error, delay))

        self._loop.later(delay, write)

    def stop(self) -> None:
        pass


def start_pool(pool: ChunkPool) -> None:
    """The pool's worker, as steps of the event loop."""
    process = Process.running
    assert process is not None and process.loop is not None
    loop = process.loop

    def work() -> None:
        if not pool._stopping:
            busy = pool._try_step()
            loop.later(process.disk_delay() if busy else 0.1, work)

    loop.later(process.disk_delay(), work)


class SimHandle(Handle):
    """Outlives its disk."""

    __slots__ = ()

    def __del__(self) -> None:
        process = Process.running
        if process is not None and process.name in MOUNTS:
            MOUNTS[process.name].handles.pop(getattr(self, "fd", -1), None)


class SimHttp:
    def __init__(self, *_: Any) -> None:
        pass

    async def start(self) -> int:
        return 0

    async def stop(self) -> None:
        pass


class _Random:
    """The module `random`, from one seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def Random(self, seed: Any = None) -> random.Random:
        return random.Random(self._rng.getrandbits(64) if seed is None else seed)

    SystemRandom = Random

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rng, name)


class _Time:
    """The module `time`, of the running process."""

    def monotonic(self) -> float:
        assert Process.running is not None
        return Process.running.monotonic()

    def time(self) -> float:
        assert Process.running is not None
        return Process.running.wall()

    def perf_counter(self) -> float:
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing may block in the simulation")


class _Wrapped:
    """A module with some names replaced."""

    def __init__(self, module: Any, **names: Any) -> None:
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextmanager
def simulated(world: Any) -> Iterator[None]:
    """The product on the simulated machines of `world`."""
    undo: list[tuple[Any, str, Any]] = []

    def put(target: Any, name: str, value: Any) -> None:
        undo.append((target, name, target.__dict__[name]))
        setattr(target, name, value)

    for package in _PACKAGES:
        for found in pkgutil.iter_modules(importlib.import_module(f"{_P}.{package}").__path__, f"{_P}.{package}."):
            if not found.name.endswith(".main"):
                importlib.import_module(found.name)
    modules = {name: importlib.import_module(f"{_P}.{name}") for name in (*_OS, *_TIME, *_OTHERS)}
    rng = world.rng
    sim_os, sim_time, sim_random = SimOs(rng), _Time(), _Random(rng)
    sim_secrets = SimpleNamespace(
        token_hex=lambda size: rng.randbytes(size).hex(), token_bytes=lambda size: rng.randbytes(size)
    )
    for name in _OS:
        if "os" in modules[name].__dict__:
            put(modules[name], "os", sim_os)
    for name in _TIME:
        put(modules[name], "time", sim_time)
    for name, module in list(sys.modules.items()):
        if name.startswith(_P + "."):
            for attribute, value in list(module.__dict__.items()):
                if value is random:
                    put(module, attribute, sim_random)
                elif value is secrets:
                    put(module, attribute, sim_secrets)
    clock_users = modules["consensus.host"], modules["chunkserver.daemon"]
    for module in clock_users:
        put(module, "ThreadPoolExecutor", SimExecutor)
    put(modules["consensus.host"], "SyncThread", SimSync)
    for name in ("chunkserver.chunk_file", "chunkserver.snapshot"):
        put(modules[name], "Handle", SimHandle)
    put(ChunkPool, "start", start_pool)
    put(ChunkPool, "_write_ahead", lambda pool, path: None)
    put(Keyring, "load", classmethod(lambda cls, path, clock=None: cls("k1", {"k1": b"k" * 32}, clock)))
    identity = modules["chunkserver.identity"]
    put(identity, "fcntl", SimpleNamespace(flock=lambda *_: None, LOCK_EX=2, LOCK_NB=4))
    put(identity, "uuid_module", SimpleNamespace(uuid4=lambda: uuid.UUID(bytes=rng.randbytes(16), version=4)))
    registry = SimpleNamespace(register=lambda _: None, unregister=lambda _: None)
    for daemon in (modules["chunkserver.daemon"], modules["mds.daemon"]):
        put(daemon, "HttpEndpoint", SimHttp)
        put(daemon, "metrics", SimpleNamespace(registry=lambda: registry))
    put(modules["mds.daemon"], "make_server", SimGrpcServer)
    put(modules["mds.daemon"], "listen", lambda server, address, tls: server.listen(address))
    put(modules["rpc.leader"], "tcp_channel", SimChannel)
    put(modules["coordination.etcd"], "aio", _Wrapped(aio, insecure_channel=SimChannel))
    before = structlog.get_config()

    def trace(_logger: Any, method: str, event: dict[str, Any]) -> Any:
        process = Process.running
        fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("event", "source"))
        world.note(process.name if process else "-", f"{event.get('source')}: {event['event']} {fields}", method)
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.processors.format_exc_info, trace],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=None, finalizer=lambda _: None)  # those of killed processes are never closed
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*hooks)
        asyncio._set_running_loop(None)
        for target, name, value in reversed(undo):
            setattr(target, name, value)
        structlog.configure(**before)
