"""Attach, detach, resize, discard, NBD: what a node does with a volume while nothing goes wrong, and misuse of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curve_storage import mountinfo
from curve_storage.attach import loop
from curve_storage.errors import FailedPrecondition, InUse, NotFound, OutOfRange
from curve_storage.proto import volumehost_pb2 as pb

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
MiB = 1 << 20
MakeNode = Callable[..., Any]


def command(*parts: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(part) for part in parts], capture_output=True, text=True, timeout=120)
    if check:
        assert done.returncode == 0, f"{parts}\n{done.stdout}\n{done.stderr}"
    return done


def remains(node: Any) -> list[str]:
    """What is left of any volume on the node."""
    prefix = str(node.root) + "/volumes/"
    return (
        [device.backing for device in loop.bound_devices() if device.backing.startswith(prefix)]
        + [str(entry.target) for entry in mountinfo.mounts() if str(entry.target).startswith(prefix)]
        + [str(pid) for pid in node.data_processes()]
        + [str(path) for path in (node.root / "volumes").iterdir()]
    )


def test_attach_and_detach_are_idempotent(make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node()
    node.create(1, 64 * MiB)
    first = node.attach(1, epoch=3)
    again = node.attach(1, epoch=3)
    assert (first.device, first.pid, first.size) == (again.device, again.pid, 64 * MiB)
    number = Path(first.device).name
    assert (Path("/sys/block") / number / "loop/dio").read_text().strip() == "1"
    assert (Path("/sys/block") / number / "queue/logical_block_size").read_text().strip() == "4096"
    with pytest.raises(FailedPrecondition, match="already attached"):
        node.attach(1, epoch=3, backend=pb.BACKEND_NBD)
    with pytest.raises(FailedPrecondition, match="older"):
        node.attach(1, epoch=2)
    for _ in range(2):
        node.call("Detach", pb.DetachRequest(volume_id=1))
    assert remains(node) == []
    with pytest.raises(NotFound):
        node.call("Stats", pb.StatsRequest(volume_id=1))


def test_newer_epoch_attaches_anew(make_node: MakeNode, tmp_path: Path) -> None:
    """The volume was on another node meanwhile: what is attached here is of no use, and never while it is mounted."""
    node = make_node()
    node.create(1, 64 * MiB)
    first = node.attach(1, epoch=1)
    node.format_and_mount(first.device, tmp_path / "fs")
    with pytest.raises(InUse):
        node.attach(1, epoch=3)
    assert node.healthy(1).pid == first.pid
    node.unmount(tmp_path / "fs")
    second = node.attach(1, epoch=3)
    assert second.epoch == 3 and second.pid != first.pid
    node.call("Detach", pb.DetachRequest(volume_id=1))


def test_detach_refuses_while_in_use(make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node()
    node.create(1, 64 * MiB)
    device = node.attach(1).device
    folder = tmp_path / "fs"
    node.format_and_mount(device, folder)
    with pytest.raises(InUse, match="mounted or held open"):
        node.call("Detach", pb.DetachRequest(volume_id=1))
    (folder / "still").write_text("works")
    command("sync", "-f", folder)
    node.unmount(folder)
    holder = os.open(device, os.O_RDWR)  # as a pod with a raw block volume
    try:
        with pytest.raises(InUse):
            node.call("Detach", pb.DetachRequest(volume_id=1))
        assert os.pread(holder, 4096, 0) != b""
    finally:
        os.close(holder)
    assert node.one(1).device == device, "the refused detach let go at the last close"
    node.call("Detach", pb.DetachRequest(volume_id=1))
    assert remains(node) == []


def test_forced_detach_while_open(make_node: MakeNode, tmp_path: Path) -> None:
    """The holder's later I/O fails; nothing hangs."""
    node = make_node()
    node.create(1, 64 * MiB)
    attachment = node.attach(1)
    holder = os.open(attachment.device, os.O_RDWR | os.O_DIRECT)
    try:
        node.call("Detach", pb.DetachRequest(volume_id=1, force=True))
        failed = command(
            "dd", f"if={attachment.device}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct", check=False
        )
        assert failed.returncode != 0
    finally:
        os.close(holder)
    deadline = time.monotonic() + 20
    while remains(node) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert remains(node) == []


