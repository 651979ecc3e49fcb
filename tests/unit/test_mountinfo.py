"""The kernel's table of mounts: fields, escapes, hidden mounts, and that it agrees with stat(2)."""

from __future__ import annotations

import os
from pathlib import Path

from curve_storage.mountinfo import mounts, parse, visible

TEXT = (
    "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
    "40 36 0:55 / /var/lib/a\\040b/mount ro,nosuid shared:7 master:2 - fuse.curve curve:12 rw\n"
    "broken line\n"
    "41 36 0:56 / /mnt2 rw - cgroup cgroup ro,cpu,cpuacct\n"
    "42 36 x:y / /mnt3 rw - ext4 /dev/sda rw\n"
)


def test_fields() -> None:
    first, second, third = parse(TEXT)
    assert (first.device, first.root, first.target) == ((98, 0), "/mnt1", Path("/mnt2"))
    assert (first.filesystem, first.source, first.read_only) == ("ext3", "/dev/root", False)
    assert first.options == {"rw", "noatime"} and first.super_options == {"rw", "errors=continue"}
    assert second.target == Path("/var/lib/a b/mount") and second.source == "curve:12"
    assert second.read_only, "the mount itself is"
    assert third.read_only and "cpuacct" in third.super_options, "the file system is"


def test_the_last_mount_of_a_target_is_the_visible_one() -> None:
    table = parse(TEXT)
    assert visible("/mnt2/", table) == table[2]
    assert visible("/mnt1", table) is None


def test_bytes_outside_of_utf8_survive() -> None:
    name = os.fsdecode(b"/mnt/\xff")
    (mount,) = parse(f"1 2 0:1 / {name} rw - tmpfs tmpfs rw\n")
    assert os.fsencode(mount.target) == b"/mnt/\xff"


def test_numbers_are_those_of_stat() -> None:
    root = visible("/", mounts())
    assert root is not None and root.number == os.stat("/").st_dev
    assert visible("/", mounts(os.getpid())) == root
