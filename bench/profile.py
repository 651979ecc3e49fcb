"""Where each microsecond of a request goes: `python -m bench.profile --job write_4k_qd32 --target nbd`.

The job runs four times on one attached volume, so that no measurement disturbs another: plain (CPU time and context
switches from /proc, divided by fio's number of requests), with syscalls counted by perf, with C and kernel functions
sampled by perf, with Python functions sampled by py-spy. µs of a function: its share of samples × the process's CPU
time per request in the plain run; Python functions share the user time, and only what holds the interpreter counts.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from bench import block_jobs, output, profilers, tally
from bench.rig import Rig, Say, progress, require, rig, workspace
from curve_storage.cli.playground.processes import Identity
from curve_storage.units import GiB, MiB, parse_size


@dataclass
class Cost:
    """Of one process; everything per request of fio. functions: µs per request."""

    user_us: float = 0.0
    system_us: float = 0.0
    voluntary: float = 0.0
    involuntary: float = 0.0
    syscalls: dict[str, float] = field(default_factory=dict)
    python_us: list[tuple[str, float]] = field(default_factory=list)
    native_us: list[tuple[str, float]] = field(default_factory=list)

    @property
    def cpu_us(self) -> float:
        return self.user_us + self.system_us


@dataclass
class Profile:
    """load: fio itself; machine_us: CPU time per request of the whole machine, kernel threads included."""

    job: str
    target: str
    iops: float
    mean_us: float
    p99_us: float
    machine_us: float
    load_us: float
    costs: dict[str, Cost]
    slowed: dict[str, float]  # pass → IOPS under that profiler


class Profiler:
    def __init__(self, rig: Rig, place: str, options: argparse.Namespace, directory: Path, say: Say) -> None:
        self._rig, self._place, self._options, self._directory, self._say = rig, place, options, directory, say
        self._job = next(job for job in block_jobs.JOBS if job.key == options.job)

    def run(self) -> Profile:
        names = self._rig.processes()
        before, busy = tally.read(names), tally.machine_busy()
        plain = self._fio("plain")
        after, busy = tally.read(names), tally.machine_busy() - busy
        requests = plain.operations
        costs = {}
        for name, used in tally.spent(before, after, names).items():
            if used.cpu > 0:
                costs[name] = Cost(
                    used.user * 1e6 / requests,
                    used.system * 1e6 / requests,
                    used.voluntary / requests,
                    used.involuntary / requests,
                )
        profile = Profile(
            self._job.key, self._options.target, plain.value, plain.mean_us, plain.p99_us, busy * 1e6 / requests,
            plain.load_us, dict(sorted(costs.items())), {},
        )  # fmt: skip
        pids = self._busiest(names, before, after, costs)
        if "perf" in self._options.tools:
            self._syscalls(profile, pids)
            self._native(profile, pids)
        if "py-spy" in self._options.tools:
            self._python(profile, {name: pid for name, pid in pids.items() if name != "etcd"})
        return profile

    def _busiest(
        self,
        names: dict[Identity, str],
        before: dict[Identity, tally.Tally],
        after: dict[Identity, tally.Tally],
        costs: dict[str, Cost],
    ) -> dict[str, int]:
        """One pid per name (a volume's spare does nothing), of processes that matter for a request."""
        found: dict[str, tuple[float, int]] = {}
        for known, last in after.items():
            name = names[known]
            if known in before and name in costs and costs[name].cpu_us >= self._options.least:
                found[name] = max(found.get(name, (0.0, 0)), ((last - before[known]).cpu, known.pid))
        return {name: pid for name, (_cpu, pid) in sorted(found.items())}

    def _fio(self, what: str) -> block_jobs.Result:
        self._say(f"{self._job.key} on {self._options.target}, {what}")
        result = block_jobs.run(
            self._job,
            self._options.target,
            self._place,
            size=self._options.size,
            runtime=self._options.runtime,
            report=self._directory / "fio.json",
        )
        self._say(f"  {result.value:,.0f} {self._job.unit}, mean {result.mean_us:,.0f} µs")
        return result

    def _syscalls(self, profile: Profile, pids: dict[str, int]) -> None:
        attached = profilers.count_syscalls(pids, self._directory)
        try:
            result = self._fio("counting syscalls")
        finally:
            attached.stop()
        profile.slowed["syscalls"] = result.value
        for name in pids:
            report = profilers.syscall_report(self._directory, name)
            counts = profilers.parse_perf_stat(report.read_text() if report.exists() else "")
            if not counts:
                self._say(f"warning: {(self._directory / f'{name}.perf-stat.log').read_text()[:300]}")
            profile.costs[name].syscalls = {
                call: count / result.operations
                for call, count in sorted(counts.items(), key=lambda item: -item[1])
                if count / result.operations >= 0.005
            }

    def _native(self, profile: Profile, pids: dict[str, int]) -> None:
        attached = profilers.sample_native(pids, self._directory, self._options.hertz)
        try:
            profile.slowed["perf"] = self._fio("sampling C and kernel functions").value
        finally:
            attached.stop()
        samples = profilers.parse_perf_script(
            profilers.native_samples(self._directory), {pid: name for name, pid in pids.items()}
        )
        for name, found in samples.items():
            cost = profile.costs[name]
            cost.native_us = [(what, share * cost.cpu_us) for what, share in profilers.shares(found, self._options.top)]

    def _python(self, profile: Profile, pids: dict[str, int]) -> None:
        attached = profilers.sample_python(pids, self._directory, max(50, self._options.hertz // 5))
        try:
            profile.slowed["py-spy"] = self._fio("sampling Python functions").value
        finally:
            attached.stop()
        for name in pids:
            report = profilers.python_report(self._directory, name)
            if not report.exists():
                self._say(f"warning: {name}: {(self._directory / f'{name}.py-spy.log').read_text()[-300:]}")
                continue
            cost = profile.costs[name]
            found = profilers.parse_stacks(report.read_text())
            cost.python_us = [
                (what, share * cost.user_us) for what, share in profilers.shares(found, self._options.top)
            ]
            if self._options.stacks is not None:
                self._options.stacks.mkdir(parents=True, exist_ok=True)
                (self._options.stacks / f"{name}.stacks").write_text(report.read_text())


def summary(profile: Profile) -> Table:
    titles = ("PROCESS", "CPU µs/REQ", "USER", "SYSTEM", "SYSCALLS/REQ", "SWITCHES/REQ", "FORCED", "MOST SYSCALLS")
    out = output.columns(titles, left=("PROCESS", "MOST SYSCALLS"))
    for name, cost in profile.costs.items():
        calls = [f"{call} {count:.2f}" for call, count in cost.syscalls.items() if call != "all"][:6]
        out.add_row(
            name, f"{cost.cpu_us:.1f}", f"{cost.user_us:.1f}", f"{cost.system_us:.1f}",
            f"{cost.syscalls['all']:.2f}" if "all" in cost.syscalls else "-",
            f"{cost.voluntary:.2f}", f"{cost.involuntary:.2f}", ", ".join(calls),
        )  # fmt: skip
    ours = sum(cost.cpu_us for cost in profile.costs.values())
    out.add_row("together", f"{ours:.1f}")
    out.add_row("fio", f"{profile.load_us:.1f}")
    out.add_row("rest", f"{max(0.0, profile.machine_us - ours - profile.load_us):.1f}", *[""] * 5,
                "kernel threads (loop, network, disk) and whatever else ran")  # fmt: skip
    return out


def functions(profile: Profile) -> Table:
    names = ("PROCESS", "PYTHON FUNCTION, SELF", "C OR KERNEL FUNCTION, SELF")
    out = output.columns((names[0], "µs/REQ", names[1], "µs/REQ", names[2]), left=names)
    for name, cost in profile.costs.items():
        for n in range(max(len(cost.python_us), len(cost.native_us))):
            left = cost.python_us[n] if n < len(cost.python_us) else None
            right = cost.native_us[n] if n < len(cost.native_us) else None
            out.add_row(
                name if n == 0 else "",
                f"{left[1]:.2f}" if left else "", escape(left[0]) if left else "",
                f"{right[1]:.2f}" if right else "", escape(right[0]) if right else "",
            )  # fmt: skip
    return out


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--job", default="write_4k_qd32", choices=block_jobs.KEYS)
    parser.add_argument("--target", default="nbd", choices=["nbd", "fuse"])
    parser.add_argument("--runtime", type=float, default=6.0, help="seconds of each of the four runs")
    parser.add_argument("--size", type=parse_size, default=512 * MiB, help="area the job works on")
    parser.add_argument("--dir", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--top", type=int, default=12, help="functions per process")
    parser.add_argument("--hertz", type=int, default=997, help="samples per second of perf; py-spy takes a fifth")
    parser.add_argument(
        "--least", type=float, default=0.5, help="µs per request below which a process is not looked at"
    )
    parser.add_argument(
        "--tools", type=output.some_of(("perf", "py-spy")), default="perf,py-spy", help="some of perf,py-spy"
    )
    parser.add_argument("--stacks", type=Path, default=None, help="keep py-spy's stacks here, for a flame graph")
    parser.add_argument("--output", type=Path, default=None, help="default: build/profile-JOB-TARGET.json")
    options = parser.parse_args(argv)
    if options.output is None:
        options.output = Path(f"build/profile-{options.job}-{options.target}.json")
    return options


def main() -> None:
    options = parse_arguments()
    require("fio")
    for sentence in profilers.tools_missing():
        print(f"bench: {sentence}", file=sys.stderr)
        options.tools = [tool for tool in options.tools if f"no {tool}:" not in sentence]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say = progress()
    need = options.size // GiB + 2
    with workspace(options.dir, say) as directory, rig(directory, say, pool_size=2 * need * GiB) as cluster:
        place = cluster.attach(options.target, need)
        say(f"filling {place}")
        block_jobs.fill(options.target, place, size=options.size, report=directory / "fill.json")
        profile = Profiler(cluster, place, options, directory, say).run()
        cluster.remove(options.target)
    output.write(options.output, asdict(profile))
    out = output.console(220)
    out.print(
        f"{profile.job} on {profile.target}: {profile.iops:,.0f} per second, mean {profile.mean_us:,.0f} µs, "
        f"p99 {profile.p99_us:,.0f} µs, {os.cpu_count()} cores; under profilers: "
        + ", ".join(f"{what} {value:,.0f}" for what, value in profile.slowed.items())
        + "\n"
    )
    out.print(summary(profile))
    out.print()
    out.print(functions(profile))
    out.print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main()