def test_resize_online(make_node: MakeNode, tmp_path: Path) -> None:
    """With xfs: ext4 grows online only for a process with CAP_SYS_RESOURCE, which not every container has."""
    node = make_node()
    path = node.create(1, 320 * MiB)
    device = node.attach(1).device
    folder = tmp_path / "fs"
    command("mkfs.xfs", "-q", device)
    folder.mkdir()
    command("mount", device, folder)
    node.mounted.append(folder)
    (folder / "before").write_bytes(os.urandom(MiB))
    with pytest.raises(OutOfRange):
        node.call("Resize", pb.ResizeRequest(volume_id=1, size=640 * MiB))
    os.truncate(path, 640 * MiB)
    resized = node.call("Resize", pb.ResizeRequest(volume_id=1, size=640 * MiB)).attachment
    assert resized.size == 640 * MiB and resized.device == device
    assert command("blockdev", "--getsize64", device).stdout.strip() == str(640 * MiB)
    command("xfs_growfs", folder)
    assert node.call("FilesystemStats", pb.FilesystemStatsRequest(path=str(folder))).total_bytes > 500 * MiB
    data = os.urandom(MiB)
    with open(folder / "after", "wb") as file:
        for _ in range(330):  # more than the whole volume could hold before
            file.write(data)
        os.fsync(file.fileno())
    node.unmount(folder)
    command("xfs_repair", "-n", device)
    node.call("Detach", pb.DetachRequest(volume_id=1))


