"""The path of the manual: create, attach, make a file system, use it, extend, detach; and what goes wrong on it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from curve_storage.cli.playground import Playground, PlaygroundOptions, node
from curve_storage.cli.playground.processes import alive, send
from curve_storage.units import GiB

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(400)]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="attaching needs root, FUSE and loop devices")
UP_TIMEOUT = 180.0


def sh(*argv: str, timeout: float = 120) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["volume", "create", "/bad", "--size", "100Mi"], 2, "1 GiB"),
        (["volume", "create", "/bad", "--size", "1500Mi"], 2, "GiB"),
        (["volume", "create", "/none/bad", "--size", "1Gi"], 3, "/none"),
        (["volume", "create", "/bad", "--size", "10Ti"], 7, "10 TiB"),
        (["volume", "show", "/unknown"], 3, "/unknown"),
        (["volume", "delete", "/unknown"], 3, "/unknown"),
        (["volume", "recover", "/unknown"], 3, ""),
        (["volume", "attach", "/unknown"], 3, "/unknown"),
        (["volume", "detach", "/unknown"], 3, "/unknown"),
        (["chunkserver", "drain", "999"], 3, "999"),
    ],
)
def test_mistakes_are_answered_with_what_to_do(curve: Any, arguments: list[str], status: int, words: str) -> None:
    done = curve(*arguments, check=False)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("error: ") and words in done.stderr and "→" in done.stderr
    assert done.stdout == ""


def test_status_names_everything(playground: Playground, curve: Any) -> None:
    text = curve("status", "--wait", "60").stdout
    assert text.startswith("healthy")
    data = json.loads(curve("status", "-o", "json").stdout)
    assert data["chunkservers_online"] == data["chunkservers"] == 3
    assert sum(m["leader"] for m in data["mds"]) == 1 and len(data["mds"]) == 3
    assert data["copysets_healthy"] == data["copysets"] > 0
    servers = json.loads(curve("chunkserver", "list", "-o", "json").stdout)
    assert {c["zone"] for c in servers} == {"z1", "z2", "z3"}
    assert all(len(c["members"]) == 3 for c in json.loads(curve("copyset", "list", "-o", "json").stdout))
    assert json.loads(curve("copyset", "list", "--unhealthy", "-o", "json").stdout) == []
    assert json.loads(curve("pool", "list", "-o", "json").stdout)[0]["replicas"] == 3
    assert len(json.loads(curve("server", "list", "-o", "json").stdout)) == 3
    assert "recover" in curve("scheduler", "status").stdout
    rows = json.loads(curve("playground", "status", "--dir", str(playground.directory), "-o", "json").stdout)
    assert all(row["running"] for row in rows)


def test_life_of_a_volume(curve: Any) -> None:
    curve("volume", "mkdir", "/team")
    made = json.loads(curve("volume", "create", "/team/a", "--size", "1Gi", "--owner", "me", "-o", "json").stdout)
    assert made["size"] == GiB
    assert curve("volume", "create", "/team/a", "--size", "2Gi", check=False).returncode == 5
    curve("volume", "rename", "/team/a", "/team/b")
    assert json.loads(curve("volume", "extend", "/team/b", "--size", "2Gi", "-o", "json").stdout)["size"] == 2 * GiB
    limited = json.loads(curve("volume", "throttle", "/team/b", "--iops", "500", "-o", "json").stdout)
    assert limited["throttle"] == {"iops": 500, "bytes_per_second": 0}
    listed = json.loads(curve("volume", "list", "-r", "-o", "json").stdout)
    assert [row["path"] for row in listed] == ["/team", "/team/b"]
    assert curve("volume", "delete", "/team", check=False).returncode == 5
    curve("volume", "delete", "/team/b")
    assert [row["id"] for row in json.loads(curve("volume", "list", "--deleted", "-o", "json").stdout)] == [made["id"]]
    assert json.loads(curve("volume", "recover", "/team/b", "-o", "json").stdout)["id"] == made["id"]
    curve("volume", "delete", "/team/b")
    assert "1 volumes purged" in curve("volume", "purge", "--yes").stdout
    curve("volume", "delete", "/team")
    assert json.loads(curve("volume", "list", "-r", "-o", "json").stdout) == []


@needs_root
@pytest.mark.root
def test_a_file_system_on_a_volume(playground: Playground, curve: Any, tmp_path: Path) -> None:
    curve("volume", "create", "/fs", "--size", "1Gi")
    device = curve("volume", "attach", "/fs").stdout.strip()
    assert device.startswith("/dev/loop")
    assert curve("volume", "attach", "/fs").stdout.strip() == device
    mounted = tmp_path / "mnt"
    mounted.mkdir()
    sh("mkfs.ext4", "-q", device)
    sh("mount", device, str(mounted))
    try:
        data = os.urandom(5_000_000)
        (mounted / "file").write_bytes(data)
        os.sync()
        refused = curve("volume", "detach", "/fs", check=False)
        assert refused.returncode == 5 and "nmount" in refused.stderr, refused.stderr
        (row,) = json.loads(curve("volume", "attachments", "-o", "json").stdout)
        assert row["device"] == device and row["health"] == "healthy"
        shown = json.loads(curve("volume", "show", "/fs", "-o", "json").stdout)
        assert shown["attached_node"] == "playground" and shown["allocated"] == GiB
        assert curve("volume", "delete", "/fs", check=False).returncode == 5
        # The process that serves it dies: nobody notices.
        os.kill(row["pid"], signal.SIGKILL)
        assert (mounted / "file").read_bytes() == data
        (mounted / "second").write_bytes(data[::-1])
        os.sync()
        curve("volume", "extend", "/fs", "--size", "2Gi")
        assert int(sh("blockdev", "--getsize64", device)) == 2 * GiB, "the device grows while it is mounted"
        curve("volume", "upgrade", "/fs")
        (mounted / "third").write_bytes(data)
    finally:
        sh("umount", str(mounted))
    sh("e2fsck", "-fp", device)
    sh("resize2fs", device)
    sh("e2fsck", "-fn", device)
    curve("volume", "detach", "/fs")
    assert curve("volume", "detach", "/fs", check=False).returncode == 3
    # Elsewhere, that is attached again: the same files.
    device = curve("volume", "attach", "/fs", "--read-only").stdout.strip()
    sh("mount", "-o", "ro", device, str(mounted))
    try:
        assert os.statvfs(mounted).f_blocks * os.statvfs(mounted).f_frsize > 1.5 * GiB
        assert (mounted / "file").read_bytes() == data and (mounted / "second").read_bytes() == data[::-1]
    finally:
        sh("umount", str(mounted))
    curve("volume", "detach", "/fs")
    curve("volume", "delete", "/fs", "--force")


def test_up_again_is_quick_and_harmless(playground: Playground) -> None:
    # By name: what the volume host starts for a moment (a probe, a spare) comes and goes without `up`.
    before = {row.name: playground.identity(row.name) for row in playground.status()}
    started = time.monotonic()
    asyncio.run(playground.up(PlaygroundOptions(), timeout=UP_TIMEOUT))
    print(f"up of a running playground: {time.monotonic() - started:.1f} s")
    assert all(before.values()) and len(before) >= 9
    assert {row.name: playground.identity(row.name) for row in playground.status()} == before


def test_up_replaces_what_died(playground: Playground) -> None:
    for name in ("chunkserver2", "mds1"):
        known = playground.identity(name)
        assert known is not None and send(known, signal.SIGKILL)
    asyncio.run(playground.up(PlaygroundOptions(), timeout=UP_TIMEOUT))
    assert all(one.running for one in playground.status())


@needs_root
@pytest.mark.root
def test_down_after_a_crash_leaves_nothing(playground: Playground, curve: Any, tmp_path: Path) -> None:
    curve("volume", "create", "/crashed", "--size", "1Gi")
    device = curve("volume", "attach", "/crashed").stdout.strip()
    sh("mkfs.ext4", "-q", device)
    mounted = tmp_path / "mnt"
    mounted.mkdir()
    sh("mount", device, str(mounted))
    processes = playground.processes()
    named = {row.pid for row in playground.status()}
    (attached,) = json.loads(curve("volume", "attachments", "-o", "json").stdout)
    assert 0 not in named and named | {attached["pid"]} <= {known.pid for known in processes}
    assert playground.kill_all() > len(named)
    started = time.monotonic()
    asyncio.run(playground.down())
    print(f"down after kill -9 of everything: {time.monotonic() - started:.1f} s")
    assert not any(alive(known) for known in processes)
    assert not os.path.ismount(mounted)
    assert not node.loops_under(playground.directory) and not node.fuse_mounts(playground.directory)
    assert not (playground.directory / "client.yaml").exists()
    # The same data come back.
    asyncio.run(playground.up(PlaygroundOptions(), timeout=UP_TIMEOUT))
    device = curve("volume", "attach", "/crashed").stdout.strip()
    sh("e2fsck", "-fp", device)
    curve("volume", "detach", "/crashed")
    curve("volume", "delete", "/crashed", "--force")


def test_up_after_an_interrupted_up(playground: Playground) -> None:
    asyncio.run(playground.down())
    layout = playground.layout()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curve_storage.cli.playground.state.save", _fail_at(3))
        with pytest.raises(KeyboardInterrupt):
            playground.start_missing(layout)
    assert 1 <= len(playground.processes()) <= 4
    asyncio.run(playground.up(PlaygroundOptions(), timeout=UP_TIMEOUT))
    assert all(one.running for one in playground.status())


def _fail_at(count: int) -> Any:
    """An interruption between the start of a process and the note of it."""
    from curve_storage.cli.playground.state import save

    left = [count]

    def saving(directory: Path, known: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        save(directory, known)

    return saving
