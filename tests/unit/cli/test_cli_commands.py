"""Commands against a gRPC server that answers like an MDS: what is asked for, and what is shown."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from curve_storage import errors
from curve_storage.proto import mds_pb2, mds_pb2_grpc
from curve_storage.rpc.server import listen, make_server
from curve_storage.units import GiB


class FakeMds(mds_pb2_grpc.NamespaceServicer, mds_pb2_grpc.AdminServicer, mds_pb2_grpc.TopologyServicer):
    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.health = "degraded"
        self.asked = 0

    async def CreateVolume(self, request: Any, context: Any) -> mds_pb2.VolumeReply:
        self.requests.append(request)
        if request.path == "/full":
            raise errors.NoSpace("the pool has 1 GiB left", where="/full", todo="Add chunkservers")
        return mds_pb2.VolumeReply(volume=mds_pb2.Volume(id=5, path=request.path, size=request.size, epoch=1))

    async def ListDirectory(self, request: Any, context: Any) -> mds_pb2.ListDirectoryReply:
        self.requests.append(request)
        pages = {"": ["/a", "/b"], "/b": ["/c"]}
        found = pages[request.start_after]
        return mds_pb2.ListDirectoryReply(
            entries=[mds_pb2.Volume(id=n, path=p, size=GiB) for n, p in enumerate(found, 1)], more=len(found) == 2
        )

    async def GetStatus(self, request: Any, context: Any) -> mds_pb2.StatusReply:
        self.asked += 1
        return mds_pb2.StatusReply(
            cluster_id="c1",
            health="healthy" if self.health == "later" and self.asked >= 3 else "degraded",
            reasons=[mds_pb2.Reason(code="x", message="chunkserver 2 has been silent for 7 s")],
            mds=[mds_pb2.MdsMember(name="mds1", address="h:1", leader=True)],
            pools=[mds_pb2.Pool(id=1, name="default", replicas=3, copysets=24, copysets_healthy=23, capacity=4 * GiB)],
            chunkservers=3,
            chunkservers_online=2,
            copysets=24,
            copysets_available=24,
            copysets_healthy=23,
        )


@pytest_asyncio.fixture
async def mds(tmp_path: Path) -> AsyncIterator[tuple[FakeMds, Path]]:
    fake = FakeMds()
    server = make_server()
    mds_pb2_grpc.add_NamespaceServicer_to_server(fake, server)
    mds_pb2_grpc.add_AdminServicer_to_server(fake, server)
    port = listen(server, "127.0.0.1:0")
    await server.start()
    config = tmp_path / "client.yaml"
    config.write_text(f"mds: ['127.0.0.1:{port}']\n")
    yield fake, config
    await server.stop(0)


async def curve(config: Path, *arguments: str) -> tuple[int, str, str]:
    """In a process of its own, as users run it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "curve_storage.cli.main",
        *arguments,
        "--config",
        str(config),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    except TimeoutError:
        process.kill()
        raise
    assert b"Traceback" not in err, err.decode()
    return process.returncode or 0, out.decode(), err.decode()


async def test_create_sends_what_was_typed(mds: tuple[FakeMds, Path]) -> None:
    fake, config = mds
    code, out, _err = await curve(
        config, "volume", "create", "/a", "--size", "2Gi", "--iops", "100", "--bandwidth", "1Mi", "--label", "a=b",
        "-p", "-o", "json",
    )  # fmt: skip
    assert code == 0 and json.loads(out)["size"] == 2 * GiB
    request = fake.requests[0]
    assert request.path == "/a" and request.size == 2 * GiB and request.create_parents
    assert request.throttle.iops == 100 and request.throttle.bytes_per_second == 2**20
    assert dict(request.labels) == {"a": "b"}


async def test_an_error_of_the_mds_reaches_the_user_whole(mds: tuple[FakeMds, Path]) -> None:
    _fake, config = mds
    code, out, err = await curve(config, "volume", "create", "/full", "--size", "2Gi")
    assert (code, out) == (7, "")
    assert err.splitlines() == ["error: /full: the pool has 1 GiB left", "  → Add chunkservers"]


async def test_list_reads_all_pages(mds: tuple[FakeMds, Path]) -> None:
    fake, config = mds
    code, out, _err = await curve(config, "volume", "list", "-o", "json")
    assert code == 0 and [row["path"] for row in json.loads(out)] == ["/a", "/b", "/c"]
    assert [request.start_after for request in fake.requests] == ["", "/b"]


async def test_status_is_one_screen_with_a_word_and_reasons(mds: tuple[FakeMds, Path]) -> None:
    fake, config = mds
    code, out, _err = await curve(config, "status")
    assert code == 0
    assert out.split()[0] == "degraded" and "chunkserver 2 has been silent for 7 s" in out
    assert "2 of 3 online" in out and "23 of 24 healthy" in out and "mds1 h:1 (leader)" in out and "23/24" in out
    assert len(out.splitlines()) <= 25
    code, _out, _err = await curve(config, "status", "--wait", "0.5")
    assert code == 4
    fake.health, fake.asked = "later", 0
    code, out, _err = await curve(config, "status", "--wait", "20", "-o", "yaml")
    assert code == 0 and "health: healthy" in out
