"""Chunkserver processes with their real log, data port and consensus, under an MDS that does what the test says."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml

from curve_storage.errors import ChunkNotExist, CurveError, NotLeader, PermissionDenied
from curve_storage.proto import mds_pb2, mds_pb2_grpc
from curve_storage.rpc.server import listen, make_server
from curve_storage.telemetry import logs
from curve_storage.units import BLOCK_SIZE
from curve_storage.wire.channel import ChannelPool
from curve_storage.wire.messages import ChunkMeta, MessageType, group_id
from curve_storage.wire.token import Keyring, volume_scope

POOL, VOLUME = 1, 5
DEADLINE = 60.0


class ScriptedMds(mds_pb2_grpc.TopologyServicer, mds_pb2_grpc.HeartbeatServicer):
    """Registers disks, keeps the last reports, and repeats `orders` in every reply until their effect shows."""

    def __init__(self) -> None:
        self.cluster_id = "cluster-one"
        self.ids: dict[str, int] = {}
        self.secrets: dict[int, str] = {}
        self.addresses: dict[int, str] = {}
        self.registrations: list[tuple[str, str]] = []
        self.reports: dict[int, dict[int, Any]] = {}
        self.beats: dict[int, Any] = {}
        self.sizes: list[int] = []
        self.wanted: dict[int, tuple[int, ...]] = {}  # copyset → members
        self.orders: list[tuple[int, Any]] = []  # (chunkserver, order)
        self.address = ""

    async def start(self) -> None:
        self._server = make_server()
        mds_pb2_grpc.add_TopologyServicer_to_server(self, self._server)
        mds_pb2_grpc.add_HeartbeatServicer_to_server(self, self._server)
        port = listen(self._server, "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(grace=0)

    async def RegisterChunkServer(self, request: Any, context: Any) -> Any:
        number = self.ids.setdefault(request.uuid, len(self.ids) + 1)
        if request.secret and request.secret != self.secrets.get(number):
            raise PermissionDenied("wrong secret")
        self.secrets.setdefault(number, f"secret-{number}")
        self.addresses[number] = request.address
        self.registrations.append((request.uuid, request.address))
        return mds_pb2.RegisterChunkServerReply(
            chunkserver_id=number, secret=self.secrets[number], cluster_id=self.cluster_id
        )

    async def Report(self, request: Any, context: Any) -> Any:
        node = request.chunkserver_id
        assert request.secret == self.secrets[node]
        self.beats[node] = request
        self.sizes.append(len(request.copysets))
        if request.full:
            self.reports[node] = {}
        for report in request.copysets:
            self.reports.setdefault(node, {})[report.copyset_id] = report
        reply = mds_pb2.HeartbeatReply(addresses=self.addresses)
        for copyset, members in self.wanted.items():
            if node in members and copyset not in self.reports.get(node, {}):
                reply.orders.add(
                    kind=mds_pb2.CopysetOrder.CREATE, pool_id=POOL, copyset_id=copyset, epoch=1, members=members
                )
        reply.orders.extend(order for target, order in self.orders if target == node)
        return reply

    def leader(self, copyset: int) -> int:
        leaders = [
            (reports[copyset].term, node)
            for node, reports in self.reports.items()
            if copyset in reports and reports[copyset].leader
        ]
        return max(leaders)[1] if leaders else 0


class Process:
    """One chunkserver process; restarted on the same directory with another port."""

    def __init__(self, root: Path, name: str, mds: str, keyring: Path, **config: Any) -> None:
        self.root = root
        self.name = name
        self.data = root / name
        self.config = {
            "name": name,
            "data": str(self.data),
            "listen": "127.0.0.1:0",
            "http": "127.0.0.1:0",
            "mds": [mds],
            "server": name,
            "keyring": str(keyring),
            "pool": {"size": "192Mi", "first_batch": 2, "ready": 2},
            "log": {"segment_size": "4Mi", "max_size": "32Mi"},
            "heartbeat_interval": 0.1,
            "election_timeout_ms": 400,
            "trash_retention": 0,
            **config,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / f"{name}.log"

    def start(self) -> None:
        assert self.process is None
        path = self.root / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(self.config))
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "curve_storage.chunkserver.main", "--config", str(path)],
                stdout=output,
                stderr=output,
            )

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Ends it; its exit status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(timeout=20)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    async def wait(self) -> int:
        """Its exit status; the MDS of the test goes on meanwhile."""
        assert self.process is not None
        status = await asyncio.to_thread(self.process.wait, DEADLINE)
        self.process = None
        return status

    def text(self) -> str:
        return self.log.read_text()


class Cluster:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.mds = ScriptedMds()
        self.keyring = Keyring.generate()
        self.keyring_file = root / "keyring.json"
        self.keyring.save(self.keyring_file)
        self.processes: list[Process] = []
        self._pools: list[ChannelPool] = []

    async def start(self, count: int, **config: Any) -> None:
        await self.mds.start()
        for number in range(count):
            self.add(f"cs{number + 1}", **config).start()
            # One after the other, so that process n is chunkserver n.
            await self.until(lambda number=number: len(self.mds.beats) == number + 1, "registration")

    def add(self, name: str, root: Path | None = None, **config: Any) -> Process:
        process = Process(root or self.root, name, self.mds.address, self.keyring_file, **config)
        self.processes.append(process)
        return process

    async def stop(self) -> None:
        for pool in self._pools:
            await pool.close()
        for process in self.processes:
            process.kill()
        await self.mds.stop()

    async def until(self, condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
        end = time.monotonic() + deadline
        while True:
            value = condition()
            if value:
                return value
            for process in self.processes:
                if process.process is not None and process.process.poll() is not None:
                    pytest.fail(f"{process.name} ended while waiting for {what}:\n{process.text()[-3000:]}")
            if time.monotonic() > end:
                tails = "\n".join(f"--- {one.name}\n{one.text()[-2000:]}" for one in self.processes)
                pytest.fail(f"no {what} within {deadline} s\n{tails}")
            await asyncio.sleep(0.02)

    async def copyset(self, number: int, members: Iterable[int]) -> int:
        """Creates it and waits for a leader; its group id."""
        members = tuple(members)
        self.mds.wanted[number] = members
        await self.until(
            lambda: self.mds.leader(number) and all(number in self.mds.reports.get(n, {}) for n in members),
            f"leader of copyset {number}",
        )
        return group_id(POOL, number)

    def client(self, group: int, **keys: Any) -> Client:
        client = Client(self, group, **keys)
        self._pools.append(client.pool)
        return client


class Client:
    """A writer of one volume in one copyset: exactly once, retried until the deadline."""

    def __init__(self, cluster: Cluster, group: int, *, volume: int = VOLUME, epoch: int = 1, generation: int = 1):
        self.cluster = cluster
        self.group = group
        self.volume, self.epoch, self.generation = volume, epoch, generation
        wall = time.time() + 3600
        token = cluster.keyring.sign(volume_scope(volume), epoch=epoch, rights="rw", expires=wall)
        self.pool = ChannelPool(token=lambda: token, client="test")
        self.seq = 0
        self.outstanding: set[int] = set()
        self.leader = 0
        self.shadow: dict[tuple[int, int], bytes] = {}

    def meta(self, chunk: int, offset: int, length: int, seq: int) -> bytes:
        low = min(self.outstanding, default=self.seq + 1)
        return ChunkMeta(
            self.group, chunk, self.volume, self.epoch, self.generation, offset, length, 0, seq, low
        ).pack()

    async def call(self, kind: MessageType, meta: bytes, payload: bytes = b"", deadline: float = DEADLINE) -> Any:
        end = time.monotonic() + deadline
        nodes = sorted(self.cluster.mds.addresses)
        while True:
            node = self.leader or random.choice(nodes)
            channel = self.pool.channel(self.cluster.mds.addresses[node])
            try:
                reply = await channel.call(kind, meta, payload, timeout=5)
                self.leader = node
                return reply
            except NotLeader as error:
                self.leader = int(error.leader or 0)
                last: CurveError = error
            except CurveError as error:
                if (not error.retryable and error.code != "not_found") or time.monotonic() > end:
                    raise
                self.leader = 0
                last = error
            if time.monotonic() > end:
                raise last
            await asyncio.sleep(0.02)

    async def mutate(self, kind: MessageType, chunk: int, offset: int, length: int, data: bytes, **keys: Any) -> None:
        self.seq += 1
        seq = self.seq
        self.outstanding.add(seq)
        try:
            await self.call(kind, self.meta(chunk, offset, length, seq), data, **keys)
        finally:
            self.outstanding.discard(seq)

    async def write(self, chunk: int, block: int, data: bytes, **keys: Any) -> None:
        await self.mutate(MessageType.CHUNK_WRITE, chunk, block * BLOCK_SIZE, len(data), data, **keys)
        for number in range(len(data) // BLOCK_SIZE):
            self.shadow[chunk, block + number] = data[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]

    async def delete(self, chunk: int) -> None:
        await self.mutate(MessageType.CHUNK_DELETE, chunk, 0, 0, b"")
        for key in [key for key in self.shadow if key[0] == chunk]:
            del self.shadow[key]

    async def read(self, chunk: int, block: int, count: int = 1, **keys: Any) -> bytes:
        try:
            reply = await self.call(
                MessageType.CHUNK_READ, self.meta(chunk, block * BLOCK_SIZE, count * BLOCK_SIZE, 1), **keys
            )
        except ChunkNotExist:
            return bytes(count * BLOCK_SIZE)
        return bytes(reply.payload)

    async def verify(self) -> None:
        """Everything acknowledged is there."""
        for (chunk, block), data in self.shadow.items():
            assert await self.read(chunk, block) == data, f"chunk {chunk} block {block}"

    async def checksums(self, node: int, chunk: int) -> bytes | None:
        meta = msgspec.msgpack.encode({"group": self.group, "chunk": chunk})
        channel = self.pool.channel(self.cluster.mds.addresses[node])
        try:
            return bytes((await channel.call(MessageType.CHUNK_CHECKSUMS, meta, timeout=10)).payload)
        except ChunkNotExist:
            return None


def http(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path) -> Iterator[None]:
    logs.configure("warning")
    yield
    # Chunk files are really allocated: what a test leaves would fill the disk of the machine.
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
def block() -> Callable[[int], bytes]:
    return lambda number: number.to_bytes(8, "little") * (BLOCK_SIZE // 8)


@pytest.fixture
def real() -> SimpleNamespace:
    return SimpleNamespace(http=http, POOL=POOL, VOLUME=VOLUME, root=os.geteuid() == 0)
