"""Three real MDS processes on a real etcd, and chunkservers that are a real data port with a scripted inside."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from etcd_cluster import EtcdCluster, free_ports

from curve_storage.errors import CurveError, NotFound, NotLeader, Unavailable
from curve_storage.proto import mds_pb2 as pb
from curve_storage.rpc.leader import MdsClient
from curve_storage.units import GiB
from curve_storage.wire.messages import MessageType, split_group
from curve_storage.wire.server import Request, Server
from curve_storage.wire.token import Keyring, TokenVerifier


class MdsProcess:
    def __init__(self, directory: Path, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self.address = settings["advertise"]
        self.http = settings["http"]
        self.config = directory / f"{name}.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        self.log = directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "curve_storage.mds.main", "--config", str(self.config)], stdout=log, stderr=log
            )

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGKILL, timeout: float = 20) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def page(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


class MdsTrio:
    def __init__(self, directory: Path, endpoints: list[str], prefix: str, count: int = 3, **settings: Any) -> None:
        self.directory, self.prefix = directory, prefix
        self.keyring = Keyring.generate()
        self.keyring.save(directory / "keyring.json")
        ports = free_ports(2 * count)
        self.members = [
            MdsProcess(
                directory,
                f"mds{n}",
                {
                    "name": f"mds{n}",
                    "listen": f"127.0.0.1:{ports[2 * n]}",
                    "advertise": f"127.0.0.1:{ports[2 * n]}",
                    "http": f"127.0.0.1:{ports[2 * n + 1]}",
                    "etcd": {"endpoints": endpoints, "prefix": prefix},
                    "keyring": str(directory / "keyring.json"),
                    "election_ttl": 2,
                    "heartbeat": {"interval": 0.2, "unhealthy_after": 3, "offline_after": 600, "grace": 2},
                    "log_level": "info",
                    **settings,
                },
            )
            for n in range(count)
        ]

    def client(self) -> MdsClient:
        return MdsClient([member.address for member in self.members])

    def start(self) -> None:
        for member in self.members:
            member.start()

    def stop(self) -> None:
        for member in self.members:
            member.end()

    async def leader(self, client: MdsClient, timeout: float = 30) -> MdsProcess:
        """Waits until one leads and serves."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                await client.admin.GetStatus(pb.Empty(), timeout=5)
                reply = await client.admin.GetLeader(pb.Empty(), timeout=5)
                found = [m for m in self.members if m.address == reply.address and m.process is not None]
                if found:
                    return found[0]
            except CurveError:
                pass
            if time.monotonic() > deadline:
                raise TimeoutError("no MDS leads\n" + "\n".join(m.log.read_text()[-1500:] for m in self.members))
            await asyncio.sleep(0.1)


class Groups:
    """The copysets as the scripted chunkservers have them: members, leader, epochs per volume, deleted chunks."""

    def __init__(self) -> None:
        self.members: dict[tuple[int, int], tuple[int, ...]] = {}
        self.leader: dict[tuple[int, int], int] = {}
        self.term: dict[tuple[int, int], int] = {}
        self.epochs: dict[tuple[tuple[int, int], int], int] = {}
        self.deleted: dict[int, set[int]] = {}
        self.frozen: set[tuple[int, int]] = set()

    def on_create(self, key: tuple[int, int], members: tuple[int, ...]) -> None:
        if key not in self.members:
            self.members[key], self.leader[key], self.term[key] = members, members[0], 1


