"""A stage that is overdue or cancelled ends by itself, and its fixtures have cleaned up, also in the background."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SLOW = """
import time
from pathlib import Path
import pytest

HERE = Path(__file__).parent

@pytest.fixture
def something():
    yield
    (HERE / "cleaned").touch()

def test_slow(something):
    (HERE / "started").touch()
    time.sleep(600)
"""
# What `make test` does, with other stages and a build folder elsewhere.
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import suite
suite.BUILD = Path({folder!r})
suite.STAGES = (suite.Stage("slow", "does not end", ({file!r},), {limit}, 0),)
sys.argv = ["suite.py", "slow"]
suite.main()
"""


def until(condition: Callable[[], bool], what: str, limit: float = 100) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit:g} s: {what}"
        time.sleep(0.05)


def background(folder: Path, limit: int) -> subprocess.Popen[str]:
    """As by `nohup make test &`: SIGINT is ignored, and that is inherited."""
    file = folder / "test_slow.py"
    file.write_text(SLOW)
    driver = DRIVER.format(tests=str(ROOT / "tests"), folder=str(folder), file=str(file), limit=limit)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.Popen(
        [sys.executable, "-c", driver],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        preexec_fn=ignore_interrupts,
    )  # fmt: skip


def ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_cancelled_run_cleans_up(tmp_path: Path) -> None:
    process = background(tmp_path, 3600)
    try:
        until((tmp_path / "started").exists, "the slow test runs")
        (pytest_pid,) = children(process.pid)
        process.terminate()
        output, _ = process.communicate(timeout=100)
    finally:
        process.kill()
    assert (tmp_path / "cleaned").exists(), output
    assert process.returncode == 128 + signal.SIGTERM, output
    assert not Path(f"/proc/{pytest_pid}").exists()


def test_an_overdue_stage_ends_and_fails(tmp_path: Path) -> None:
    process = background(tmp_path, 8)
    try:
        output, _ = process.communicate(timeout=110)
    finally:
        process.kill()
    assert "slow: not done after 8 s" in output and "killed" not in output
    assert process.returncode == 1 and "0 passed, 1 failed, 0 skipped" in output
    if (tmp_path / "started").exists():  # else the machine was too slow to come that far
        assert (tmp_path / "cleaned").exists(), output
