"""The classic danger of a block device served from user space: short of memory, the kernel writes dirty pages to it and
waits for the process that serves it. A group with little memory fills itself with dirty pages; they must drain."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curve_storage.proto import volumehost_pb2 as pb

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
MiB = 1 << 20
LIMIT = 48 * MiB
SIZE = 160 * MiB
CAP_SYS_RESOURCE = 24


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory cgroup limited to LIMIT; version 1 or 2."""
    base = Path("/sys/fs/cgroup")
    name = f"curve-test-{os.getpid()}"
    if (base / "memory" / "memory.limit_in_bytes").exists():
        group, limit = base / "memory" / name, "memory.limit_in_bytes"
    elif "memory" in (base / "cgroup.subtree_control").read_text().split():
        group, limit = base / name, "memory.max"
    else:
        pytest.skip("no memory cgroup can be made here")
    group.mkdir()
    (group / limit).write_text(str(LIMIT))
    yield group
    # What still lives there goes on elsewhere.
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (group.parent / "cgroup.procs").write_text(pid)
    deadline = time.monotonic() + 30
    while group.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            group.rmdir()
        time.sleep(0.1)


def held(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(field)).split()[1]


def test_what_cannot_be_had_is_said_in_log_and_status(make_node: Callable[..., Any]) -> None:
    node = make_node()
    node.create(1, 64 * MiB)
    attachment = node.attach(1)
    allowed = bool(int(held(attachment.pid, "CapEff"), 16) >> CAP_SYS_RESOURCE & 1)
    protected = int(Path(f"/proc/{attachment.pid}/oom_score_adj").read_text()) == -1000
    said = [line for line in attachment.warnings if "I/O flusher" in line or "OOM killer" in line]
    assert len(said) == 2 * (not allowed), attachment.warnings
    assert protected == allowed
    log = (node.root / "volumes" / "1" / "process.log").read_text()
    for sentence in attachment.warnings:
        assert log.count(sentence) == 1, "said once"
        assert sentence.endswith("is missing")
    assert attachment.health == pb.HEALTH_HEALTHY


def test_dirty_pages_of_a_small_group_drain(make_node: Callable[..., Any], tmp_path: Path, small_group: Path) -> None:
    node = make_node()
    node.create(1, 256 * MiB)
    attachment = node.attach(1)
    assert int(held(attachment.pid, "VmLck")) * 1024 > 32 * MiB, "the data process has not locked its memory"
    folder = tmp_path / "fs"
    node.format_and_mount(attachment.device, folder)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(16 * MiB))
    script = (
        f"echo $$ > {small_group}/cgroup.procs && exec "
        f"sh -c 'for i in 0 1 2 3 4 5 6 7 8 9; do cat {source}; done > {folder}/big && sync -f {folder}/big'"
    )
    writer = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    node.background.append(writer)
    started = time.monotonic()
    out, _ = writer.communicate(timeout=150)
    assert writer.returncode == 0, out + (node.root / "volumes" / "1" / "process.log").read_text()[-3000:]
    print(f"{SIZE // MiB} MiB through a group of {LIMIT // MiB} MiB in {time.monotonic() - started:.1f} s")
    assert (folder / "big").stat().st_size == SIZE
    node.unmount(folder)
    subprocess.run(["mount", attachment.device, str(folder)], check=True)
    node.mounted.append(folder)
    expected = hashlib.sha256(source.read_bytes() * 10).hexdigest()
    assert hashlib.sha256((folder / "big").read_bytes()).hexdigest() == expected
    node.unmount(folder)
    after = node.healthy(1)
    assert (after.takeovers, after.pid) == (0, attachment.pid), "it was killed on the way"
