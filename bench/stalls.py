"""How long I/O waits when a process dies: `python -m bench.stalls`. Needs root.

A volume on a loop device over FUSE, eight threads with one 4 KiB request each at a time (70 % writes, O_DIRECT, random
over the whole volume), and one fault after the other, each several times. Printed per fault, median and worst: the
slowest single request that was under way from the fault until all threads go on, and the longest time in which nothing
at all was completed. The slowest request is what the goals are compared with: it is the stricter of the two. What
the return of the process costs (its restart, SIGCONT, leaders moving back) is a column of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from bench import block_jobs, output
from bench.probe import Probe, Wait, middle_and_worst
from bench.rig import UP_TIMEOUT, Rig, Say, progress, require, rig, workspace
from curve_storage.cli.playground import PlaygroundOptions
from curve_storage.cli.playground.processes import Identity, alive, identity, send
from curve_storage.client import Cluster, load_client_config
from curve_storage.proto import mds_pb2
from curve_storage.units import GiB, MiB, parse_size

LONGEST = 120.0  # seconds after which a stall counts as for ever


@dataclass(frozen=True)
class Goal:
    """Seconds: at least, aim. 0: not to be felt, that is within twice the slowest request before it, or 0.1 s."""

    least: float
    aim: float

    def word(self, worst: float, before: float) -> str:
        floor = max(2 * before, 0.1)
        if worst <= (self.aim or floor):
            return "aim"
        return "met" if worst <= (self.least or floor) else "missed"


GOALS = {
    "kill leader": Goal(1.0, 0.5),
    "stop leader": Goal(2.0, 1.5),
    "kill data process": Goal(0.5, 0.2),
    "kill mds": Goal(0.0, 0.0),
}
NAMES = {
    "kill leader": "kill -9 of the leader chunkserver",
    "stop leader": "SIGSTOP of the leader chunkserver",
    "kill data process": "kill -9 of the data process",
    "kill mds": "kill -9 of the MDS",
}


@dataclass
class Outcome:
    """Of each round. before: slowest request of the calm before the fault; waits: from the fault until it is undone;
    returns: from then on, until the cluster has been healthy for the time of the calm."""

    fault: str
    before: list[float] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    returns: list[Wait] = field(default_factory=list)


class Faults:
    def __init__(self, cluster: Rig, say: Say) -> None:
        self._rig, self._say = cluster, say

    def inject(self, fault: str) -> tuple[float, Callable[[], None]]:
        """Returns the moment of the fault, and what undoes it; to be called when the wait has been seen."""
        playground = self._rig.playground
        if fault == "kill data process":
            known = self._data_process()
            undo: Callable[[], None] = self._until_attached
        else:
            name = self._leading_mds() if fault == "kill mds" else self._busiest_chunkserver()
            found = playground.identity(name)
            if found is None:
                raise RuntimeError(f"{name} does not run")
            known, undo = found, self._restart
        number = signal.SIGSTOP if fault == "stop leader" else signal.SIGKILL
        moment = time.monotonic()
        if not send(known, number):
            raise RuntimeError(f"process {known.pid} has gone before the fault")
        if fault == "stop leader":
            return moment, lambda: self._resume(known)
        return moment, undo

    def _resume(self, known: Identity) -> None:
        send(known, signal.SIGCONT)

    def _restart(self) -> None:
        asyncio.run(self._rig.playground.up(PlaygroundOptions(), timeout=UP_TIMEOUT))

    def settle(self) -> None:
        """Until the cluster is healthy, and leads from more than one chunkserver again."""
        self._restart()

    def _attached(self) -> dict[str, object]:
        listed = json.loads(self._rig.curve("volume", "attachments", "-o", "json"))
        return dict((listed if isinstance(listed, list) else listed["attachments"])[0])

    def _data_process(self) -> Identity:
        known = identity(int(str(self._attached()["pid"])))
        if known is None:
            raise RuntimeError("the volume has no data process")
        return known

    def _until_attached(self) -> None:
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            found = self._attached()
            if alive(identity(int(str(found["pid"] or 0)))) and str(found["health"]).lower() in ("healthy", "ok"):
                return
            time.sleep(0.1)

    def _busiest_chunkserver(self) -> str:
        async def ask(cluster: Cluster) -> str:
            reply = await cluster.mds.topology.ListChunkServers(mds_pb2.ListChunkServersRequest(), timeout=20)
            most = max(reply.chunkservers, key=lambda c: c.leaders)
            return f"chunkserver{most.server.removeprefix('server')}"

        return self._ask(ask)

    def _leading_mds(self) -> str:
        async def ask(cluster: Cluster) -> str:
            return str((await cluster.mds.admin.GetLeader(mds_pb2.Empty(), timeout=20)).name)

        return self._ask(ask)

    def _ask(self, question: Callable[[Cluster], object]) -> str:
        async def work() -> str:
            cluster = Cluster(load_client_config(self._rig.playground.directory / "client.yaml"))
            try:
                return str(await question(cluster))  # type: ignore[misc]
            finally:
                await cluster.close()

        return asyncio.run(work())


def measure(cluster: Rig, device: str, options: argparse.Namespace, say: Say) -> list[Outcome]:
    faults = Faults(cluster, say)
    outcomes = {fault: Outcome(fault) for fault in options.faults}
    probe = Probe(device, options.size, threads=options.threads)
    probe.start()
    try:
        for number in range(options.rounds):
            for fault, outcome in outcomes.items():
                began = time.monotonic()
                probe.until_progress(began, LONGEST)
                time.sleep(options.calm)  # the measured calm before the fault
                usual = probe.waits(began, time.monotonic())
                moment, undo = faults.inject(fault)
                try:
                    probe.until_progress(moment, LONGEST)
                    if fault == "stop leader":
                        time.sleep(max(0.0, moment + options.stopped - time.monotonic()))
                        probe.until_progress(time.monotonic(), LONGEST)
                finally:
                    undone = time.monotonic()
                    undo()
                faults.settle()
                time.sleep(options.calm)
                probe.until_progress(time.monotonic(), LONGEST)
                wait, after = probe.waits(moment, undone), probe.waits(undone, time.monotonic())
                outcome.before.append(usual.slowest)
                outcome.waits.append(wait)
                outcome.returns.append(after)
                say(
                    f"round {number + 1}, {NAMES[fault]}: slowest request {wait.slowest:.3f} s, standstill "
                    f"{wait.standstill:.3f} s; at its return {after.slowest:.3f} s, before it {usual.slowest:.3f} s"
                )
    finally:
        probe.stop(LONGEST)
    return list(outcomes.values())


def table(outcomes: list[Outcome]) -> Table:
    titles = [
        "FAULT", "ROUNDS", "SLOWEST REQUEST", "WORST", "STANDSTILL", "WORST", "RETURN", "BEFORE", "AT LEAST", "AIM",
        "VERDICT",
    ]  # fmt: skip
    out = output.columns(titles, left=("FAULT", "VERDICT"))
    for outcome in outcomes:
        goal = GOALS[outcome.fault]
        middle, worst = middle_and_worst([wait.slowest for wait in outcome.waits])
        still, longest_still = middle_and_worst([wait.standstill for wait in outcome.waits])
        before = max(outcome.before)
        after = max(wait.slowest for wait in outcome.returns)
        out.add_row(
            NAMES[outcome.fault], str(len(outcome.waits)), f"{middle:.2f} s", f"{worst:.2f} s", f"{still:.2f} s",
            f"{longest_still:.2f} s", f"{after:.2f} s", f"{before:.2f} s", f"{goal.least:g} s", f"{goal.aim:g} s",
            goal.word(worst, before),
        )  # fmt: skip
    return out


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.stalls", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--faults", type=output.some_of(GOALS), default=",".join(GOALS), help=f"some of {', '.join(GOALS)}"
    )
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calm", type=float, default=3.0, help="seconds before each fault")
    parser.add_argument("--stopped", type=float, default=10.0, help="seconds a stopped process stays so")
    parser.add_argument("--size", type=parse_size, default=1024 * MiB, help="area of the load")
    parser.add_argument("--dir", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--output", type=Path, default=Path("build/stalls.json"))
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def main() -> None:
    options = parse_arguments()
    require("fio")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say = progress()
    need = options.size // GiB + 2
    with workspace(options.dir, say) as directory, rig(directory, say, pool_size=2 * need * GiB) as cluster:
        device = cluster.attach("fuse", need)
        say(f"filling {device}")
        block_jobs.fill("fuse", device, size=options.size, report=directory / "fill.json")
        outcomes = measure(cluster, device, options, say)
        cluster.remove("fuse")
    output.write(options.output, [asdict(outcome) for outcome in outcomes])
    out = output.console(200)
    out.print(table(outcomes))
    out.print(f"{os.cpu_count()} cores; written to {options.output}")


if __name__ == "__main__":
    main()
