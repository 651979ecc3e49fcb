"""The node side over a real cluster (a playground): crash, upgrade, fencing, a second writer, growth, discard."""

from __future__ import annotations

import asyncio
import errno
import json
import mmap
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from curve_storage.cli.playground import Playground, PlaygroundOptions
from curve_storage.client import BlockVolume, Cluster, load_client_config
from curve_storage.errors import CurveError
from curve_storage.proto import mds_pb2, volumehost_pb2_grpc
from curve_storage.proto import volumehost_pb2 as pb
from curve_storage.rpc.errors import from_status
from curve_storage.units import GiB, MiB

pytestmark = [pytest.mark.root, pytest.mark.etcd, pytest.mark.timeout(400)]


class Node:
    def __init__(self, playground: Playground) -> None:
        self.name = "playground"
        self.client = playground.directory / "client.yaml"
        self._channel = grpc.insecure_channel(
            f"unix:{playground.layout().host_socket}", options=(("grpc.use_local_subchannel_pool", 1),)
        )
        self._stub = volumehost_pb2_grpc.VolumeHostStub(self._channel)
        self.name = self.call("Info", pb.InfoRequest()).node

    def call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=120)
        except grpc.RpcError as error:
            raise from_status(error.code(), error.details(), error.trailing_metadata()) from None

    def mds(self, method: str, request: Any) -> Any:
        async def work() -> Any:
            cluster = Cluster(load_client_config(self.client))
            try:
                return await getattr(cluster.mds.namespace, method)(request, timeout=60)
            finally:
                await cluster.close()

        return asyncio.run(work())

    def attach(self, path: str) -> pb.Attachment:
        self.mds("CreateVolume", mds_pb2.CreateVolumeRequest(path=path, size=GiB))
        volume = mds_pb2.VolumeRef(path=path)
        granted = self.mds("AttachVolume", mds_pb2.AttachVolumeRequest(volume=volume, node=self.name))
        request = pb.AttachRequest(volume_id=granted.volume.id, path=path, epoch=granted.epoch)
        return self.call("Attach", request).attachment

    def one(self, volume_id: int) -> pb.Attachment:
        (found,) = [one for one in self.call("List", pb.ListRequest()).attachments if one.volume_id == volume_id]
        return found

    def until(self, volume_id: int, check: Callable[[pb.Attachment], bool]) -> pb.Attachment:
        deadline = time.monotonic() + 120
        while True:
            found = self.one(volume_id)
            if check(found):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.1)

    def detach(self, volume_id: int) -> None:
        self.call("Detach", pb.DetachRequest(volume_id=volume_id))
        volume = mds_pb2.VolumeRef(id=volume_id)
        self.mds("ReleaseVolume", mds_pb2.ReleaseVolumeRequest(volume=volume))
        self.mds("DeleteVolume", mds_pb2.DeleteVolumeRequest(volume=volume, force=True))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("nc")
    playground = Playground(directory, lambda text: print(text, flush=True))
    try:
        asyncio.run(playground.up(PlaygroundOptions(pool_size=4 * GiB), timeout=180))
        yield Node(playground)
    finally:
        for log in directory.glob("volumehost/volumes/*/process.log"):
            print(log, log.read_text()[-3000:])
        problems = asyncio.run(playground.down(delete=True))
        shutil.rmtree(directory, ignore_errors=True)
        assert not problems