class FakeChunkServer:
    """Registers, beats five times a second, obeys CREATE and TRANSFER_LEADER, answers FENCE and DELETE_VOLUME."""

    def __init__(self, trio: MdsTrio, groups: Groups, zone: str) -> None:
        self.trio, self.groups, self.zone = trio, groups, zone
        self.client = trio.client()
        self.server = Server(verifier=TokenVerifier(trio.keyring))
        for kind, handler in ((MessageType.FENCE, self._fence), (MessageType.DELETE_VOLUME, self._delete)):
            self.server.handle(kind, handler, scope="cluster")
        self.uuid = uuid.uuid4().hex
        self.id, self.secret, self.address = 0, "", ""
        self.replicas: set[tuple[int, int]] = set()
        self._beating: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.address = f"127.0.0.1:{await self.server.start('127.0.0.1', 0)}"
        reply = await self.client.topology.RegisterChunkServer(self.registration(), timeout=20)
        self.id, self.secret = reply.chunkserver_id, reply.secret
        self._beating = asyncio.create_task(self._beat())

    def registration(self) -> pb.RegisterChunkServerRequest:
        return pb.RegisterChunkServerRequest(
            uuid=self.uuid, secret=self.secret, address=self.address, server=f"s-{self.zone}", zone=self.zone,
            capacity=500 * GiB, version="t",
        )  # fmt: skip

    async def stop(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            self._beating = None
        await self.server.stop()
        await self.client.close()

    def heartbeat(self) -> pb.HeartbeatRequest:
        request = pb.HeartbeatRequest(
            chunkserver_id=self.id, secret=self.secret, address=self.address, full=True, capacity=500 * GiB, version="t"
        )
        for key in self.replicas:
            request.copysets.add(
                pool_id=key[0], copyset_id=key[1], leader=self.groups.leader[key] == self.id,
                term=self.groups.term[key], epoch=1, voters=self.groups.members[key],
            )  # fmt: skip
        return request

    async def _beat(self) -> None:
        while True:
            try:
                reply = await self.client.heartbeat.Report(self.heartbeat(), timeout=5)
                for order in reply.orders:
                    key = (order.pool_id, order.copyset_id)
                    if order.kind == pb.CopysetOrder.CREATE:
                        self.groups.on_create(key, tuple(order.members))
                        self.replicas.add(key)
                    elif order.kind == pb.CopysetOrder.TRANSFER_LEADER and self.groups.leader[key] != order.target:
                        self.groups.leader[key] = order.target
                        self.groups.term[key] += 1
            except CurveError:
                pass
            await asyncio.sleep(0.2)

    def _key(self, body: dict[str, Any]) -> tuple[int, int]:
        key = split_group(body["group"])
        if key not in self.replicas:
            raise NotFound("no such group")
        if self.groups.leader[key] != self.id:
            raise NotLeader("not the leader", leader=str(self.groups.leader[key]))
        if key in self.groups.frozen:
            raise Unavailable("no quorum")
        return key

    def _fence(self, request: Request) -> None:
        body = msgspec.msgpack.decode(request.meta)
        known = (self._key(body), body["volume"])
        self.groups.epochs[known] = max(self.groups.epochs.get(known, 0), body["epoch"])
        request.reply()

    def _delete(self, request: Request) -> None:
        body = msgspec.msgpack.decode(request.meta)
        self._key(body)
        self.groups.deleted.setdefault(body["volume"], set()).update(body["chunks"])
        request.reply()


class Storage:
    """Three chunkservers in three zones."""

    def __init__(self, trio: MdsTrio) -> None:
        self.groups = Groups()
        self.chunkservers = [FakeChunkServer(trio, self.groups, f"z{n}") for n in range(3)]

    async def start(self) -> None:
        for chunkserver in self.chunkservers:
            await chunkserver.start()

    async def stop(self) -> None:
        for chunkserver in self.chunkservers:
            await chunkserver.stop()


@pytest.fixture
def trio(etcd: EtcdCluster, tmp_path: Path) -> Iterator[MdsTrio]:
    made = MdsTrio(tmp_path, etcd.endpoints, f"{uuid.uuid4().hex}/")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def make_trio(tmp_path: Path) -> Iterator[Callable[..., MdsTrio]]:
    """MDSs (not started) on any endpoints."""
    made: list[MdsTrio] = []

    def make(endpoints: list[str], count: int, prefix: str = "", **settings: Any) -> MdsTrio:
        directory = tmp_path / f"group{len(made)}"
        directory.mkdir()
        made.append(MdsTrio(directory, endpoints, prefix or f"{uuid.uuid4().hex}/", count, **settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
async def client(trio: MdsTrio) -> AsyncIterator[MdsClient]:
    made = trio.client()
    await trio.leader(made)
    yield made
    await made.close()


@pytest.fixture
async def storage(trio: MdsTrio, client: MdsClient) -> AsyncIterator[Storage]:
    made = Storage(trio)
    try:
        await made.start()
        pool = await client.topology.CreatePool(pb.CreatePoolRequest(name="default", copysets=6), timeout=30)
        assert pool.pool.copysets_healthy == 6
        yield made
    finally:
        await made.stop()
