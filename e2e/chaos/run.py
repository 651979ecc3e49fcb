"""One run: up, load, faults by the plan, heal, compare everything, report."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from curve_storage.errors import CurveError
from e2e.chaos import plan, replicas, workloads
from e2e.chaos.faults import Faults, Outcome
from e2e.chaos.loads import Load
from e2e.chaos.report import Report, table
from e2e.chaos.workloads import RESILIENT, VOLUMES, Workloads
from e2e.chaos.world import CHUNKSERVERS, World

_HEALTHY = 240.0
_QUIET = 400.0  # for what is under way when the loads are told to end
_WARM = 60.0
_PATIENCE = 60.0  # for followers to apply what they have

TARGETS = {
    "chunkserver": CHUNKSERVERS,
    "chunkservers": ("chunkservers",),
    "mds": ("mds1", "mds2", "mds3"),
    "etcd": ("etcd",),
    "metadata": ("metadata",),
    "cluster": ("cluster",),
    "volumehost": ("volumehost",),
    "keeper": ("keeper",),
    "node": ("node",),
    "volume": RESILIENT,
    "any volume": VOLUMES,
}


@dataclass(frozen=True)
class Options:
    """minutes: of faults; interval: seconds from one to the next on average."""

    directory: Path
    minutes: float
    seed: int
    interval: float


@dataclass
class Result:
    outcomes: list[Outcome] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    verified: int = 0
    writes: int = 0
    chunks: int = 0
    cleaned: bool = False


class Run:
    def __init__(self, options: Options, report: Report) -> None:
        self.options = options
        self.report = report
        self.result = Result()
        self.world = World(options.directory, options.seed, report.say)

    async def whole(self) -> Result:
        """Up to and including the removal of everything, whatever happens."""
        try:
            await self._work()
        except CurveError as error:
            self._problem(str(error))
        finally:
            self.report.say("taking everything down")
            problems = await self.world.down()
            for problem in problems:
                self.report.say(f"left behind: {problem}")
            self.result.cleaned = not problems
        return self.result

    def _problem(self, what: str) -> None:
        self.result.problems.append(what)
        self.report.event("problem", what=what)
        self.report.say(f"PROBLEM: {what}")

    async def _work(self) -> None:
        say = self.report.say
        faults = plan.make(self.options.seed, self.options.minutes * 60, self.options.interval, TARGETS)
        self.report.event(
            "plan", seed=self.options.seed, faults=[{"number": f.number, "at": f.at, "what": str(f)} for f in faults]
        )
        await self.world.up()
        say("the cluster is healthy; creating volumes")
        work = await workloads.create(self.world, self.options.seed)
        try:
            for load in work.loads:
                load.start()
            await self._warm(work.loads)
            say(f"{len(work.loads)} loads on {len(VOLUMES)} volumes; {len(faults)} faults begin")
            await self._faults(faults, work.loads)
            say("healing; waiting for a healthy cluster")
            await self._heal()
        except CurveError as error:
            self._problem(str(error))  # what was acknowledged is compared all the same
        except BaseException:
            for load in work.loads:
                load.abandon()
            raise
        await self._compare(work)

    async def _warm(self, loads: list[Load]) -> None:
        shadows = [load for load in loads if load.name.startswith("shadow")]
        deadline = time.monotonic() + _WARM
        while any(load.waits.count < 20 for load in shadows):
            if workloads.first_problem(loads) or time.monotonic() > deadline:
                raise CurveError(workloads.first_problem(loads) or "the loads do not begin to flow")
            await asyncio.sleep(0.2)

    async def _faults(self, faults: list[plan.Fault], loads: list[Load]) -> None:
        begun = time.monotonic()
        doing = Faults(self.world)
        deadline = begun + self.options.minutes * 60
        tasks = []
        for fault in faults:
            await asyncio.sleep(max(0.0, begun + fault.at - time.monotonic()))
            if any(problem.lost for load in loads for problem in load.problems):
                self.report.say("data were lost: no more faults")
                break
            tasks.append(asyncio.create_task(self._one(doing, fault, loads, deadline)))
        await asyncio.gather(*tasks)

    async def _one(self, doing: Faults, fault: plan.Fault, loads: list[Load], deadline: float) -> None:
        self.report.begun(fault.number, str(fault))
        outcome = await doing.do(fault, deadline)
        outcome.waits = self._waits(outcome, loads)
        self.result.outcomes.append(outcome)
        self.report.fault(outcome)
        if outcome.problem:
            self.result.problems.append(f"#{fault.number} {fault}: {outcome.problem}")

    def _waits(self, outcome: Outcome, loads: list[Load]) -> dict[str, float]:
        """By volume: the longest wait of I/O from the fault to a second after its cure was complete."""
        if outcome.skipped:
            return {}
        found: dict[str, float] = {}
        for load in loads:
            wait = load.waits.longest(outcome.started, outcome.restored + 1.0, time.monotonic())
            found[load.volume] = max(found.get(load.volume, 0.0), round(wait, 2))
        return found

    async def _heal(self) -> None:
        await self.world.until("the cluster to be healthy", _HEALTHY, self.world.healthy)
        self.report.say("healthy")

    async def _compare(self, work: Workloads) -> None:
        say, result = self.report.say, self.result
        for unexpected in self.world.unexpected:
            self._problem(unexpected)
        say("ending the loads")
        stopped = await asyncio.gather(*(asyncio.to_thread(load.stop, _QUIET) for load in work.loads))
        for load, done in zip(work.loads, stopped, strict=True):
            if not done:
                self._problem(f"{load.name}: I/O does not end")
        if not all(stopped):
            return
        say("comparing every acknowledged byte")
        for load in work.loads:
            await asyncio.to_thread(load.verify)
            rounds = getattr(getattr(load, "job", None), "rounds", None)
            writes = getattr(getattr(load, "shadow", None), "writes", None)
            what = f"{rounds} rounds" if rounds is not None else f"{writes} writes acknowledged"
            say(f"  {load.name}: {what}, {load.verified >> 20} MiB compared, {len(load.problems)} problems")
            result.verified += load.verified
            result.writes += load.waits.count
            for problem in load.problems:
                self._problem(problem.what)
        for problem_text in await asyncio.to_thread(work.finish):
            self._problem(problem_text)
        say("comparing replicas")
        found = await replicas.compare(self.world.mds, self.world.layout.keyring, list(VOLUMES), patience=_PATIENCE)
        result.chunks = found.chunks
        for different in found.different:
            self._problem(f"replicas differ: {different}")
        # fio's waits are known only now.
        for outcome in result.outcomes:
            outcome.waits = self._waits(outcome, work.loads)
            self.report.event("stalls", number=outcome.fault.number, longest_stall=outcome.waits)


def summary(result: Result, options: Options) -> list[str]:
    """The table and the verdict, as printed at the end."""
    done = [outcome for outcome in result.outcomes if not outcome.skipped]
    skipped = len(result.outcomes) - len(done)
    longest = max((seconds for outcome in done for seconds in outcome.waits.values()), default=0.0)
    return [
        *table(result.outcomes),
        *(f"PROBLEM: {problem}" for problem in result.problems),
        f"seed {options.seed}: {len(done)} faults ({skipped} skipped) in {options.minutes:g} minutes, "
        f"longest stall {longest:.2f} s, {result.writes} requests, {result.verified >> 20} MiB compared, "
        f"replicas of {result.chunks} chunks compared: {'nothing lost' if passed(result) else 'FAILED'}",
    ]


def passed(result: Result) -> bool:
    """At least one fault, no problem, and nothing left behind."""
    return not result.problems and result.cleaned and any(not outcome.skipped for outcome in result.outcomes)
