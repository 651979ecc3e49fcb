"""A real etcd of N members on loopback, for tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from curve_storage.config import EtcdConfig


class EtcdMissing(Exception):
    pass


def find_etcd() -> str:
    """The etcd binary: CURVE_ETCD, then PATH, then the cache of `make tools`."""
    named = os.environ.get("CURVE_ETCD")
    if named:
        if not os.access(named, os.X_OK):
            raise EtcdMissing(f"CURVE_ETCD={named} is not an executable file")
        return named
    found = shutil.which("etcd")
    if found:
        return found
    cache = Path(os.environ.get("CURVE_CACHE", Path.home() / ".cache" / "curve"))
    if os.access(cache / "bin" / "etcd", os.X_OK):
        return str(cache / "bin" / "etcd")
    raise EtcdMissing("etcd is not here: run `make tools`, or set CURVE_ETCD to an etcd binary")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class EtcdCluster:
    """Use as a context manager. Members are numbered from 0; faults by kill, pause, resume, start."""

    def __init__(self, directory: Path, members: int = 1, *, extra: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self._binary = find_etcd()
        self._extra = extra
        ports = free_ports(2 * members)
        self._client_ports = ports[:members]
        self._peer_ports = ports[members:]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * members
        self._logs: list[IO[bytes]] = []

    @property
    def endpoints(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self._client_ports]

    def config(self, prefix: str = "") -> EtcdConfig:
        return EtcdConfig(endpoints=self.endpoints, prefix=prefix)

    def __enter__(self) -> EtcdCluster:
        try:
            for member in range(len(self._processes)):
                self.start(member)
            self.wait_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self, member: int) -> None:
        """Starts a member, or starts it again with its data."""
        name = f"etcd{member}"
        peers = ",".join(f"etcd{n}=http://127.0.0.1:{port}" for n, port in enumerate(self._peer_ports))
        client = f"http://127.0.0.1:{self._client_ports[member]}"
        peer = f"http://127.0.0.1:{self._peer_ports[member]}"
        self.directory.mkdir(parents=True, exist_ok=True)
        log = (self.directory / f"{name}.log").open("ab")
        self._logs.append(log)
        self._processes[member] = subprocess.Popen(
            [
                self._binary,
                "--name", name,
                "--data-dir", str(self.directory / name),
                "--listen-client-urls", client,
                "--advertise-client-urls", client,
                "--listen-peer-urls", peer,
                "--initial-advertise-peer-urls", peer,
                "--initial-cluster", peers,
                "--initial-cluster-state", "new",
                "--log-level", "warn",
                "--unsafe-no-fsync",
                *self._extra,
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )  # fmt: skip

    def wait_healthy(self, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        for member, port in enumerate(self._client_ports):
            if self._processes[member] is None:
                continue
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
                        if b'"true"' in reply.read():
                            break
                except (OSError, urllib.error.URLError):
                    pass
                process = self._processes[member]
                if process is not None and process.poll() is not None:
                    raise RuntimeError(f"etcd member {member} ended with {process.returncode}: {self.log(member)}")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"etcd member {member} is not healthy: {self.log(member)}")
                time.sleep(0.05)

    def log(self, member: int) -> str:
        return (self.directory / f"etcd{member}.log").read_text(errors="replace")[-2000:]

    def leader(self) -> int:
        """The member that leads etcd's own raft group."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for member, port in enumerate(self._client_ports):
                if self._processes[member] is None:
                    continue
                url = f"http://127.0.0.1:{port}/v3/maintenance/status"
                try:
                    with urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=5) as reply:
                        status = json.load(reply)
                except (OSError, urllib.error.URLError):
                    continue
                if status.get("leader", "0") == status["header"]["member_id"]:
                    return member
            time.sleep(0.05)
        raise TimeoutError("etcd has no leader")

    def alive(self, member: int) -> bool:
        return self._processes[member] is not None

    def kill(self, member: int) -> None:
        process = self._processes[member]
        self._processes[member] = None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self, member: int) -> None:
        self._signal(member, signal.SIGSTOP)

    def resume(self, member: int) -> None:
        self._signal(member, signal.SIGCONT)

    def stop(self) -> None:
        for member in range(len(self._processes)):
            self.kill(member)
        for log in self._logs:
            log.close()
        self._logs.clear()

    def _signal(self, member: int, number: signal.Signals) -> None:
        process = self._processes[member]
        assert process is not None, f"member {member} does not run"
        process.send_signal(number)
