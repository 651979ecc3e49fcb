"""What a box may leave on a machine, listed before and after, to compare."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

from curve_storage import mountinfo
from e2e.box import loops, network
from e2e.box.command import run

SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "fs/inotify/max_user_instances",
    "net/ipv4/ip_forward",
    "net/netfilter/nf_conntrack_max",
)
FOLDERS = ("/", "/etc", "/etc/cni/net.d", "/opt", "/run", "/var/lib", "/var/log")


@dataclass(frozen=True)
class Traces:
    mounts: frozenset[str]
    namespaces: frozenset[str]
    cgroups: frozenset[str]
    loops: frozenset[str]
    links: frozenset[str]
    sysctls: frozenset[str]
    folders: frozenset[str]
    processes: frozenset[str]

    def added_since(self, before: Traces) -> dict[str, list[str]]:
        """What is here now and was not before; changed settings appear as added."""
        return {
            field.name: sorted(added)
            for field in fields(self)
            if (added := getattr(self, field.name) - getattr(before, field.name))
        }


def look(name: str, data: Path) -> Traces:
    """Traces on the machine now. name: of the box, for its processes; data: its folder.

    Not looked at is other work on the machine: mounts and loop devices below the temporary folder, and loop devices
    over a FUSE file system that something alive has mounted.
    """
    temporary = tempfile.gettempdir()
    targets = [str(mount.target) for mount in mountinfo.mounts()]
    living = loops.mounted_devices(loops.living_mounts())
    files = [
        (loop.number, path)
        for loop in loops.attached()
        if (path := _backing(loop.number)) and not (os.major(loop.device) == 0 and loop.device in living)
    ]
    return Traces(
        mounts=frozenset(target for target in targets if not target.startswith(temporary)),
        namespaces=frozenset(each.name for each in network.NAMESPACES.glob("*")),
        cgroups=frozenset(
            str(group) for top in Path("/sys/fs/cgroup").iterdir() for group in top.glob("*") if group.is_dir()
        ),
        loops=frozenset(f"loop{number} {path}" for number, path in files if not path.startswith(temporary)),
        links=frozenset(link["ifname"] for link in json.loads(run(["ip", "-j", "link"]))),
        sysctls=frozenset(
            f"{setting}={Path('/proc/sys', setting).read_text().strip()}"
            for setting in SYSCTLS
            if Path("/proc/sys", setting).exists()
        ),
        folders=frozenset(str(each) for folder in FOLDERS for each in Path(folder).glob("*")),
        processes=frozenset(_processes(name, data)),
    )


def _backing(number: int) -> str:
    try:
        return Path(f"/sys/block/loop{number}/loop/backing_file").read_text().strip()
    except OSError:
        return ""


def _processes(name: str, data: Path) -> list[str]:
    """Processes that mention the box on their command line or belong to its control groups."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            groups = (folder / "cgroup").read_text()
        except OSError:
            continue
        if f":/{name}/" in groups or (str(data) in words and "pytest" not in words):
            found.append(f"{folder.name} {words[:100]}")
    return found
