"""Places of benchmarks: removed at the end, and by the next one where the maker was killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

from bench.rig import PREFIX, sweep, workspace

_MAKER = """
import sys, time
from pathlib import Path
from bench.rig import workspace
with workspace(Path(sys.argv[1]), lambda text: None) as directory:
    (directory / "data").write_text("x")
    print(directory, flush=True)
    time.sleep(600)
"""


def test_a_place_goes_with_its_block(tmp_path: Path) -> None:
    with workspace(tmp_path, print) as directory:
        assert directory.parent == tmp_path and directory.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_maker_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    foreign = tmp_path / f"{PREFIX}notes"
    foreign.mkdir()
    root = Path(__file__).resolve().parents[3]
    maker = subprocess.Popen(
        [sys.executable, "-c", _MAKER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert maker.stdout is not None
        left = Path(maker.stdout.readline().strip())
        assert (left / "data").exists()
        assert sweep(tmp_path, print) == []  # its maker lives
        maker.send_signal(signal.SIGKILL)
        maker.wait(30)
        with workspace(tmp_path, print) as own:
            with (own / "owner").open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    raise AssertionError("a place in use is not locked")
                except BlockingIOError:
                    pass
            assert not left.exists()
        assert list(tmp_path.iterdir()) == [foreign]
    finally:
        maker.kill()
        maker.wait()
