"""Two commits alternately in one go: `python -m bench.compare A B --jobs write_4k_qd32`, or `make bench-compare`.

Each commit's product code is checked out to `build/compare-…` and run with this environment's packages and the present
benchmark: A B, A B, …, so that whatever else the machine does meets both. Printed per job: the median of the rounds'
ratios B/A with the least and the greatest. `--prepare` is a command to run in each checkout first (a build step).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import output
from bench.block_jobs import KEYS
from bench.history import ROOT
from bench.rig import Say, progress, require

PREFIX = "compare-"
SOURCES = ("storage_daemon", "operator", "csi")
Round = tuple[Mapping[str, Any], Mapping[str, Any]]  # {job: {target: value}} of A and of B


@dataclass(frozen=True)
class Comparison:
    """a, b: medians; ratios B/A per round."""

    job: str
    target: str
    a: float
    b: float
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)


def compare(rounds: Sequence[Round], jobs: Sequence[str], targets: Sequence[str]) -> list[Comparison]:
    """Rounds in which either has no figure are left out; a job without any is left out."""
    found = []
    for job in jobs:
        for target in targets:
            pairs = [(a.get(job, {}).get(target), b.get(job, {}).get(target)) for a, b in rounds]
            whole = [(float(a), float(b)) for a, b in pairs if a and b]
            if whole:
                found.append(
                    Comparison(
                        job,
                        target,
                        statistics.median(a for a, _b in whole),
                        statistics.median(b for _a, b in whole),
                        tuple(b / a for a, b in whole),
                    )
                )
    return found


def table(found: Sequence[Comparison], names: tuple[str, str]) -> Table:
    titles = ("JOB", "TARGET", names[0], names[1], "B/A", "LEAST", "GREATEST", "ROUNDS")
    out = output.columns(titles, left=("JOB", "TARGET"))
    for one in found:
        out.add_row(
            one.job, one.target, f"{one.a:,.0f}", f"{one.b:,.0f}", f"{one.median:.3f}",
            f"{min(one.ratios):.3f}", f"{max(one.ratios):.3f}", str(len(one.ratios)),
        )  # fmt: skip
    return out


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def resolve(name: str) -> str:
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except RuntimeError:
        sys.exit(f"bench: {name!r} is no commit of this repository")


@contextmanager
def checkouts(build: Path, commits: Sequence[str], say: Say) -> Iterator[list[Path]]:
    """Worktrees without a branch, removed afterwards, also those that a killed run left."""
    build.mkdir(parents=True, exist_ok=True)
    with (build / f"{PREFIX}lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"bench: another comparison runs in {build}")
        _remove_all(build, say)
        try:
            made = []
            for number, commit in enumerate(commits):
                place = build / f"{PREFIX}{'ab'[number]}-{commit[:12]}"
                _git("worktree", "add", "--detach", "--force", str(place), commit)
                made.append(place)
            yield made
        finally:
            _remove_all(build, say)
    (build / f"{PREFIX}lock").unlink(missing_ok=True)


def _remove_all(build: Path, say: Say) -> None:
    for place in sorted(build.glob(f"{PREFIX}[ab]-*")):
        try:
            _git("worktree", "remove", "--force", "--force", str(place))
        except RuntimeError as error:
            say(f"warning: {error}")
    _git("worktree", "prune")


def environment(place: Path) -> dict[str, str]:
    """In which `curve_storage` is that of the checkout; everything else is as here."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(place / source) for source in SOURCES),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def verify(place: Path) -> None:
    """Raises RuntimeError when another copy of the product would be measured."""
    done = subprocess.run(
        [sys.executable, "-c", "import curve_storage; print(curve_storage.__file__)"],
        env=environment(place),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    found = done.stdout.strip()
    if done.returncode or not Path(found).is_relative_to(place):
        raise RuntimeError(f"{place} is not what would be measured, but {found or done.stderr.strip()}")


def measure(place: Path, options: argparse.Namespace, report: Path) -> dict[str, Any]:
    argv = [
        sys.executable, "-m", "bench.block", "--targets", ",".join(options.targets), "--jobs", ",".join(options.jobs),
        "--runtime", str(options.runtime), "--output", str(report),
    ]  # fmt: skip
    if options.dir is not None:
        argv += ["--dir", str(options.dir)]
    process = subprocess.Popen(
        argv, env=environment(place), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        told = process.communicate(timeout=900)[0]
    finally:
        if process.poll() is None:
            process.terminate()  # it takes its cluster down
            process.wait(120)
    if process.returncode:
        raise RuntimeError(f"the run of {place.name} failed:\n{told[-2000:]}")
    return dict(json.loads(report.read_text()))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("a", help="a commit")
    parser.add_argument("b", help="the commit compared with it")
    parser.add_argument(
        "--jobs", type=output.some_of(KEYS), default="write_4k_qd1,write_4k_qd32,read_4k_qd1,read_4k_qd32"
    )
    parser.add_argument("--targets", type=output.some_of(("nbd", "fuse")), default="nbd", help="some of nbd,fuse")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runtime", type=float, default=5.0, help="seconds per job")
    parser.add_argument("--dir", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--prepare", default="", help="shell command to run in each checkout first")
    parser.add_argument("--output", type=Path, default=Path("build/compare.json"))
    options = parser.parse_args(argv)
    if options.rounds < 1 or not options.jobs:
        parser.error("at least one round and one job")
    return options


def main() -> None:
    options = parse_arguments()
    require("fio", "git")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    commits = [resolve(options.a), resolve(options.b)]
    say = progress()
    rounds: list[Round] = []
    with checkouts(ROOT / "build", commits, say) as places:
        for place in places:
            if options.prepare:
                subprocess.run(options.prepare, shell=True, cwd=place, env=environment(place), check=True)
            verify(place)
        for number in range(options.rounds):
            results = []
            for name, place in zip("AB", places, strict=True):
                result = measure(place, options, place / "bench.json")
                say(
                    f"round {number + 1} {name}: "
                    + ", ".join(
                        f"{job} {target} {result[job][target]:,.0f}"
                        for job in options.jobs
                        for target in options.targets
                        if target in result.get(job, {})
                    )
                )
                results.append(result)
            rounds.append((results[0], results[1]))
    output.write(options.output, {"commits": commits, "rounds": rounds})
    found = compare(rounds, options.jobs, options.targets)
    out = output.console(160)
    out.print(table(found, (f"A {commits[0][:9]}", f"B {commits[1][:9]}")))
    out.print(f"written to {options.output}")


if __name__ == "__main__":
    main()
