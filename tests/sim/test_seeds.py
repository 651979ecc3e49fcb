"""Seeds that failed once, and the runner of many seeds: resumes, reports, exits with a status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import run_seeds
import seed_kinds

RUNNER = Path(__file__).parent / "run_seeds.py"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "seed", "reason"), seed_kinds.stored())
def test_seeds_that_failed_once(kind: str, seed: int, reason: str) -> None:
    seed_kinds.KINDS[kind](seed)


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUNNER), *arguments], capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.timeout(700)
def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    first = start("--kind", "consensus", "--seeds", "3", "--workers", "2", "--state", str(state))
    assert first.returncode == 0, first.stdout + first.stderr
    assert json.loads(state.read_text())["consensus 1"]["next"] == 4
    second = start("--kind", "consensus", "--seeds", "5", "--workers", "2", "--state", str(state))
    assert second.returncode == 0, second.stdout + second.stderr
    assert "goes on at seed 4" in second.stdout
    assert "2 seeds (now consensus), 0 failed" in second.stdout


def test_a_failure_is_reported_with_its_trace_and_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(AssertionError):
        trace = ["event one", "event two"]

    def fail(seed: int) -> None:
        raise Broken("wrong")

    monkeypatch.setitem(seed_kinds.KINDS, "consensus", fail)
    failure = run_seeds.run("consensus", 7)
    assert failure is not None
    run_seeds.report("consensus", 7, failure)
    said = capsys.readouterr().out
    assert "event one\nevent two" in said
    assert "python tests/sim/run_seeds.py --kind consensus --seed 7" in said


def test_seeds_end_in_any_order_and_none_is_skipped(tmp_path: Path) -> None:
    state = run_seeds.State(tmp_path / "state.json", "log", 1)
    state.done(2)
    assert state.next == 1
    state.done(1)
    assert state.next == 3


def test_each_kind_keeps_its_place(tmp_path: Path) -> None:
    first, second = (run_seeds.State(tmp_path / "state.json", kind, 1) for kind in ("log", "copyset"))
    for state in (first, second):
        state.done(1)
        state.save()
    assert [run_seeds.State(tmp_path / "state.json", kind, 1).next for kind in ("log", "copyset")] == [2, 2]


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(SystemExit, match="remove it to begin anew"):
        run_seeds.State(tmp_path / "state.json", "log", 1)
