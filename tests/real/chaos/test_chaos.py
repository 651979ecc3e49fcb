"""Five minutes of chaos with a new seed each time; what a run that was killed leaves is found and removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.chaos import leftovers

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces, mounts and loop devices need root"),
]
ROOT = Path(__file__).resolve().parents[3]
MINUTES = os.environ.get("CURVE_TEST_CHAOS_MINUTES", "5")
LIMIT = 900.0  # start and comparison take about a minute and a half on a quiet machine


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: Unix sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(name)


def chaos(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "e2e.chaos", "--dir", str(directory), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def assert_nothing_left(directory: Path) -> None:
    assert not leftovers.marked(directory)
    assert not leftovers.devices(directory)


@pytest.mark.timeout(LIMIT + 120)
def test_nothing_is_lost_in_chaos(directory: Path) -> None:
    seed = ["--seed", os.environ["CURVE_TEST_SEED"]] if "CURVE_TEST_SEED" in os.environ else []
    process = chaos(directory, "--minutes", MINUTES, *seed)
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=90)
    print(output)
    assert process.returncode == 0
    assert "nothing lost" in output.splitlines()[-1]
    assert_nothing_left(directory)


@pytest.mark.timeout(600)
def test_a_killed_run_is_cleaned_by_the_next(directory: Path) -> None:
    process = chaos(directory, "--minutes", "5")
    assert process.stdout is not None
    for line in process.stdout:  # ends at the latest when the process does
        if "faults begin" in line:
            break
    devices = leftovers.devices(directory)
    assert len(devices) == 5, "three disks, two volumes"
    process.kill()
    process.wait(30)
    assert leftovers.marked(directory)
    cleaned = chaos(directory, "--clean")
    output, _ = cleaned.communicate(timeout=200)
    assert cleaned.returncode == 0, output
    assert_nothing_left(directory)
    assert [entry.name for entry in directory.iterdir()] == ["lock"]
