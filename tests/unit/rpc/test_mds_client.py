"""MdsClient against real grpc.aio servers of the MDS's services."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from grpc import aio
from prometheus_client import generate_latest

from curve_storage.config import TlsFiles
from curve_storage.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Internal,
    InUse,
    NotLeader,
    Unavailable,
    Unimplemented,
)
from curve_storage.proto import mds_pb2, mds_pb2_grpc
from curve_storage.rpc.channel import tcp_channel, unix_channel
from curve_storage.rpc.errors import from_rpc_error
from curve_storage.rpc.leader import MdsClient
from curve_storage.rpc.server import REQUEST_ID_KEY, listen, make_server
from curve_storage.telemetry import logs, metrics


class FakeMds(mds_pb2_grpc.NamespaceServicer):
    """A namespace of one volume, on a server whose leadership the test decides."""

    def __init__(self) -> None:
        self.leader = ""
        self.is_leader = True
        self.calls = 0
        self.request_ids: list[str] = []
        self.hang = asyncio.Event()
        self.server = make_server()
        mds_pb2_grpc.add_NamespaceServicer_to_server(self, self.server)
        self.address = ""

    async def start(self, tls: TlsFiles | None = None, port: int = 0) -> str:
        self.address = f"127.0.0.1:{listen(self.server, f'127.0.0.1:{port}', tls)}"
        await self.server.start()
        return self.address

    async def GetVolume(self, request: mds_pb2.GetVolumeRequest, context: Any) -> mds_pb2.VolumeReply:
        self.calls += 1
        self.request_ids += [value for key, value in context.invocation_metadata() if key == REQUEST_ID_KEY]
        if not self.is_leader:
            raise NotLeader("this MDS is a standby", leader=self.leader)
        if request.volume.path == "/hang":
            await self.hang.wait()
        if request.volume.path == "/bug":
            raise KeyError("surprise")
        return mds_pb2.VolumeReply(volume=mds_pb2.Volume(path=request.volume.path, id=7))

    async def CreateVolume(self, request: mds_pb2.CreateVolumeRequest, context: Any) -> mds_pb2.VolumeReply:
        raise AlreadyExists("a volume with this name exists", where=request.path, todo="Choose another name")

    async def DeleteVolume(self, request: mds_pb2.DeleteVolumeRequest, context: Any) -> mds_pb2.Empty:
        raise InUse("attached", where="node-1")


@pytest.fixture
async def two() -> AsyncIterator[tuple[FakeMds, FakeMds]]:
    servers = FakeMds(), FakeMds()
    for server in servers:
        await server.start()
    yield servers
    for server in servers:
        await server.server.stop(None)


def get(path: str) -> mds_pb2.GetVolumeRequest:
    return mds_pb2.GetVolumeRequest(volume=mds_pb2.VolumeRef(path=path))


async def test_errors_arrive_whole(two: tuple[FakeMds, FakeMds]) -> None:
    client = MdsClient([two[0].address])
    with pytest.raises(AlreadyExists) as caught:
        await client.namespace.CreateVolume(mds_pb2.CreateVolumeRequest(path="/a"), timeout=10)
    assert (caught.value.what, caught.value.where, caught.value.todo) == (
        "a volume with this name exists",
        "/a",
        "Choose another name",
    )
    with pytest.raises(InUse):
        await client.namespace.DeleteVolume(mds_pb2.DeleteVolumeRequest(), timeout=10)
    with pytest.raises(Internal, match="KeyError"):
        await client.namespace.GetVolume(get("/bug"), timeout=10)
    with pytest.raises(Unimplemented):
        await client.admin.GetStatus(mds_pb2.Empty(), timeout=10)
    await client.close()


async def test_foreign_clients_get_a_status(two: tuple[FakeMds, FakeMds]) -> None:
    channel = tcp_channel(two[0].address)
    stub = mds_pb2_grpc.NamespaceStub(channel)
    with pytest.raises(aio.AioRpcError) as caught:
        await stub.CreateVolume(mds_pb2.CreateVolumeRequest(path="/a"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "Choose another name" in caught.value.details()
    assert isinstance(from_rpc_error(caught.value), AlreadyExists)
    await channel.close()


async def test_follows_the_leader(two: tuple[FakeMds, FakeMds]) -> None:
    first, second = two
    second.is_leader = False
    second.leader = first.address
    client = MdsClient([second.address])  # the leader is known only from the hint
    assert (await client.namespace.GetVolume(get("/x"), timeout=10)).volume.id == 7
    assert client.address == first.address
    before = second.calls
    await client.namespace.GetVolume(get("/x"), timeout=10)
    assert second.calls == before
    assert first.request_ids[0] == second.request_ids[0], "one call, one request id"
    await client.close()


async def test_takes_another_when_the_leader_dies(two: tuple[FakeMds, FakeMds]) -> None:
    first, second = two
    second.is_leader, second.leader = False, first.address
    client = MdsClient([first.address, second.address])
    await client.namespace.GetVolume(get("/x"), timeout=10)
    await first.server.stop(None)
    call = asyncio.create_task(client.namespace.GetVolume(get("/x"), timeout=30))
    while second.calls < 2:  # the standby still names the dead leader
        await asyncio.sleep(0.01)
    second.is_leader = True
    assert (await call).volume.id == 7
    assert client.address == second.address
    await client.close()


async def test_no_leader_and_nobody_there(two: tuple[FakeMds, FakeMds]) -> None:
    for server in two:
        server.is_leader = False
    client = MdsClient([server.address for server in two])
    with pytest.raises(NotLeader, match="no MDS is the leader"):
        await client.namespace.GetVolume(get("/x"), timeout=0.5)
    await client.close()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = MdsClient([f"127.0.0.1:{unused.getsockname()[1]}"])
        with pytest.raises(Unavailable, match="no MDS answered") as caught:
            await client.namespace.GetVolume(get("/x"), timeout=0.5)
        assert "Check that the MDS" in caught.value.todo
        await client.close()


async def test_deadline(two: tuple[FakeMds, FakeMds]) -> None:
    client = MdsClient([two[0].address], deadline=0.3)
    with pytest.raises(DeadlineExceeded):
        await client.namespace.GetVolume(get("/hang"))
    await client.close()


async def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s" / "host.sock"
    for _ in range(2):  # the second time over a stale socket file
        mds = FakeMds()
        listen(mds.server, f"unix:{path}")
        await mds.server.start()
        channel = unix_channel(path)
        reply = await mds_pb2_grpc.NamespaceStub(channel).GetVolume(get("/u"), timeout=10)
        assert reply.volume.path == "/u"
        assert path.stat().st_mode & 0o777 == 0o600
        await channel.close()
        await mds.server.stop(None)


async def test_mutual_tls_and_rotation(tmp_path: Path) -> None:
    old, new = Authority("old"), Authority("new")
    server_files = old.issue(tmp_path / "server", "mds")
    client_files = old.issue(tmp_path / "client", "node")
    mds = FakeMds()
    address = await mds.start(server_files)
    client = MdsClient([address], tls=client_files)
    assert (await client.namespace.GetVolume(get("/t"), timeout=20)).volume.id == 7

    stranger = MdsClient([address], tls=new.issue(tmp_path / "stranger", "stranger", trust=old))
    with pytest.raises(Unavailable):
        await stranger.namespace.GetVolume(get("/t"), timeout=2)
    plain = MdsClient([address])
    with pytest.raises(Unavailable):
        await plain.namespace.GetVolume(get("/t"), timeout=2)

    new.issue(tmp_path / "server", "mds")
    new.issue(tmp_path / "client", "node")
    assert (await client.namespace.GetVolume(get("/t"), timeout=20)).volume.id == 7
    outdated = MdsClient([address], tls=old.issue(tmp_path / "outdated", "node", trust=new))
    with pytest.raises(Unavailable):
        await outdated.namespace.GetVolume(get("/t"), timeout=2)
    for one in (client, stranger, plain, outdated):
        await one.close()
    await mds.server.stop(None)


async def test_request_id_of_the_context_is_passed_on(two: tuple[FakeMds, FakeMds]) -> None:
    client = MdsClient([two[0].address])
    with logs.request_context("abc123"):
        await client.namespace.GetVolume(get("/x"), timeout=10)
    assert two[0].request_ids == ["abc123"]
    assert b'method="/curve.mds.v1.Namespace/GetVolume"' in generate_latest(metrics.registry())
    await client.close()


async def test_long_calls_are_not_cut_by_keepalive(two: tuple[FakeMds, FakeMds]) -> None:
    client = MdsClient([two[0].address])
    started = time.monotonic()
    call = asyncio.create_task(client.namespace.GetVolume(get("/hang"), timeout=60))
    await asyncio.sleep(5)
    assert not call.done()
    two[0].hang.set()
    assert (await call).volume.id == 7
    assert time.monotonic() - started >= 5 and two[0].calls == 1
    await client.close()
