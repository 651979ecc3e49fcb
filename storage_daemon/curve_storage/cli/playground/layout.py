"""Which processes a playground has, their ports, directories, configuration files and command lines."""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from curve_storage.cli.playground.state import State
from curve_storage.errors import NotFound, ResourceExhausted
from curve_storage.units import GiB, MiB
from curve_storage.wire.token import Keyring

HOST = "127.0.0.1"
MDS_COUNT = 3
DEFAULT_POOL_SIZE = 4 * GiB
NODE = "playground"
PORTS = range(21000, 32000)
LOG_SEGMENT = 16 * MiB
LOG_SIZE = 256 * MiB
READY_CHUNKS = 4
LONGEST_SOCKET = 107  # bytes in sun_path
_NEEDED_SOCKET = "volumehost/volumes/1000000/control.sock.new"


@dataclass(frozen=True)
class Program:
    """namespace: file of the network namespace to start it in; empty for the present one."""

    name: str
    argv: list[str]
    log: Path
    namespace: str = ""


def kind_of(name: str) -> str:
    """mds2 → mds"""
    return name.rstrip("0123456789")


def find_etcd() -> str:
    """$CURVE_ETCD, then PATH, then the cache of built programs. Raises NotFound that tells how to get it."""
    explicit = os.environ.get("CURVE_ETCD")
    cache = Path(
        os.environ.get("CURVE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "curve"
    )
    for candidate in (explicit, shutil.which("etcd"), str(cache / "bin" / "etcd")):
        if candidate and os.access(candidate, os.X_OK) and Path(candidate).is_file():
            return candidate
    raise NotFound(
        "the etcd program was not found",
        where=f"CURVE_ETCD, PATH, {cache / 'bin'}",
        todo="Install etcd, or build it with `make tools`, or set CURVE_ETCD to its path",
    )


def names(state: State) -> list[str]:
    """In the order of starting."""
    found = ["etcd", *(f"mds{n}" for n in range(1, MDS_COUNT + 1))]
    found += [f"chunkserver{n}" for n in range(1, state.chunkservers + 1)]
    if state.volumehost:
        found += ["keeper", "volumehost"]
    return found


def needed_ports(state: State) -> list[str]:
    found = ["etcd.client", "etcd.peer"]
    for n in range(1, MDS_COUNT + 1):
        found += [f"mds{n}.grpc", f"mds{n}.http"]
    for n in range(1, state.chunkservers + 1):
        found += [f"chunkserver{n}.data", f"chunkserver{n}.http"]
    if state.volumehost:
        found.append("volumehost.http")
    return found


def choose_ports(state: State, *, anew: bool, rng: random.Random | None = None) -> None:
    """Fills in ports that are missing; with `anew` replaces those that another program has taken meanwhile.

    Below the range the system takes ports of outgoing connections from: such a connection could have taken the port of
    a process that is just being restarted. Raises ResourceExhausted when none is free."""
    rng = rng or random.Random()
    held: list[socket.socket] = []
    try:
        for name in needed_ports(state):
            port = state.ports.get(name, 0)
            if port and (not anew or _free(port, held)):
                continue
            candidates = [n for n in rng.sample(PORTS, 2000) if n not in state.ports.values()]
            found = next((n for n in candidates if _free(n, held)), None)
            if found is None:
                raise ResourceExhausted(
                    "no free port",
                    where=f"{HOST}:{PORTS.start}-{PORTS.stop - 1}",
                    todo="End programs that listen there",
                )
            state.ports[name] = found
    finally:
        for sock in held:
            sock.close()


def _listening(port: int) -> socket.socket:
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, port))
    except OSError:
        sock.close()
        raise
    return sock


def _free(port: int, held: list[socket.socket]) -> bool:
    try:
        held.append(_listening(port))
    except OSError:
        return False
    return True


