"""Ceph: one monitor, three OSDs (bluestore in files of the disk under test), a pool of size 3, an RBD image.

The image is reached by fio's own rbd engine, without a cache in the client: a write is answered when all three OSDs
have it in their log, so every write is durable. Authentication and TLS are off, which is to the peer's advantage.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from bench.peers.sandbox import Daemons, command, succeeds
from curve_storage.units import GiB, MiB

PACKAGES = {
    "ceph-mon": "the monitor",
    "ceph-osd": "the three OSDs",
    "ceph-common": "ceph and rbd commands",
    "python3-ceph-argparse": "the ceph command needs it",
    "iproute2": "loopback of the sandbox",
    "fio": "load",
}
PROGRAMS = ("ceph-mon", "ceph-osd", "ceph", "rbd", "monmaptool")
POOL = "rbd"
IMAGE = "bench"
_OSDS = 3


def configuration(directory: Path, fsid: str, *, disk: int) -> str:
    """ceph.conf. disk: bytes of each OSD's file."""
    sections: dict[str, dict[str, object]] = {
        "global": {
            "fsid": fsid,
            "mon host": "v2:127.0.0.1:3300/0",
            "mon initial members": "a",
            "public addr": "127.0.0.1",
            "cluster addr": "127.0.0.1",
            "ms bind ipv6": "false",
            "auth cluster required": "none",
            "auth service required": "none",
            "auth client required": "none",
            "run dir": directory / "run",
            "admin socket": directory / "run" / "$name.asok",
            "log file": directory / "log" / "$name.log",
            "pid file": directory / "run" / "$name.pid",
            "mon data": directory / "mon" / "$id",
            "osd data": f"{directory}/osd$id",
            "mon allow pool delete": "true",
            "mon data avail warn": 2,
            "mon data avail crit": 1,
            "mon osd full ratio": 0.98,
            "mon osd nearfull ratio": 0.97,
            "osd pool default size": _OSDS,
            "osd pool default min size": 2,
            "osd pool default pg num": 32,
            "osd pool default pgp num": 32,
            "osd pool default pg autoscale mode": "off",
            "osd crush chooseleaf type": 0,  # all three on one host
            "osd class update on start": "true",
            "osd objectstore": "bluestore",
            "bluestore block size": disk,
            "bluestore block create": "true",
            "bluestore block db create": "false",
            "bluestore block db size": 0,
            "bluestore block wal create": "false",
            "osd memory target": 896 * MiB,
            "bluestore cache autotune": "false",
            "bluestore cache size": 256 * MiB,
        },
        "client": {"rbd cache": "false"},
    }
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


class Ceph:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "ceph.conf"
        self._daemons = Daemons(directory / "log")

    def up(self, size: int) -> str:
        """A cluster with an image of at least `size` bytes; returns "pool/image"."""
        fsid = str(uuid.uuid4())
        for part in ("run", "mon"):
            (self._directory / part).mkdir(parents=True, exist_ok=True)
        self._file.write_text(configuration(self._directory, fsid, disk=3 * GiB + 2 * size))
        os.environ["CEPH_CONF"] = str(self._file)  # fio's engine finds it here
        conf = ["-c", str(self._file)]
        monmap = str(self._directory / "monmap")
        command(["monmaptool", "--create", "--addv", "a", "[v2:127.0.0.1:3300]", "--fsid", fsid, monmap])
        command(["ceph-mon", *conf, "--mkfs", "-i", "a", "--monmap", monmap])
        self._daemons.start("mon.a", ["ceph-mon", *conf, "-i", "a", "-f"])
        self._daemons.until("the monitor to answer", lambda: succeeds(self._ceph("mon", "stat")), 90)
        for number in range(_OSDS):
            self._osd(number, conf)
        self._daemons.until("three OSDs up", self._all_up, 180)
        command(self._ceph("osd", "pool", "create", POOL, "32", "32", "replicated"), timeout=90)
        command(self._ceph("osd", "pool", "application", "enable", POOL, "rbd"), timeout=90)
        image = [*("rbd", *conf), "create", IMAGE, "--pool", POOL, "--size", f"{-(-size // MiB)}M"]
        command(image, timeout=180)
        return f"{POOL}/{IMAGE}"

    def _osd(self, number: int, conf: list[str]) -> None:
        identity = str(uuid.uuid4())
        (self._directory / f"osd{number}").mkdir()
        command(self._ceph("osd", "new", identity, str(number)))
        command(["ceph-osd", *conf, "-i", str(number), "--mkfs", "--osd-uuid", identity], timeout=180)
        command(self._ceph("osd", "crush", "add", f"osd.{number}", "1.0", "root=default", f"host=h{number}"))
        self._daemons.start(f"osd.{number}", ["ceph-osd", *conf, "-i", str(number), "-f"])

    def _all_up(self) -> bool:
        try:
            return bool(json.loads(command(self._ceph("osd", "stat", "-f", "json")))["num_up_osds"] == _OSDS)
        except (RuntimeError, ValueError, KeyError):
            return False

    def _ceph(self, *arguments: str) -> list[str]:
        return ["ceph", "-c", str(self._file), "--connect-timeout", "20", *arguments]

    def version(self) -> str:
        return command(["ceph", "--version"]).split("(")[0].strip()

    def down(self) -> None:
        self._daemons.stop()
