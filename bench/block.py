"""Block volumes beside the raw disk they lie on: `python -m bench.block`, or `make bench`. Needs root and fio.

Starts a playground of its own (three replicas, all on the disk of --dir), attaches a volume as a loop device over FUSE
and another as NBD, and runs the same fio jobs on a file of that disk, on the device and through NBD. Prints one table
and writes `build/bench.json`: {job: {"raw": …, "fuse": …, "nbd": …, "cpu_us": {process: …}}}, IOPS or MiB/s for 1m.

cpu_us is CPU time per request of each process, user and system, during the run on FUSE ("cpu_us_nbd": through NBD).
All values of a run come from one machine at one time; only their ratios mean something elsewhere. "raw" writes without
a sync reach the disk's cache at most, while ours are on three replicas: "raw_sync" is the raw disk with O_SYNC.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import history, output
from bench.block_jobs import JOBS, KEYS, Job, Result, fill, run
from bench.goals import FUSE_OF_NBD, GOALS, short, word
from bench.history import HISTORY, ratios
from bench.rig import Rig, progress, require, rig, workspace
from curve_storage.cli.playground.processes import usage
from curve_storage.units import GiB, MiB, format_size, parse_size

TARGETS = ("raw", "fuse", "nbd")


class Meter:
    """CPU seconds of the cluster's processes, data processes of volumes included."""

    def __init__(self, cluster: Rig) -> None:
        self._names = cluster.processes()

    def read(self) -> dict[str, float]:
        seconds: dict[str, float] = {}
        for known, name in self._names.items():
            used = usage(known.pid)
            if used is not None:
                seconds[name] = seconds.get(name, 0.0) + used.cpu_seconds
        return seconds

    def memory(self) -> dict[str, int]:
        return {name: used.memory for known, name in self._names.items() if (used := usage(known.pid)) is not None}


class Bench:
    def __init__(self, options: argparse.Namespace, say: Callable[[str], None]) -> None:
        self.options = options
        self.say = say
        self.results: dict[str, dict[str, Any]] = {}
        self.memory: dict[str, int] = {}
        self.jobs = [job for job in JOBS if not options.jobs or job.key in options.jobs]

    def all(self, directory: Path) -> None:
        if "raw" in self.options.targets:
            self._raw(directory)
        if {"fuse", "nbd"} & set(self.options.targets):
            self._cluster(directory)

    def _raw(self, directory: Path) -> None:
        file = directory / "raw.dat"
        self.say("raw disk: filling")
        fill("raw", str(file), size=self.options.size, report=directory / "fill.json")
        for job in self.jobs:
            self._one(job, "raw", str(file), directory, None)
            if job.writes and "--fsync=1" not in job.arguments:
                result = self._run(job, "raw", str(file), directory, ("--sync=1",))
                self.results[job.key]["raw_sync"] = round(result.value, 1)
        file.unlink()

    def _cluster(self, directory: Path) -> None:
        need = self.options.size // GiB + 2
        with rig(directory, self.say, pool_size=2 * need * GiB) as cluster:
            for target in ("fuse", "nbd"):
                if target in self.options.targets:
                    self._target(cluster, target, need, directory)

    def _target(self, cluster: Rig, target: str, need: int, directory: Path) -> None:
        place = cluster.attach(target, need)
        self.say(f"{target}: filling {place}")
        fill(target, place, size=self.options.size, report=directory / "fill.json")
        meter = Meter(cluster)
        for job in self.jobs:
            self._one(job, target, place, directory, meter)
        self.memory.update({name: size for name, size in meter.memory().items() if name.startswith("chunkserver")})
        cluster.remove(target)

    def _one(self, job: Job, target: str, place: str, directory: Path, meter: Meter | None) -> None:
        before = meter.read() if meter is not None else {}
        result = self._run(job, target, place, directory)
        entry = self.results.setdefault(job.key, {})
        entry[target] = round(result.value, 1)
        entry.setdefault("latency_us", {})[target] = {
            "mean": round(result.mean_us, 1),
            "p99": round(result.p99_us, 1),
            "max": round(result.max_us, 1),
        }
        if meter is not None:
            spent = {name: seconds - before.get(name, 0.0) for name, seconds in meter.read().items()}
            entry["cpu_us" if target == "fuse" else "cpu_us_nbd"] = {
                name: round(seconds * 1e6 / result.operations, 2)
                for name, seconds in sorted(spent.items())
                if seconds > 0
            }
        self.say(f"{target} {job.key}: {result.value:,.0f} {job.unit}")

    def _run(self, job: Job, target: str, place: str, directory: Path, extra: tuple[str, ...] = ()) -> Result:
        return run(
            job,
            target,
            place,
            size=self.options.size,
            runtime=self.options.runtime,
            report=directory / "fio.json",
            extra=extra,
        )