class Layout:
    """Paths and files of the playground in `directory`."""

    def __init__(self, directory: Path, state: State) -> None:
        self.directory = directory
        self.state = state
        self.logs = directory / "logs"
        self.client_file = directory / "client.yaml"
        self.host_root = directory / "volumehost"
        self.host_socket = self.host_root / "host.sock"
        self.keyring = directory / "keyring.json"

    def address(self, port: str) -> str:
        """host:port of a port's name, e.g. "mds1.grpc"."""
        return f"{self.state.place(port.partition('.')[0]).address}:{self.state.ports[port]}"

    def chunkserver_data(self, n: int) -> Path:
        placed = self.state.place(f"chunkserver{n}").data
        return Path(placed) if placed else self.directory / f"chunkserver{n}"

    @property
    def mds_addresses(self) -> list[str]:
        return [self.address(f"mds{n}.grpc") for n in range(1, MDS_COUNT + 1)]

    @property
    def socket_too_long(self) -> bool:
        return len(os.fsencode(self.directory / _NEEDED_SOCKET)) > LONGEST_SOCKET

    def write(self) -> None:
        """All configuration files and directories, from the present ports. Data is left alone."""
        for part in ("logs", "config", "etcd"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        (self.directory / "etcd").chmod(0o700)
        if not self.keyring.exists():
            Keyring.generate().save(self.keyring)
        for n in range(1, MDS_COUNT + 1):
            self._yaml(f"config/mds{n}.yaml", self._mds(n))
        for n in range(1, self.state.chunkservers + 1):
            self.chunkserver_data(n).mkdir(exist_ok=True)
            self._yaml(f"config/chunkserver{n}.yaml", self._chunkserver(n))
        self._yaml("config/client.yaml", {"mds": self.mds_addresses})
        if self.state.volumehost:
            self.host_root.mkdir(exist_ok=True)
            self._yaml("config/volumehost.yaml", self._volumehost())

    def programs(self) -> dict[str, Program]:
        """By name, in the order of starting."""
        found: dict[str, Program] = {}
        for name in names(self.state):
            found[name] = Program(
                name,
                self._argv(name, kind_of(name)),
                self.logs / f"{name}.log",
                self.state.place(name).namespace,
            )
        return found

    def _argv(self, name: str, kind: str) -> list[str]:
        config = str(self.directory / "config" / f"{name}.yaml")
        match kind:
            case "etcd":
                return self._etcd()
            case "keeper":
                module = "curve_storage.volumehost.keeper"
                return [sys.executable, "-m", module, "--socket", str(self.host_root / "keeper.sock")]
            case _:
                return [sys.executable, "-m", f"curve_storage.{kind}.main", "--config", config]

    def _etcd(self) -> list[str]:
        client, peer = self.address("etcd.client"), self.address("etcd.peer")
        return [
            find_etcd(), "--name", "playground", "--data-dir", str(self.directory / "etcd"),
            "--listen-client-urls", f"http://{client}", "--advertise-client-urls", f"http://{client}",
            "--listen-peer-urls", f"http://{peer}", "--initial-advertise-peer-urls", f"http://{peer}",
            "--initial-cluster", f"playground=http://{peer}", "--auto-compaction-retention", "1h",
            "--log-level", "warn",
        ]  # fmt: skip

    def _mds(self, n: int) -> dict[str, Any]:
        return {
            "name": f"mds{n}",
            "listen": self.address(f"mds{n}.grpc"),
            "advertise": self.address(f"mds{n}.grpc"),
            "http": self.address(f"mds{n}.http"),
            "etcd": {"endpoints": [self.address("etcd.client")]},
            "keyring": str(self.keyring),
        }

    def _chunkserver(self, n: int) -> dict[str, Any]:
        return {
            "name": f"chunkserver{n}",
            "data": str(self.chunkserver_data(n)),
            "listen": self.address(f"chunkserver{n}.data"),
            "advertise": self.address(f"chunkserver{n}.data"),
            "http": self.address(f"chunkserver{n}.http"),
            "mds": self.mds_addresses,
            "server": f"server{n}",
            "zone": f"z{n}",
            "pool": {"size": self.state.pool_size, "first_batch": READY_CHUNKS, "ready": READY_CHUNKS},
            "log": {"segment_size": LOG_SEGMENT, "max_size": LOG_SIZE},
            "keyring": str(self.keyring),
        }

    def _volumehost(self) -> dict[str, Any]:
        return {
            "root": str(self.host_root),
            "node": NODE,
            "client": str(self.directory / "config" / "client.yaml"),
            "http": self.address("volumehost.http"),
        }

    def _yaml(self, name: str, data: dict[str, Any]) -> None:
        path = self.directory / name
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(yaml.safe_dump(data, sort_keys=False))
        os.replace(temporary, path)
