"""A chunkserver assembled: identity, pool, consensus host, copysets, data port, MDS.

Start: lock and identity, pool (formatting goes on in the background), data port bound, registration (a disk that is
registered already serves at once and tells its address meanwhile), log replay, copysets, heartbeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from curve_storage.chunkserver import identity as identity_file
from curve_storage.chunkserver.addresses import FILE as ADDRESSES
from curve_storage.chunkserver.addresses import AddressBook
from curve_storage.chunkserver.chunk_directory import OpenFiles
from curve_storage.chunkserver.cluster_token import ClusterToken
from curve_storage.chunkserver.config import ChunkServerConfig
from curve_storage.chunkserver.copyset import Surroundings
from curve_storage.chunkserver.copysets import Copysets
from curve_storage.chunkserver.disk_state import DiskMonitor
from curve_storage.chunkserver.gauges import ChunkServerGauges
from curve_storage.chunkserver.heartbeat import Heartbeat
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.chunkserver.registration import register
from curve_storage.chunkserver.repair import RemoteReplicas, Repairer
from curve_storage.chunkserver.scrub import Scrubber
from curve_storage.chunkserver.service import ChunkService
from curve_storage.chunkserver.statistics import Statistics
from curve_storage.clock import Clock, SystemClock
from curve_storage.consensus.api import Role
from curve_storage.consensus.config import ConsensusConfig, LogConfig, timing
from curve_storage.consensus.host import Host
from curve_storage.errors import CurveError, FailedPrecondition
from curve_storage.rpc.leader import MdsClient
from curve_storage.telemetry import logs, metrics
from curve_storage.telemetry.http import HttpEndpoint
from curve_storage.units import CHUNK_SIZE
from curve_storage.wire.channel import ChannelPool, split_address
from curve_storage.wire.server import Server
from curve_storage.wire.token import Keyring, TokenVerifier

_IO_THREADS = 4
_POLL = 0.02

log = logs.get("daemon")


class ChunkServer:
    """start, then wait for `failure` or a signal, then stop. on_failed: the disk cannot be trusted any more; called
    on the event loop, once."""

    def __init__(
        self,
        config: ChunkServerConfig,
        *,
        clock: Clock | None = None,
        on_failed: Callable[[CurveError], None] | None = None,
    ) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.failure: CurveError | None = None
        self.address = ""
        self.http_port = 0
        self._on_failed = on_failed
        self._status = "starting"
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = contextlib.AsyncExitStack()
        self.host: Host | None = None
        self.service: ChunkService | None = None
        self.heartbeat: Heartbeat | None = None
        self._stopping = False

    # ---- start

    async def start(self) -> None:
        """Raises CurveError: a foreign or used directory, a refused registration, an address in use …"""
        config = self.config
        self._loop = asyncio.get_running_loop()
        lock = identity_file.lock(config.data)
        self._closing.callback(os.close, lock)
        self.identity = identity_file.load(config.data)
        http_host, http_port = split_address(config.http)
        http = HttpEndpoint(http_host, http_port, metrics.registry(), self._health, self._readiness)
        self.http_port = await http.start()
        self._closing.push_async_callback(http.stop)
        self._open_disk()
        await self._open_network()
        if not self.identity.registered:
            self._status = "waiting for the MDS to register this disk"
            self.identity = await self._register(None)
            self._serve()
        else:
            self._serve()
            self._start(self._register_again())
        await self._run()

    def _open_disk(self) -> None:
        config = self.config
        self.pool = ChunkPool(config.data / "pool", config.pool, self._failed_in_thread, log_size=config.log.max_size)
        self.disk = DiskMonitor(config.data, self.pool, self._failed)
        io = ThreadPoolExecutor(_IO_THREADS, thread_name_prefix="io")
        self._closing.callback(io.shutdown, wait=True, cancel_futures=True)
        around = Surroundings(self.pool, OpenFiles(config.open_chunks), io, self.disk, self.disk.failed)
        self.copysets = Copysets(config.data, around, trash_retention=config.trash_retention)
        self.pool.scan(self.copysets.count_chunk_files())
        self.pool.start()
        self._closing.callback(self.pool.stop)

    async def _open_network(self) -> None:
        config = self.config
        keyring = Keyring.load(config.keyring) if config.keyring is not None else None
        self.server = Server(
            verifier=TokenVerifier(keyring, self.clock) if keyring is not None else None,
            tls=config.tls,
            max_inflight=config.max_inflight,
        )
        self.server.not_ready = "the chunkserver is starting"
        host, port = split_address(config.listen)
        bound = await self.server.start(host, port)
        self._closing.push_async_callback(self.server.stop)
        self.address = config.advertise or f"{_reachable(host)}:{bound}"
        self.channels = ChannelPool(
            token=ClusterToken(keyring, self.clock) if keyring is not None else None,
            client=f"chunkserver {self.address}",
            tls=config.tls,
        )
        self._closing.push_async_callback(self.channels.close)
        self.mds = MdsClient(config.mds, tls=config.tls)
        self._closing.push_async_callback(self.mds.close)

    def _serve(self) -> None:
        """Everything that needs the id. No await: requests find either no route or all of them."""
        config = self.config
        node = self.identity.chunkserver_id
        self.book = AddressBook(config.data / ADDRESSES)
        self.host = Host(
            node,
            config.data / "log",
            self.server,
            self.channels,
            self.book,
            clock=self.clock,
            rng=random.Random(),
            config=ConsensusConfig(
                raft=timing(config.election_timeout_ms / 1000),
                log=LogConfig(segment_size=config.log.segment_size, max_size=config.log.max_size),
            ),
            on_fatal=self.disk.failed,
        )
        self.statistics = Statistics()
        self.repairer = Repairer(node, RemoteReplicas(self.channels, self.book))
        self.service = ChunkService(self.host, self.copysets, self.pool, self.disk, self.repairer, self.statistics)
        self.service.register(self.server)
        self.server.not_ready = ""
        self._closing.push_async_callback(self.service.stop)

    async def _run(self) -> None:
        config = self.config
        assert self.host is not None
        assert self.service is not None
        self._status = "replaying the log"
        await self.host.start()
        self._closing.push_async_callback(self.host.stop)
        await self.copysets.load(self.host)
        self.service.loading = False
        gauges = ChunkServerGauges(self.host, self.copysets, self.pool, self.disk)
        metrics.registry().register(gauges)
        self._closing.callback(metrics.registry().unregister, gauges)
        self.heartbeat = Heartbeat(
            self.mds, self.identity, self.address, self.host, self.copysets, self.pool, self.disk, self.book,
            self.statistics, self.clock, interval=config.heartbeat_interval, full_every=config.full_report_every,
        )  # fmt: skip
        self._start(self.heartbeat.run())
        self._start(self.heartbeat.keep_house())
        scrubber = Scrubber(
            self.copysets, self.repairer, self.disk, config.scrub, self.clock,
            small_files=lambda: identity_file.check(config.data, self.identity),
        )  # fmt: skip
        self._start(scrubber.run())
        self._status = ""
        log.info(
            "serving", address=self.address, chunkserver=self.identity.chunkserver_id,
            copysets=len(self.copysets.by_group), damaged=len(self.copysets.damaged),
        )  # fmt: skip

    async def _register(self, patience: float | None) -> identity_file.Identity:
        return await register(
            self.mds, self.config, self.identity,
            address=self.address, capacity=self.pool.status().target * CHUNK_SIZE, patience=patience,
        )  # fmt: skip

    async def _register_again(self) -> None:
        try:
            await self._register(None)
        except FailedPrecondition as error:
            self._failed(error)
        except CurveError as error:
            log.error("the MDS refuses this chunkserver", error=str(error))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("a background task ended", exc_info=task.exception())

    # ---- state

    def _failed(self, error: CurveError) -> None:
        if self.failure is None:
            self.failure = error
            if self._on_failed is not None:
                self._on_failed(error)

    def _failed_in_thread(self, error: CurveError) -> None:
        self._loop.call_soon_threadsafe(self.disk.failed, error)

    def _health(self) -> str | None:
        return str(self.failure) if self.failure is not None else None

    def _readiness(self) -> str | None:
        if self.failure is not None:
            return str(self.failure)
        if self._status:
            return self._status
        if not self.pool.first_batch_ready:
            return f"the chunk pool is being made: {self.pool.status().format_percent} %"
        return None

    @property
    def ready(self) -> bool:
        return self._readiness() is None

    # ---- stop

    async def stop(self) -> None:
        """Hands leaderships over (bounded in time), then ends everything. Safe after a failed start."""
        if self._stopping:
            return
        self._stopping = True
        self._status = "stopping"
        if self.failure is None:
            await self._hand_over()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._closing.aclose()
        log.info("stopped")

    async def _hand_over(self) -> None:
        host = self.host
        if host is None:
            return
        deadline = self.clock.monotonic() + self.config.stop_timeout
        asked: set[int] = set()
        while self.clock.monotonic() < deadline:
            led = [
                status for status in host.statuses() if status.role is Role.LEADER and len(status.membership.voters) > 1
            ]
            if not led:
                return
            for status in led:
                others = [node for node in status.membership.voters if node != host.node_id]
                if status.group not in asked:
                    asked.add(status.group)
                    with contextlib.suppress(CurveError):
                        host.transfer_leader(status.group, max(others, key=lambda node: status.match.get(node, 0)))
            await asyncio.sleep(_POLL)


def _reachable(host: str) -> str:
    """What to advertise for a wildcard address."""
    return socket.gethostname() if host in ("", "0.0.0.0", "::") else host