def command(*parts: str | Path) -> str:
    done = subprocess.run([str(part) for part in parts], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{parts}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def direct_write(device: str, offset: int, value: int) -> None:
    """4 KiB past the page cache; OSError."""
    page = mmap.mmap(-1, 4096)
    page.write(bytes([value]) * 4096)
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
    try:
        assert os.pwrite(fd, page, offset) == 4096
    finally:
        os.close(fd)


def test_crash_and_upgrade_under_a_verifying_writer(node: Node, tmp_path: Path) -> None:
    attachment = node.attach("/survives")
    folder = tmp_path / "fs"
    folder.mkdir()
    command("mkfs.ext4", "-q", "-F", attachment.device)
    command("mount", attachment.device, folder)
    fio = subprocess.Popen(
        [
            "fio", "--name=v", f"--directory={folder}", "--size=24m", "--rw=randwrite", "--bsrange=4k-64k",
            "--blockalign=4k", "--iodepth=16", "--ioengine=libaio", "--direct=1", "--time_based", "--runtime=20",
            "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--output-format=json",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        pid = attachment.pid
        for _ in range(2):
            time.sleep(2)
            os.kill(pid, signal.SIGKILL)
            old = pid
            pid = node.until(attachment.volume_id, lambda one: one.pid not in (0, old) and one.health == 0).pid  # noqa: B023
        (one,) = node.call("Upgrade", pb.UpgradeRequest(volume_id=attachment.volume_id)).upgraded
        assert not one.error and one.old_pid == pid
        out, err = fio.communicate(timeout=200)
        assert fio.returncode == 0, out[-2000:] + err[-2000:]
    finally:
        fio.kill()
        fio.wait(30)
        command("umount", folder)
    job = json.loads(out[out.index("{") :])["jobs"][0]
    assert job["error"] == 0 and job["read"]["total_ios"] > 0
    stall = max(job[kind]["lat_ns"]["max"] for kind in ("read", "write")) / 1e9
    print(f"longest stall on a cluster, data process killed twice and upgraded: {stall * 1e3:.0f} ms")
    command("e2fsck", "-fn", attachment.device)
    node.detach(attachment.volume_id)


def test_a_second_writer_at_the_same_epoch_is_no_error(node: Node) -> None:
    """Somebody on this cluster opens the attached volume for writing: the device pauses and goes on."""
    attachment = node.attach("/disputed")
    direct_write(attachment.device, 0, 1)

    async def steal() -> None:
        cluster = Cluster(load_client_config(node.client))
        thief = await BlockVolume.open(cluster, volume_id=attachment.volume_id, patience=60.0)
        await thief.write(0, b"\2" * 4096)
        await thief.close()
        await cluster.close()

    asyncio.run(steal())
    direct_write(attachment.device, 0, 3)
    found = node.until(attachment.volume_id, lambda one: one.health == pb.HEALTH_HEALTHY and one.pid != 0)
    assert found.takeovers >= 1 and found.pid != attachment.pid
    with open(attachment.device, "rb") as device:
        assert device.read(4096) == b"\3" * 4096
    node.detach(attachment.volume_id)


def test_fenced_by_another_node(node: Node) -> None:
    """I/O fails at once instead of hanging, the health says why, and the device can be detached."""
    attachment = node.attach("/taken")
    direct_write(attachment.device, 0, 1)
    volume = mds_pb2.VolumeRef(id=attachment.volume_id)
    node.mds("AttachVolume", mds_pb2.AttachVolumeRequest(volume=volume, node="other", force=True))
    with pytest.raises(OSError) as raised:
        direct_write(attachment.device, 0, 2)
    assert raised.value.errno == errno.EIO
    found = node.until(attachment.volume_id, lambda one: one.health == pb.HEALTH_FENCED)
    assert "another node" in found.message
    node.call("Detach", pb.DetachRequest(volume_id=attachment.volume_id))
    with pytest.raises(CurveError):
        node.call("Stats", pb.StatsRequest(volume_id=attachment.volume_id))
    node.mds("ReleaseVolume", mds_pb2.ReleaseVolumeRequest(volume=volume))


def test_growth_and_discard(node: Node) -> None:
    attachment = node.attach("/grows")
    direct_write(attachment.device, 8 * MiB, 7)
    command("blkdiscard", "-o", str(8 * MiB), "-l", str(MiB), attachment.device)
    with open(attachment.device, "rb") as device:
        device.seek(8 * MiB)
        assert device.read(MiB) == bytes(MiB)
    volume = mds_pb2.VolumeRef(id=attachment.volume_id)
    node.mds("ExtendVolume", mds_pb2.ExtendVolumeRequest(volume=volume, size=2 * GiB))
    resized = node.call("Resize", pb.ResizeRequest(volume_id=attachment.volume_id, size=2 * GiB)).attachment
    assert resized.size == 2 * GiB
    assert int(command("blockdev", "--getsize64", attachment.device)) == 2 * GiB
    direct_write(attachment.device, 2 * GiB - 4096, 9)
    node.detach(attachment.volume_id)
