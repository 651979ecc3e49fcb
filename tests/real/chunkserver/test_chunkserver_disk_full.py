"""A disk that is really full: a small file system of its own, until nothing fits any more, and back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curve_storage.errors import CurveError, NoSpace
from curve_storage.proto import mds_pb2
from curve_storage.units import MiB

Block = Callable[[int], bytes]


@pytest.fixture
def small_disk(tmp_path: Path, real: SimpleNamespace) -> Iterator[Path]:
    """An ext4 of 256 MiB on a loop device."""
    if not real.root:
        pytest.fail("this test mounts a file system: run it as root", pytrace=False)
    image, mount = tmp_path / "disk.img", tmp_path / "disk"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(256 * MiB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture
async def full_cluster(small_disk: Path, cluster: Any) -> Any:
    """Depends on the disk, so that its process ends before the disk is unmounted."""
    await cluster.mds.start()
    process = cluster.add(
        "cs1",
        data=str(small_disk / "data"),
        pool={"size": "80Mi", "first_batch": 1, "ready": 1, "reserve": 1},
        log={"segment_size": "4Mi", "max_size": "32Mi"},
    )
    process.start()
    await cluster.until(lambda: cluster.mds.beats, "registration")
    return cluster


def disk_state(cluster: Any) -> int:
    return int(cluster.mds.beats[1].disk)


async def test_a_used_up_pool_refuses_new_chunks_until_some_return(full_cluster: Any, block: Block) -> None:
    cluster = full_cluster
    client = cluster.client(await cluster.copyset(1, [1]))
    await cluster.until(lambda: disk_state(cluster) == mds_pb2.DISK_STATE_NORMAL, "formatted pool")
    written = 0
    with pytest.raises(NoSpace, match="used up"):
        while written < 10:
            await client.write(written, 0, block(written), deadline=0)
            written += 1
    assert written == 3, "four chunks, one in reserve"
    await cluster.until(lambda: disk_state(cluster) == mds_pb2.DISK_STATE_FULL, "report of the full disk")
    assert "chunk pool is used up" in cluster.mds.beats[1].disk_message
    await client.write(1, 7, block(70))
    await client.verify()
    waiting = asyncio.create_task(client.write(9, 0, block(9)))
    await client.delete(2)
    await waiting  # by itself, once the chunk has returned
    await client.delete(1)
    await cluster.until(lambda: disk_state(cluster) == mds_pb2.DISK_STATE_NORMAL, "report of a normal disk")
    await client.verify()


async def test_a_full_file_system_makes_the_store_read_only_until_there_is_space(
    full_cluster: Any, small_disk: Path, block: Block
) -> None:
    cluster = full_cluster
    client = cluster.client(await cluster.copyset(1, [1]))
    await cluster.until(lambda: disk_state(cluster) == mds_pb2.DISK_STATE_NORMAL, "formatted pool")
    await client.write(1, 0, block(1))
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (MiB, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    # Whatever the log needs checkpoints for: they cannot be written.
    refused: list[CurveError] = []
    data = os.urandom(MiB)
    for number in range(200):
        try:
            await client.write(1, 256 * (number % 4), data, deadline=0)
        except CurveError as error:
            refused.append(error)
            if error.code == "store_read_only":
                break
            await asyncio.sleep(0.05)
    assert refused
    assert refused[-1].code == "store_read_only"
    assert all(error.retryable for error in refused)
    await cluster.until(lambda: disk_state(cluster) == mds_pb2.DISK_STATE_FULL, "report of the full disk")
    await client.verify()
    waiting = asyncio.create_task(client.write(1, 2000, block(2000)))
    filler.unlink()
    await waiting
    await cluster.until(lambda: disk_state(cluster) == mds_pb2.DISK_STATE_NORMAL, "report of a normal disk")
    await client.verify()
    process = cluster.processes[0]
    process.kill(signal.SIGKILL)
    process.start()
    await client.verify()
