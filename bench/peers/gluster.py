"""GlusterFS: one glusterd, a volume of three bricks (replica 3) in directories of the disk under test, a FUSE mount.

Two ways. "gluster": as it comes, writes are answered from the page caches of the bricks. "gluster-strict": O_DIRECT
reaches the bricks and nothing is written behind, which comes nearer to what our acknowledgement means.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bench.peers.sandbox import Daemons, command, succeeds

PACKAGES = {
    "glusterfs-server": "glusterd and bricks",
    "glusterfs-client": "the FUSE mount",
    "iproute2": "loopback of the sandbox",
    "fio": "load",
}
PROGRAMS = ("glusterd", "gluster", "glusterfs")
ADDRESS = "127.0.0.2"  # a peer at 127.0.0.1 is refused as localhost
VOLUME = "bench"
STRICT = {
    "performance.write-behind": "off",
    "performance.strict-o-direct": "on",
    "network.remote-dio": "disable",
    "performance.read-ahead": "off",
    "performance.io-cache": "off",
    "performance.quick-read": "off",
}


def configuration(directory: Path) -> str:
    """glusterd.vol"""
    options = {
        "working-directory": directory / "work",
        "run-directory": directory / "run",
        "glusterd-sockfile": directory / "run" / "glusterd.socket",
        "transport-type": "socket",
        "transport.address-family": "inet",
        "transport.socket.bind-address": ADDRESS,
        "transport.socket.keepalive-time": 10,
        "ping-timeout": 0,
        "event-threads": 1,
    }
    lines = ["volume management", "    type mgmt/glusterd"]
    lines += [f"    option {key} {value}" for key, value in options.items()]
    return "\n".join([*lines, "end-volume"]) + "\n"


class Gluster:
    def __init__(self, directory: Path, *, strict: bool) -> None:
        self._directory, self._strict = directory, strict
        self._mount = directory / "mnt"
        self._daemons = Daemons(directory / "log")

    def up(self, size: int) -> str:
        """Returns the path of a file to be made on the mount."""
        for part in ("work", "run", "mnt", "brick1", "brick2", "brick3"):
            (self._directory / part).mkdir(parents=True, exist_ok=True)
        for system in ("/var/log/glusterfs", "/run/gluster"):  # its programs write there whatever they are told
            os.makedirs(system, exist_ok=True)
            command(["mount", "-t", "tmpfs", "tmpfs", system])
        file = self._directory / "glusterd.vol"
        file.write_text(configuration(self._directory))
        log = str(self._directory / "log" / "glusterd.log")
        pid = str(self._directory / "run" / "glusterd.pid")
        self._daemons.start("glusterd", ["glusterd", "-f", str(file), "-p", pid, "-l", log, "--no-daemon"])
        self._daemons.until("glusterd to answer", lambda: succeeds(self._gluster("pool", "list")), 90)
        bricks = [f"{ADDRESS}:{self._directory / f'brick{number}'}" for number in (1, 2, 3)]
        command(self._gluster("volume", "create", VOLUME, "replica", "3", *bricks, "force"), timeout=120)
        for key, value in STRICT.items() if self._strict else ():
            command(self._gluster("volume", "set", VOLUME, key, value))
        command(self._gluster("volume", "start", VOLUME), timeout=120)
        argv = ["glusterfs", f"--volfile-server={ADDRESS}", f"--volfile-id={VOLUME}"]
        command([*argv, f"--log-file={self._directory / 'log' / 'mount.log'}", str(self._mount)])
        self._daemons.until("the mount to be usable", lambda: succeeds(["stat", "-f", str(self._mount)]), 60)
        if not os.path.ismount(self._mount):
            raise RuntimeError(f"{self._mount} is no mount\n{self._daemons.tails()}")
        return str(self._mount / "file")

    def _gluster(self, *arguments: str) -> list[str]:
        return [
            "gluster",
            "--mode=script",
            f"--glusterd-sock={self._directory / 'run' / 'glusterd.socket'}",
            *arguments,
        ]

    def version(self) -> str:
        return command(["gluster", "--version"]).splitlines()[0].strip()

    def down(self) -> None:
        subprocess.run(["umount", "-l", str(self._mount)], capture_output=True, timeout=60)
        self._daemons.stop()