def table(results: dict[str, dict[str, Any]], jobs: list[Job]) -> Table:
    """Values, ratios of the same run, goals; µs of CPU per request, chunkservers together."""
    titles = [
        "JOB", "RAW", "RAW SYNC", "NBD", "/RAW", "AT LEAST", "AIM", "", "FUSE", "/RAW", "/NBD", "", "CPU µs/OP: VOLUME",
        "3 CHUNKSERVERS",
    ]  # fmt: skip
    out = output.columns(titles, left=("JOB", ""))
    for job in jobs:
        entry = results[job.key]
        shares, goal = ratios(entry), GOALS.get(job.key)

        def cell(key: str, entry: dict[str, Any] = entry) -> str:
            return f"{entry[key]:,.0f}" if key in entry else "-"

        def share(key: str, shares: dict[str, float] = shares) -> str:
            return f"{100 * shares[key]:.0f} %" if key in shares else ""

        cpu = entry.get("cpu_us_nbd") or entry.get("cpu_us") or {}
        servers = sum(value for name, value in cpu.items() if name.startswith("chunkserver"))
        out.add_row(
            f"{job.key} ({job.unit})", cell("raw"), cell("raw_sync"),
            cell("nbd"), share("nbd/raw"),
            short(goal.least) if goal else "", short(goal.aim) if goal else "", word(goal, entry.get("nbd")),
            cell("fuse"), share("fuse/raw"), share("fuse/nbd"), word(FUSE_OF_NBD, shares.get("fuse/nbd")),
            f"{cpu['volume']:.0f}" if "volume" in cpu else "-", f"{servers:.0f}" if servers else "-",
        )  # fmt: skip
    return out


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.block", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", type=float, default=5.0, help="seconds per job and target")
    parser.add_argument("--size", type=parse_size, default=512 * MiB, help="area the jobs work on")
    parser.add_argument(
        "--dir", type=Path, default=None, help="on the disk to measure; default: the temporary directory"
    )
    parser.add_argument(
        "--targets", type=output.some_of(TARGETS), default=",".join(TARGETS), help="some of raw,fuse,nbd"
    )
    parser.add_argument("--jobs", type=output.some_of(KEYS), default="", help="some of the jobs, comma-separated")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    parser.add_argument(
        "--record", type=Path, nargs="?", const=HISTORY, default=None, metavar="FILE",
        help="add the figures to bench/history.jsonl, or to FILE",
    )  # fmt: skip
    return parser.parse_args(argv)


def main() -> None:
    options = parse_arguments()
    require("fio")
    if (
        "nbd" in options.targets
        and "\tnbd" not in subprocess.run(["fio", "--enghelp"], capture_output=True, text=True).stdout
    ):
        print("bench: this fio has no nbd engine; leaving nbd out", file=sys.stderr)
        options.targets.remove("nbd")
    # A polite end also takes the playground down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say = progress()
    bench = Bench(options, say)
    with workspace(options.dir, say) as directory:
        bench.all(directory)
    output.write(options.output, bench.results)
    out = output.console(220)
    out.print(table(bench.results, bench.jobs))
    if bench.memory:
        out.print(
            "\nmemory: " + ", ".join(f"{name} {format_size(size)}" for name, size in sorted(bench.memory.items()))
        )
    if options.record is not None:
        history.append(options.record, history.entry(history.facts(), history.commit(), bench.results))
        out.print(f"added to {options.record}")
    out.print(f"written to {options.output}")


if __name__ == "__main__":
    main()
