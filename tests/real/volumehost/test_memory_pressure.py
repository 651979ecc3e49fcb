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

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
MiB = 1 << 20
LIMIT = 48 * MiB
SIZE = 160 * MiB


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
    deadline = time.monotonic() + 30
    while group.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            group.rmdir()
        time.sleep(0.1)


def test_dirty_pages_of_a_small_group_drain(make_node: Callable[..., Any], tmp_path: Path, small_group: Path) -> None:
    node = make_node()
    node.create(1, 256 * MiB)
    attachment = node.attach(1)
    locked = next(
        line for line in Path(f"/proc/{attachment.pid}/status").read_text().splitlines() if line.startswith("VmLck")
    )
    assert int(locked.split()[1]) * 1024 > 32 * MiB, "the data process has not locked its memory"
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
    assert writer.returncode == 0, out
    print(f"{SIZE // MiB} MiB through a group of {LIMIT // MiB} MiB in {time.monotonic() - started:.1f} s")
    assert (folder / "big").stat().st_size == SIZE
    node.unmount(folder)
    subprocess.run(["mount", attachment.device, str(folder)], check=True)
    node.mounted.append(folder)
    expected = hashlib.sha256(source.read_bytes() * 10).hexdigest()
    assert hashlib.sha256((folder / "big").read_bytes()).hexdigest() == expected
    node.unmount(folder)
    assert node.healthy(1).takeovers == 0
