"""A node of its own for a test: keeper, volume host, data processes over local files; everything is undone after it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from curve_storage import mountinfo
from curve_storage.attach import loop
from curve_storage.fuse import mount
from curve_storage.proto import volumehost_pb2 as pb
from curve_storage.proto import volumehost_pb2_grpc
from curve_storage.rpc.errors import from_status

MiB = 1 << 20
PATIENCE = 60.0


def until(check: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience} s: {what}")
        time.sleep(0.05)


def run(*command: str | Path, check: bool = True, timeout: float = 60) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


class Node:
    """root: as in the host's configuration; volumes are the files of `devices`."""

    def __init__(self, folder: Path, delay: float) -> None:
        self.root = folder / "n"
        self.devices = folder / "devices"
        self.devices.mkdir()
        self.config = folder / "host.yaml"
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.config.write_text(
            json.dumps(
                {
                    "root": str(self.root), "node": "n1", "http": "127.0.0.1:0", "watchdog": 3.0,
                    "device_files": str(self.devices), "device_delay": delay, "open_timeout": 60.0,
                }
            )
        )  # fmt: skip
        self.host: subprocess.Popen[bytes] | None = None
        self.keeper: subprocess.Popen[bytes] | None = None
        self.background: list[subprocess.Popen[Any]] = []
        self.mounted: list[Path] = []
        self._channel: grpc.Channel | None = None
        self.prefix: tuple[str, ...] = ()
        self.shared: Path | None = None
        self.devices_used: set[str] = set()

    # -- processes

    def _start(self, module: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        command = [*prefix, sys.executable, "-m", f"curve_storage.volumehost.{module}", *arguments]
        with open(self.logs / f"{module}.log", "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def contain_host(self) -> None:
        """From now on the host runs as in a pod: a mount namespace of its own, mounts shared both ways."""
        self.shared = self.root.parent.parent
        run("mount", "--bind", self.shared, self.shared)
        run("mount", "--make-shared", self.shared)
        self.prefix = ("unshare", "--mount", "--propagation", "unchanged")

    def start_keeper(self) -> None:
        self.keeper = self._start("keeper", "--socket", str(self.root / "keeper.sock"))

    def start_host(self) -> None:
        self.host = self._start("main", "--config", str(self.config), prefix=self.prefix)
        self._channel = None
        host = self.host

        def answers() -> bool:
            assert host.poll() is None, "the host ended: " + (self.logs / "main.log").read_text()[-2000:]
            with contextlib.suppress(Exception):
                self.call("Info", pb.InfoRequest(), timeout=5)
                return True
            return False

        until(answers, "the host answers")

    def kill_host(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.host is not None
        self.host.send_signal(number)
        self.host.wait(30)

    def data_processes(self, spares: bool = False) -> list[int]:
        """Alive, of this node only; a spare is one as soon as it serves a volume."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes()
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    ours = str(self.root).encode() in line and b"volume_process" in line and state != "Z"
                    idle = b"--spare" in line and not (entry / "comm").read_text().startswith("curve-vol")
                    if ours and (spares or not idle):
                        found.append(int(entry.name))
        return found

    def http_addresses(self) -> list[str]:
        """host:port that the host listens on."""
        assert self.host is not None
        inodes = set()
        for entry in Path(f"/proc/{self.host.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
        found = []
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.append(f"127.0.0.1:{int(fields[1].split(':')[1], 16)}")
        return found

    # -- calls

    def call(self, method: str, request: Any, timeout: float = PATIENCE) -> Any:
        """Raises the CurveError of the host."""
        if self._channel is None:
            self._channel = grpc.insecure_channel(
                f"unix:{self.root / 'host.sock'}", options=(("grpc.use_local_subchannel_pool", 1),)
            )
        stub = volumehost_pb2_grpc.VolumeHostStub(self._channel)
        try:
            return getattr(stub, method)(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_status(error.code(), error.details(), error.trailing_metadata()) from None

    def create(self, volume_id: int, size: int) -> Path:
        path = self.devices / str(volume_id)
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    def attach(self, volume_id: int, **fields: Any) -> pb.Attachment:
        attachment: pb.Attachment = self.call(
            "Attach", pb.AttachRequest(volume_id=volume_id, path=f"/v{volume_id}", **fields)
        ).attachment
        self.devices_used.add(attachment.device)
        return attachment

    def one(self, volume_id: int) -> pb.Attachment:
        for found in self.call("List", pb.ListRequest()).attachments:
            if found.volume_id == volume_id:
                return found
        raise AssertionError(f"volume {volume_id} is not attached")

    def healthy(self, volume_id: int) -> pb.Attachment:
        def check() -> pb.Attachment | None:
            found = self.one(volume_id)
            return found if found.health == pb.HEALTH_HEALTHY and found.pid else None

        return until(check, "the volume is healthy")

    # -- what a user does

    def format_and_mount(self, device: str, folder: Path) -> None:
        run("mkfs.ext4", "-q", "-F", device)
        folder.mkdir(exist_ok=True)
        run("mount", device, folder)
        self.mounted.append(folder)

    def unmount(self, folder: Path) -> None:
        run("umount", folder)
        self.mounted.remove(folder)

    def fio(self, folder: Path, seconds: int) -> subprocess.Popen[str]:
        """A verifying random writer, well under way when this returns."""
        command = [
            "fio", "--name=v", f"--directory={folder}", "--size=48m", "--rw=randwrite", "--bsrange=4k-64k",
            "--blockalign=4k", "--iodepth=16", "--ioengine=libaio", "--direct=1", "--time_based",
            f"--runtime={seconds}", "--verify=crc32c", "--verify_backlog=256", "--verify_fatal=1",
            "--output-format=json",
        ]  # fmt: skip
        run(*command, "--create_only=1")
        run("sync", "-f", folder)  # so that only fio's own writes are counted below
        before = self.call("Stats", pb.StatsRequest(volume_id=1)).writes
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.background.append(process)
        until(lambda: self.call("Stats", pb.StatsRequest(volume_id=1)).writes > before + 500, "fio writes")
        return process

    def fio_result(self, process: subprocess.Popen[str], patience: float = 120) -> float:
        """The longest request in seconds; fails on any error fio saw."""
        out, err = process.communicate(timeout=patience)
        assert process.returncode == 0, out[-3000:] + err[-3000:]
        job = json.loads(out[out.index("{") :])["jobs"][0]
        assert job["error"] == 0
        assert job["write"]["total_ios"] > 0 and job["read"]["total_ios"] > 0
        return float(max(job[kind]["lat_ns"]["max"] for kind in ("read", "write"))) / 1e9

    def loop_devices(self) -> list[loop.LoopDevice]:
        """Of this node; those whose path was lost are known by their number."""
        prefix = str(self.root) + "/"
        return [
            device
            for device in loop.bound_devices()
            if device.backing.startswith(prefix)
            or (device.backing == "/volume" and str(device.path) in self.devices_used)
        ]

    # -- the end

    def undo(self) -> None:
        for process in self.background:
            if process.poll() is None:
                process.kill()
        for process in (self.host,):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(10)
        if self.keeper is not None and self.keeper.poll() is None:
            self.keeper.kill()
            self.keeper.wait(10)
        for pid in self.data_processes(spares=True):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.data_processes(spares=True), "data processes end")
        for process in self.background:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        for folder in self.mounted:
            run("umount", "-l", folder, check=False)
        for device in self.loop_devices():
            loop.detach(device, force=True)
        for entry in mountinfo.mounts():
            if str(entry.target).startswith(str(self.root) + "/"):
                mount.unmount(entry.target, lazy=True)
        if self.shared is not None:
            run("umount", "-l", self.shared, check=False)
        until(lambda: not self.loop_devices(), "loop devices are gone", 20)


@pytest.fixture(scope="session", autouse=True)
def own_mounts() -> None:
    """A mount namespace of its own: a namespace that others on this machine make would hold our mounts after umount."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive, private = 0x20000, 0x4000, 0x40000
    if os.geteuid() == 0 and (
        libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, recursive | private, None)
    ):
        pytest.fail(f"no mount namespace: {os.strerror(ctypes.get_errno())}")


def _missing() -> str | None:
    if os.geteuid() != 0:
        return "root is needed to mount"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not Path(device).exists():
            return f"{device} is missing"
    for program in ("fio", "mkfs.ext4", "e2fsck"):
        if shutil.which(program) is None:
            return f"{program} is not installed (apt-get install fio e2fsprogs)"
    return None


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    reason = _missing()
    if reason is not None:
        pytest.fail(reason)
    nodes: list[Node] = []

    def make(delay: float = 0.001, start: bool = True) -> Node:
        folder = tmp_path / f"{len(nodes)}"
        folder.mkdir()
        node = Node(folder, delay)
        nodes.append(node)
        if start:
            node.start_keeper()
            node.start_host()
        return node

    yield make
    for node in nodes:
        node.undo()
