"""Whatever of the node side dies, the file system on the volume sees a pause, never an error."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curve_storage.proto import volumehost_pb2 as pb

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
MiB = 1 << 20


def prepare(node: Any, tmp_path: Path) -> tuple[pb.Attachment, Path]:
    node.create(1, 256 * MiB)
    attachment = node.attach(1)
    folder = tmp_path / "fs"
    node.format_and_mount(attachment.device, folder)
    return attachment, folder


def finish(node: Any, attachment: pb.Attachment, folder: Path) -> None:
    """Unmount, check the file system on the device and, after the detach, in the backing file."""
    from subprocess import run

    node.unmount(folder)
    checked = run(["e2fsck", "-fn", attachment.device], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    node.call("Detach", pb.DetachRequest(volume_id=1))
    checked = run(["e2fsck", "-fn", str(node.devices / "1")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def replaced(node: Any, old: int) -> pb.Attachment:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            found = node.one(1)
            if found.pid not in (0, old) and found.health == pb.HEALTH_HEALTHY:
                return found
        time.sleep(0.05)
    raise AssertionError("the data process was not replaced: " + (node.logs / "main.log").read_text()[-3000:])


def test_data_process_killed_under_io(make_node: Callable[..., Any], tmp_path: Path) -> None:
    node = make_node()
    attachment, folder = prepare(node, tmp_path)
    fio = node.fio(folder, 12)
    pid = attachment.pid
    for _ in range(4):
        time.sleep(1.5)
        os.kill(pid, signal.SIGKILL)
        pid = replaced(node, pid).pid
    stall = node.fio_result(fio)
    print(f"longest stall with the data process killed 4 times: {stall * 1e3:.0f} ms")
    found = node.one(1)
    assert found.takeovers >= 4
    finish(node, attachment, folder)


def test_host_killed_and_restarted(make_node: Callable[..., Any], tmp_path: Path) -> None:
    """On a plain host the data process outlives its host; the next host finds it."""
    node = make_node()
    attachment, folder = prepare(node, tmp_path)
    fio = node.fio(folder, 8)
    for _ in range(2):
        time.sleep(1)
        node.kill_host()
        assert node.data_processes() == [attachment.pid]
        time.sleep(0.5)
        node.start_host()
        found = node.healthy(1)
        assert (found.pid, found.takeovers, found.device) == (attachment.pid, 0, attachment.device)
    stall = node.fio_result(fio)
    print(f"longest stall with the host killed twice: {stall * 1e3:.0f} ms")
    finish(node, attachment, folder)


def test_host_and_data_process_killed(make_node: Callable[..., Any], tmp_path: Path) -> None:
    """In a container the data processes die with the host; the next host has them replaced."""
    node = make_node()
    attachment, folder = prepare(node, tmp_path)
    fio = node.fio(folder, 10)
    pid = attachment.pid
    for _ in range(2):
        time.sleep(1)
        node.kill_host()
        os.kill(pid, signal.SIGKILL)
        node.start_host()
        pid = replaced(node, pid).pid
    stall = node.fio_result(fio)
    print(f"longest stall with host and data process killed twice: {stall * 1e3:.0f} ms")
    finish(node, attachment, folder)


def test_live_upgrade_under_io(make_node: Callable[..., Any], tmp_path: Path) -> None:
    node = make_node()
    attachment, folder = prepare(node, tmp_path)
    fio = node.fio(folder, 8)
    pid, stalls = attachment.pid, []
    for _ in range(3):
        time.sleep(0.5)
        (one,) = node.call("Upgrade", pb.UpgradeRequest()).upgraded
        assert not one.error
        assert one.old_pid == pid and one.new_pid != pid
        pid = one.new_pid
        stalls.append(one.stall_ms)
        assert node.healthy(1).pid == pid
    longest = node.fio_result(fio)
    print(f"upgrade stalls {stalls} ms, longest write {longest * 1e3:.0f} ms")
    assert node.one(1).takeovers == 0
    assert node.data_processes() == [pid]
    finish(node, attachment, folder)


def test_keeper_restarted(make_node: Callable[..., Any], tmp_path: Path) -> None:
    """A new keeper gets the descriptor from the data process, and the next crash is survived again."""
    node = make_node()
    attachment, folder = prepare(node, tmp_path)
    fio = node.fio(folder, 8)
    node.keeper.kill()
    node.keeper.wait(10)
    node.start_keeper()

    import socket

    from curve_storage.volumehost import packet

    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline, "the keeper did not get the descriptor back"
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(node.root / "keeper.sock"))
            packet.send(connection, {"version": 1, "op": "list"})
            received = packet.receive(connection)
            if received is not None and "volume-1" in received[0]["names"]:
                break
        time.sleep(0.1)
    os.kill(attachment.pid, signal.SIGKILL)
    replaced(node, attachment.pid)
    stall = node.fio_result(fio)
    print(f"longest stall with the keeper replaced, then the data process killed: {stall * 1e3:.0f} ms")
    finish(node, attachment, folder)


def test_stopped_data_process_is_replaced(make_node: Callable[..., Any], tmp_path: Path) -> None:
    node = make_node()
    attachment, folder = prepare(node, tmp_path)
    fio = node.fio(folder, 8)
    os.kill(attachment.pid, signal.SIGSTOP)
    found = replaced(node, attachment.pid)
    assert found.takeovers == 1
    stall = node.fio_result(fio)
    assert stall > 2, "the process was not stopped under I/O"
    print(f"longest stall with the data process stopped (watchdog 3 s): {stall * 1e3:.0f} ms")
    finish(node, attachment, folder)


def test_container_of_the_host_replaced(make_node: Callable[..., Any], tmp_path: Path) -> None:
    """The mount namespace the loop device was made in is gone, and with it the path the kernel shows for it."""
    from curve_storage.attach import loop

    node = make_node(start=False)
    node.contain_host()
    node.start_keeper()
    node.start_host()
    attachment, folder = prepare(node, tmp_path)
    fio = node.fio(folder, 8)
    node.kill_host()
    os.kill(attachment.pid, signal.SIGKILL)
    node.start_host()
    found = replaced(node, attachment.pid)
    assert found.device == attachment.device
    number = int(attachment.device.removeprefix("/dev/loop"))
    (device,) = [one for one in loop.bound_devices() if one.number == number]
    assert device.backing == "/volume", "the path is not lost: this test shows nothing"
    assert node.attach(1).device == attachment.device
    stall = node.fio_result(fio)
    print(f"longest stall with the host's container replaced: {stall * 1e3:.0f} ms")
    finish(node, attachment, folder)
