"""The playground's quick start, literally as docs/playground.md has it: file system, growth, data found again, end."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from curve_storage.cli.playground import Playground, node
from curve_storage.cli.playground.layout import find_etcd
from curve_storage.cli.playground.processes import alive

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.root,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="attaching needs root, FUSE and loop devices"),
]
ROOT = Path(__file__).resolve().parents[3]
LIMIT = 600.0


def script() -> str:
    """All shell blocks of the section, one after the other."""
    page = (ROOT / "docs" / "playground.md").read_text()
    section = page.partition("\n## Quick start\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
    assert len(blocks) >= 5
    return "".join(blocks)


@pytest.fixture(scope="session", autouse=True)
def own_mounts() -> None:
    """A mount namespace of its own: one that another program makes meanwhile would hold our mounts after umount."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive, private = 0x20000, 0x4000, 0x40000
    if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, recursive | private, None):
        pytest.fail(f"no mount namespace: {os.strerror(ctypes.get_errno())}")


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of its own, so that the playground is at its usual place in it. Short: sockets lie deep below it."""
    folder = Path(tempfile.mkdtemp(prefix="cd"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_quick_start_works_as_written(home: Path) -> None:
    text = script()
    for step in ("playground up", "mkfs.ext4", "mount ", "sha256sum --check", "volume recover", "down --delete"):
        assert step in text
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("CURVE_", "XDG_"))},
        "HOME": str(home),
        "CURVE_ETCD": find_etcd(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    directory = home / ".local" / "share" / "curve" / "playground"
    playground = Playground(directory)
    shell = subprocess.Popen(
        ["bash", "-euxo", "pipefail", "-c", text],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output = ""
    try:
        output, _ = shell.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        output, _ = shell.communicate()
    finally:
        print(output)
        ended_by_itself = not playground.exists
        if not ended_by_itself:
            for log in sorted((directory / "logs").glob("*.log")):
                print(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-8:]))
            processes = playground.processes()
            subprocess.run(["curve", "playground", "down", "--delete"], env=environment, timeout=180, check=False)
            assert not [known for known in processes if alive(known)]
        assert not node.loops_under(directory / "volumehost")
        assert not node.fuse_mounts(home) and not node.mounts_of_devices(directory / "volumehost")
    assert shell.returncode == 0 and ended_by_itself
    assert "healthy" in output
    assert "demo/blob: OK" in output
    assert "\n2147483648\n" in output  # the device, while it was mounted; then the file system
    sizes = re.findall(r"^/dev/loop\d+\s+(\S+)", output, re.M)
    assert sizes and sizes[-1].startswith(("1.9G", "2.0G")), sizes
    assert "WAS" in output and re.search(r"^\d+\s+/demo\s+2 GiB", output, re.M)
