"""csi-sanity against the driver on a playground: every test of an advertised capability, mount and block."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curve_csi import mounts
from curve_storage import mountinfo
from curve_storage.cli.playground import Playground, PlaygroundOptions, node
from curve_storage.cli.playground.layout import Layout
from curve_storage.units import GiB

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
NODE = "sanity-node"
SIZE = GiB


def program() -> str:
    cache = os.environ.get("CURVE_CACHE") or str(Path.home() / ".cache" / "curve")
    for candidate in (os.environ.get("CSI_SANITY"), shutil.which("csi-sanity"), f"{cache}/bin/csi-sanity"):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    pytest.fail("csi-sanity is missing: `make tools` builds it", pytrace=False)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    directory = tmp_path_factory.mktemp("csi")
    playground = Playground(directory, lambda text: print(text, flush=True))
    try:
        yield asyncio.run(playground.up(PlaygroundOptions(pool_size=5 * GiB), timeout=180))
    finally:
        problems = asyncio.run(playground.down(delete=True))
        assert not problems
        assert not node.loops_under(directory) and not node.fuse_mounts(directory)


@pytest.fixture(scope="module")
def driver(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The CSI socket of a driver with both services."""
    folder = tmp_path_factory.mktemp("drv")
    sock = folder / "csi.sock"
    with (folder / "driver.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "curve_csi", "all", "--endpoint", f"unix://{sock}",
                "--client", str(layout.client_file), "--volumehost", str(layout.host_socket),
                "--node-id", NODE, "--node", f"{NODE}=z1",
            ],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            end = time.monotonic() + 60
            while not sock.exists():
                assert process.poll() is None and time.monotonic() < end, (folder / "driver.log").read_text()[-3000:]
                time.sleep(0.05)
            yield sock
        finally:
            process.terminate()
            process.wait(20)
            print((folder / "driver.log").read_text(errors="replace")[-6000:])
            for mount in reversed(mountinfo.mounts()):
                if mount.target.is_relative_to(folder):
                    asyncio.run(mounts.unmount(str(mount.target)))


@pytest.mark.parametrize("access", ["mount", "block"])
def test_sanity(driver: Path, layout: Layout, access: str) -> None:
    base = driver.parent / access
    base.mkdir()
    parameters = base / "parameters.yaml"
    parameters.write_text("onDelete: purge\n")
    done = subprocess.run(
        [
            program(), f"--csi.endpoint=unix://{driver}", f"--csi.mountdir={base}/mount",
            f"--csi.stagingdir={base}/staging", f"--csi.testvolumeaccesstype={access}",
            f"--csi.testvolumesize={SIZE}", f"--csi.testvolumeexpandsize={2 * SIZE}",
            f"--csi.testvolumeparameters={parameters}", "--ginkgo.no-color", "--ginkgo.timeout=12m",
        ],
        capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    print(done.stdout[-12000:], done.stderr[-2000:])
    summary = re.search(r"(\d+) Passed \| (\d+) Failed", done.stdout)
    assert summary is not None and done.returncode == 0, "csi-sanity reports failures, see its output above"
    passed, failed = int(summary.group(1)), int(summary.group(2))
    print(f"csi-sanity {access}: {passed} passed")
    # Skipped are the tests of snapshots, clones, groups and volume attributes, which are not advertised.
    assert failed == 0 and passed >= 45
    left = [mount.target for mount in mountinfo.mounts() if mount.target.is_relative_to(base)]
    assert not left