def test_discard_reaches_the_volume(make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node()
    path = node.create(1, 64 * MiB)
    device = node.attach(1).device
    command("dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=64", "oflag=direct", "conv=fsync")
    assert path.stat().st_blocks * 512 >= 64 * MiB
    command("blkdiscard", "-o", str(16 * MiB), "-l", str(32 * MiB), device)
    assert path.stat().st_blocks * 512 <= 33 * MiB
    command("blkdiscard", "-z", "-o", str(48 * MiB), "-l", str(4 * MiB), device)
    with open(device, "rb") as file:
        data = file.read()
    assert data[16 * MiB : 52 * MiB] == bytes(36 * MiB)
    assert data[: 16 * MiB].count(0) < MiB and data[52 * MiB :].count(0) < MiB
    node.call("Detach", pb.DetachRequest(volume_id=1))


def test_read_only(make_node: MakeNode) -> None:
    node = make_node()
    node.create(1, 64 * MiB)
    attachment = node.attach(1, read_only=True)
    assert command("blockdev", "--getro", attachment.device).stdout.strip() == "1"
    assert command("dd", "if=/dev/zero", f"of={attachment.device}", "bs=4k", "count=1", check=False).returncode != 0
    command("dd", f"if={attachment.device}", "of=/dev/null", "bs=1M", "iflag=direct")
    node.call("Detach", pb.DetachRequest(volume_id=1))


def test_failed_attach_leaves_nothing(make_node: MakeNode) -> None:
    node = make_node()
    with pytest.raises(FailedPrecondition, match="cannot open the volume"):
        node.attach(9)  # there is no such file
    assert remains(node) == []


def test_nbd_after_a_crash_and_an_upgrade(make_node: MakeNode) -> None:
    node = make_node(delay=0.0)
    node.create(1, 64 * MiB)
    attachment = node.attach(1, backend=pb.BACKEND_NBD)
    assert attachment.device == "" and os.stat(attachment.nbd_socket).st_mode & 0o777 == 0o600
    uri = f"nbd+unix:///?socket={attachment.nbd_socket}"
    command("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 2M", uri)
    os.kill(attachment.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while node.one(1).pid in (0, attachment.pid) or node.one(1).health != pb.HEALTH_HEALTHY:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = command("qemu-io", "-f", "raw", "-c", "read -P 0x5a 1M 2M", uri)
    assert "Pattern verification failed" not in found.stdout
    (one,) = node.call("Upgrade", pb.UpgradeRequest(volume_id=1)).upgraded
    assert not one.error and one.new_pid != one.old_pid
    assert json.loads(command("nbdinfo", "--json", uri).stdout)["exports"][0]["export-size"] == 64 * MiB
    node.call("Detach", pb.DetachRequest(volume_id=1))
    assert remains(node) == []


def test_nbd_detach_asks_who_is_connected_now(make_node: MakeNode) -> None:
    """Refused while a client is there; the moment it has gone, at once, whatever was reported before."""
    node = make_node()
    node.create(1, 64 * MiB)
    attachment = node.attach(1, backend=pb.BACKEND_NBD)
    client = socket.socket(socket.AF_UNIX)
    client.connect(attachment.nbd_socket)
    assert client.recv(8) == b"NBDMAGIC"
    end = time.monotonic() + 3
    while time.monotonic() < end:  # until the host's regular report has the connection in it, too
        with pytest.raises(InUse, match="connected"):
            node.call("Detach", pb.DetachRequest(volume_id=1))
    client.close()
    node.call("Detach", pb.DetachRequest(volume_id=1))
    assert remains(node) == []


def test_leftovers_are_cleaned_at_start(make_node: MakeNode, tmp_path: Path) -> None:
    """The state of a volume is lost: its loop device, mount and descriptor go; one that is in use is only reported."""
    node = make_node()
    for volume_id in (1, 2):
        node.create(volume_id, 64 * MiB)
    unused, used = node.attach(1), node.attach(2)
    folder = tmp_path / "fs"
    node.format_and_mount(used.device, folder)
    node.kill_host()
    for volume_id in (1, 2):
        for name in ("state.json", "state.json.copy"):
            (node.root / "volumes" / str(volume_id) / name).unlink()
    node.start_host()
    assert unused.backing_file not in [device.backing for device in loop.bound_devices()]
    targets = [str(entry.target) for entry in mountinfo.mounts()]
    assert str(node.root / "volumes/1/mount") not in targets
    info = node.call("Info", pb.InfoRequest())
    assert "volume 2 has no owner" in info.message
    (folder / "still").write_text("works")
    command("sync", "-f", folder)
    node.unmount(folder)
    node.kill_host(signal.SIGTERM)
    node.start_host()
    assert remains(node) == []


def test_statistics_and_metrics(make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node()
    node.create(1, 64 * MiB)
    device = node.attach(1).device
    command("dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=8", "oflag=direct")
    stats = node.call("Stats", pb.StatsRequest(volume_id=1))
    assert stats.write_bytes >= 8 * MiB and stats.writes >= 8
    assert stats.attachment.health == pb.HEALTH_HEALTHY and stats.attachment.version
    with pytest.raises(NotFound):
        node.call("FilesystemStats", pb.FilesystemStatsRequest(path=str(tmp_path / "absent")))
    info = node.call("Info", pb.InfoRequest())
    assert info.node == "n1" and info.message == ""
    (address,) = node.http_addresses()
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=20).read().decode()
    assert 'curve_volume_condition{condition="healthy",path="/v1",volume="1"} 1.0' in text
    assert 'curve_volume_request_seconds_count{operation="writes",path="/v1",volume="1"}' in text
    assert urllib.request.urlopen(f"http://{address}/readyz", timeout=20).status == 200
    node.call("Detach", pb.DetachRequest(volume_id=1))


def test_same_path_of_another_node_is_left_alone(make_node: MakeNode, tmp_path: Path) -> None:
    """Nodes sharing a kernel (and a volume that moved between nodes) have loop devices with equal paths."""
    node = make_node()
    node.create(1, 64 * MiB)
    # The other node: the same path in a mount namespace of its own, another file.
    other = tmp_path / "other"
    other.mkdir()
    (other / "volume").write_bytes(bytes(32 * MiB))
    target = node.root / "volumes" / "1" / "mount"
    script = f"mkdir -p {target} && mount --bind {other} {target} && losetup --show -f {target}/volume && read _"
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    node.background.append(process)
    assert process.stdout is not None
    foreign = process.stdout.readline().strip()
    try:
        (backing,) = [device.backing for device in loop.bound_devices() if str(device.path) == foreign]
        assert backing == f"{target}/volume"
        attachment = node.attach(1)
        assert attachment.device != foreign and attachment.backing_file == backing
        assert node.attach(1).device == attachment.device
        node.kill_host()
        node.start_host()
        assert node.healthy(1).device == attachment.device
        node.call("Detach", pb.DetachRequest(volume_id=1))
        node.kill_host()
        node.start_host()
        assert foreign in [str(device.path) for device in loop.bound_devices()], "another node's device was detached"
    finally:
        command("losetup", "-d", foreign)
