"""Loop devices that a dead node left attached: which of the machine's are ours, and detaching them.

The kernel keeps a loop device when the process that attached it dies. Others on this machine use loop devices too, so
one is ours only by proof: its backing file is one of the box's data files, or it was attached under a path that only
a node has and no living mount leads to the file system it lies on.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from curve_storage.mountinfo import Mount, mounts

LOOP_CLR_FD = 0x4C01
LOOP_GET_STATUS64 = 0x4C05
LOOP_MAJOR = 7
# struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encrypt type, key size, flags, file name, …
_STATUS = struct.Struct("<QQQQQIIII64s64s32s2Q")
NODE_FOLDERS = ("/var/lib/curve/", "/var/lib/kubelet/")
IMAGE_STORE = "containerd"
PATIENCE = 5.0


@dataclass(frozen=True)
class Loop:
    """An attached loop device.

    device, inode: of the backing file; behind: the block device that the backing file is, 0 for a regular file;
    path: as the backing file was called when it was attached.
    """

    number: int
    device: int
    inode: int
    behind: int
    path: str


def attached() -> list[Loop]:
    """Every loop device of the machine that has a backing file."""
    found = []
    for folder in Path("/sys/block").glob("loop*"):
        backing = folder / "loop/backing_file"
        try:
            path = backing.read_text().rstrip("\n")
            descriptor = os.open(f"/dev/{folder.name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # not attached, or no longer
        status = bytearray(_STATUS.size)
        try:
            fcntl.ioctl(descriptor, LOOP_GET_STATUS64, status)
        except OSError:
            continue  # detached meanwhile, or its file system answers no more: judged by its path alone, below
        finally:
            os.close(descriptor)
        fields = _STATUS.unpack(status)
        name = fields[9].split(b"\0")[0].decode(errors="replace")
        found.append(Loop(int(folder.name.removeprefix("loop")), fields[0], fields[1], fields[2], name or path))
    return found


def mounted_devices(tables: Iterable[list[Mount]]) -> set[int]:
    """Devices, as `st_dev` has them, of all file systems in any of the given tables of mounts."""
    return {mount.number for table in tables for mount in table}


def living_mounts() -> list[list[Mount]]:
    """The mounts of one process for each mount namespace in which something lives."""
    tables: dict[str, list[Mount]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            namespace = os.readlink(folder / "ns/mnt")
            if namespace not in tables:
                tables[namespace] = mounts(folder.name)
        except OSError:
            continue  # ended meanwhile
    return list(tables.values())


def ours(loops: Iterable[Loop], files: set[tuple[int, int]], living: set[int], lost: set[int]) -> list[Loop]:
    """Those loop devices that belonged to what has died.

    files: (device, inode) of the dead's data files; living: devices of file systems mounted in any living mount
    namespace; lost: devices of file systems that the dead had mounted. A loop device over one of ours is ours.
    """
    listed = list(loops)
    found = [
        loop
        for loop in listed
        if (loop.device, loop.inode) in files
        or loop.device in lost - living
        or (loop.path.startswith(NODE_FOLDERS) and loop.device not in living)
    ]
    numbers = {os.makedev(LOOP_MAJOR, loop.number) for loop in found}
    stacked = [loop for loop in listed if loop.behind in numbers and loop not in found]
    return [*stacked, *found]


def files_below(folder: Path, inodes: set[int]) -> set[tuple[int, int]]:
    """(device, inode) of the regular files below `folder` whose inode number is in `inodes`."""
    found = set()
    for base, folders, _ in os.walk(folder):
        if IMAGE_STORE in folders:
            folders.remove(IMAGE_STORE)  # large, and nobody makes a disk of it
        with os.scandir(base) as entries:
            for entry in entries:
                if entry.inode() in inodes and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.add((status.st_dev, status.st_ino))
    return found


def detach(loops: Iterable[Loop]) -> list[Loop]:
    """Detaches and returns those that stay attached: something of the machine itself still has them open."""
    remaining = list(loops)
    for loop in remaining:
        try:
            descriptor = os.open(f"/dev/loop{loop.number}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.ioctl(descriptor, LOOP_CLR_FD)
        except OSError:
            pass  # detached by the kernel meanwhile; what stays is seen below
        finally:
            os.close(descriptor)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        numbers = {(loop.number, loop.device, loop.inode) for loop in attached()}
        remaining = [loop for loop in remaining if (loop.number, loop.device, loop.inode) in numbers]
        if not remaining:
            break
        time.sleep(0.05)
    return remaining
