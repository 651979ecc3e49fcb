"""Everything CI runs, stage by stage: `make test`. Goes on after a failed stage, and ends with one line of totals."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
CLEANUP = 120.0
COMPILED = {"PYTHONPATH": str(BUILD / "compiled"), "CURVE_EXPECT_COMPILED": "1"}
SIM_BUDGET = float(os.environ.get("SIM_BUDGET", "300"))
"""Seconds for the sim stage: what its tests leave of them goes to new seeds."""
# Not "cluster" yet: see docs/testing.md.
SIM_FRESH_KINDS = ("consensus", "log", "copyset")
SIM_FRESH = 30.0
"""Seconds for new seeds at least, however slow the machine is."""


@dataclass(frozen=True)
class Stage:
    """limit: seconds after which the stage is ended; workers: processes, 0 for stages that own the machine; budget:
    seconds, of which new seeds of the simulations get what the tests leave; compiled: with the hot modules that
    `make compiled` made, in place of their pure form."""

    name: str
    what: str
    paths: tuple[str, ...]
    limit: int
    workers: int = 0
    budget: float = 0.0
    compiled: bool = False


COMPILED_PATHS = (
    *(f"tests/unit/{package}" for package in ("attach", "chunkserver", "client", "consensus", "fuse", "wire")),
    "tests/unit/compiled",
    "tests/real/attach",
    "tests/real/chunkserver/test_chunkserver_processes.py",
    "tests/real/fuse",
    "tests/real/volumehost/test_node_on_cluster.py",
)
STAGES = (
    Stage("unit", "fast tests, without root", ("tests/unit",), 900, 2),
    Stage("sim", "simulations, crash sweeps, planted mistakes, new seeds", ("tests/sim",), 3000, 2, SIM_BUDGET),
    Stage("compiled", "the data path's tests with its modules compiled", COMPILED_PATHS, 1500, compiled=True),
    Stage("real", "real processes: etcd, FUSE, loop, playgrounds, csi-sanity, chaos", ("tests/real",), 3000),
    Stage("box", "a real Kubernetes of three nodes", ("e2e/tests",), 2400),
)


@dataclass
class Outcome:
    stage: Stage
    code: int
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0


def start(command: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A child that heeds SIGINT, also when this program was started in the background, which ignores it (nohup, CI)."""
    return subprocess.Popen(command, cwd=ROOT, preexec_fn=_heed_interrupts, env=environment)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGINT, by which pytest lets fixtures end what they started; after CLEANUP seconds without mercy."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(CLEANUP)
    except subprocess.TimeoutExpired:
        print(f"not cleaned up after {CLEANUP:g} s, killed", flush=True)
        process.kill()
        process.wait()


def finish(process: subprocess.Popen[bytes], what: str, limit: float) -> int:
    """Its exit status; 124 when it was ended after `limit` seconds. If this program is ended, the child goes first."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        print(f"{what}: not done after {limit:.0f} s", flush=True)
        end(process)
        return 124
    except (KeyboardInterrupt, SystemExit):
        end(process)
        raise


def _terminated(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: the cleanup is on its way
    raise SystemExit(128 + number)


def run(stage: Stage) -> Outcome:
    print(f"\n==== {stage.name}: {stage.what}", flush=True)
    report = BUILD / f"test-{stage.name}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", *stage.paths, f"--junitxml={report}", "--durations=10"]
    if stage.workers:
        command += ["-n", str(stage.workers)]
    started = time.monotonic()
    process = start(command, {**os.environ, **COMPILED} if stage.compiled else None)
    code = finish(process, stage.name, stage.limit)
    outcome = Outcome(stage, code, time.monotonic() - started)
    if report.exists():
        for suite in ET.parse(report).getroot().iter("testsuite"):
            failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped = int(suite.get("skipped", 0))
            outcome.failed += failed
            outcome.skipped += skipped
            outcome.passed += int(suite.get("tests", 0)) - failed - skipped
    if code != 0 and outcome.failed == 0:
        outcome.failed = 1  # the stage itself: ended, or no test was found
    if stage.budget and code in (0, 1):
        new_seeds(stage, outcome)
    return outcome


def new_seeds(stage: Stage, outcome: Outcome) -> None:
    started = time.monotonic()
    seconds = max(SIM_FRESH, stage.budget - outcome.seconds)
    kinds = [argument for kind in SIM_FRESH_KINDS for argument in ("--kind", kind)]
    process = start([sys.executable, "tests/sim/run_seeds.py", "--seconds", f"{seconds:.0f}", *kinds])
    code = finish(process, "new seeds", seconds + 600)  # lives that have begun go to their end
    outcome.seconds += time.monotonic() - started
    outcome.code = outcome.code or code
    outcome.passed += code == 0
    outcome.failed += code != 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests/suite.py", description=__doc__)
    parser.add_argument("stages", nargs="*", default=[stage.name for stage in STAGES])
    wanted = parser.parse_args().stages
    known = {stage.name: stage for stage in STAGES}
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"no such stage: {', '.join(unknown)}; there are {', '.join(known)}")
    signal.signal(signal.SIGTERM, _terminated)
    BUILD.mkdir(exist_ok=True)
    outcomes = [run(known[name]) for name in wanted]
    print("\n==== summary")
    for outcome in outcomes:
        print(
            f"{outcome.stage.name:8} {'ok' if outcome.code == 0 else 'FAILED':6} {outcome.seconds:6.0f} s  "
            f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
        )
    total = [sum(getattr(outcome, key) for outcome in outcomes) for key in ("passed", "failed", "skipped")]
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(f"{total[0]} passed, {total[1]} failed, {total[2]} skipped in {seconds:.0f} s")
    raise SystemExit(0 if all(outcome.code == 0 for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
