"""Memory and idle CPU of a cluster of three chunkservers: `python -m bench.footprint`. Needs root and fio.

Two clusters, one after the other. Memory of each chunkserver with 100 copysets: idle, then the highest
seen while fio writes and reads through NBD (4 KiB at depth 32, then 1 MiB at depth 4). Idle CPU with 300 copysets: of
every process of the cluster, over `--watch` seconds after it has come to rest. Copysets are those of the one pool:
each has a replica on every chunkserver.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from bench import block_jobs, output, tally
from bench.goals import Goal, word_at_most
from bench.rig import Rig, Say, progress, require, rig, workspace
from curve_storage.cli.playground.processes import alive
from curve_storage.consensus.config import RaftConfig
from curve_storage.errors import CurveError
from curve_storage.proto import mds_pb2
from curve_storage.rpc.leader import MdsClient
from curve_storage.units import GiB, MiB, format_size, parse_size

MB = 1_000_000
IDLE = Goal(150 * MB, 100 * MB)
LOADED = Goal(400 * MB, 300 * MB)
IDLE_CPU = Goal(3.0, 1.0)  # per cent of a core, the whole cluster
LOAD_JOBS = ("write_4k_qd32", "read_4k_qd32", "write_1m_qd4", "read_1m_qd4")
POOL = "default"
SETTLE = 120.0


@dataclass
class Footprint:
    """idle, loaded: bytes (rss, pss, private) by chunkserver; cpu: per cent of a core by process, idle."""

    copysets_memory: int
    copysets_cpu: int
    watched: float
    idle: dict[str, dict[str, int]] = field(default_factory=dict)
    loaded: dict[str, dict[str, int]] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


def chunkserver_memory(cluster: Rig) -> dict[str, dict[str, int]]:
    found = {}
    for known, name in cluster.processes().items():
        if name.startswith("chunkserver") and alive(known):
            found[name] = tally.memory(known.pid)
    return found


def highest(a: dict[str, dict[str, int]], b: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """By name and kind; what only one has is kept."""
    found = {name: dict(kinds) for name, kinds in a.items()}
    for name, kinds in b.items():
        mine = found.setdefault(name, {})
        for kind, value in kinds.items():
            mine[kind] = max(mine.get(kind, 0), value)
    return found


@contextmanager
def watched(cluster: Rig, into: Footprint, every: float = 0.5) -> Iterator[None]:
    """Notes the highest memory while the block runs."""
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            into.loaded = highest(into.loaded, chunkserver_memory(cluster))
            done.wait(every)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def add_copysets(cluster: Rig, wanted: int, say: Say) -> int:
    """Adds a pool, so that there are `wanted` copysets in all; returns how many there are, all of them healthy."""

    async def work() -> int:
        client = MdsClient(cluster.playground.layout().mds_addresses, deadline=60.0)
        try:
            pools = (await client.topology.ListPools(mds_pb2.Empty(), timeout=30)).pools
            present = sum(pool.copysets for pool in pools)
            if present < wanted:
                request = mds_pb2.CreatePoolRequest(
                    name="more", physical_pool="default", replicas=3, zones=3, copysets=wanted - present
                )
                await client.topology.CreatePool(request, timeout=SETTLE)
            deadline = time.monotonic() + SETTLE
            while True:
                pools = (await client.topology.ListPools(mds_pb2.Empty(), timeout=30)).pools
                count, healthy = sum(p.copysets for p in pools), sum(p.copysets_healthy for p in pools)
                if count == healthy and count >= wanted:
                    return count
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{healthy} of {count} copysets are healthy after {SETTLE:g} s")
                await asyncio.sleep(0.5)
        except CurveError as error:
            raise RuntimeError(str(error)) from error
        finally:
            await client.close()

    count = asyncio.run(work())
    say(f"{count} copysets, all healthy")
    return count


def at_rest(cluster: Rig, say: Say, *, below: float = 1.5, patience: float = SETTLE) -> None:
    """Until idle groups have had the time to hibernate, and then two spans of 5 s one after the other use nearly the
    same CPU: elections and creations are over."""
    deadline = time.monotonic() + patience
    time.sleep(2 * RaftConfig().hibernate_after)
    last = cpu(cluster, 5.0)
    while time.monotonic() < deadline:
        now = cpu(cluster, 5.0)
        total, before = sum(now.values()), sum(last.values())
        if total <= before * below and before <= total * below:
            return
        last = now
    say("warning: the cluster did not come to rest; measured all the same")


def cpu(cluster: Rig, seconds: float) -> dict[str, float]:
    """Per cent of a core by process."""
    names = cluster.processes()
    before, started = tally.read(names), time.monotonic()
    time.sleep(seconds)
    after, took = tally.read(names), time.monotonic() - started
    return {name: 100 * used.cpu / took for name, used in sorted(tally.spent(before, after, names).items())}


def memory(options: argparse.Namespace, directory: Path, found: Footprint, say: Say) -> None:
    need = options.size // GiB + 2
    with rig(directory, say, pool_size=2 * need * GiB) as cluster:
        found.copysets_memory = add_copysets(cluster, options.memory_copysets, say)
        at_rest(cluster, say)
        found.idle = chunkserver_memory(cluster)
        place = cluster.attach("nbd", need)
        with watched(cluster, found):
            for job in block_jobs.JOBS:
                if job.key in LOAD_JOBS:
                    say(f"load: {job.key}")
                    block_jobs.run(
                        job, "nbd", place, size=options.size, runtime=options.runtime, report=directory / "fio.json"
                    )
        cluster.remove("nbd")


def idle_cpu(options: argparse.Namespace, directory: Path, found: Footprint, say: Say) -> None:
    with rig(directory, say, pool_size=2 * GiB, volumehost=False) as cluster:
        found.copysets_cpu = add_copysets(cluster, options.cpu_copysets, say)
        at_rest(cluster, say)
        say(f"watching for {options.watch:g} s")
        found.cpu = cpu(cluster, options.watch)


def table(found: Footprint) -> Table:
    titles = ("WHAT", "RESIDENT", "PRIVATE", "AT MOST", "AIM", "VERDICT")
    out = output.columns(titles, left=("WHAT", "VERDICT"))
    for what, values, goal in (
        (f"idle, {found.copysets_memory} copysets", found.idle, IDLE),
        ("under load, highest", found.loaded, LOADED),
    ):
        for name, kinds in sorted(values.items()):
            out.add_row(
                f"{name}: {what}", f"{kinds['rss'] / MB:.0f} MB", f"{kinds['private'] / MB:.0f} MB",
                f"{goal.least / MB:.0f} MB", f"{goal.aim / MB:.0f} MB", word_at_most(goal, kinds["rss"]),
            )  # fmt: skip
    if found.cpu:
        total = sum(found.cpu.values())
        out.add_row(
            f"idle CPU of all processes, {found.copysets_cpu} copysets", f"{total:.2f} %", "",
            f"{IDLE_CPU.least:g} %", f"{IDLE_CPU.aim:g} %", word_at_most(IDLE_CPU, total),
        )  # fmt: skip
        servers = sum(value for name, value in found.cpu.items() if name.startswith("chunkserver"))
        out.add_row("  of it the three chunkservers", f"{servers:.2f} %")
        for name, value in found.cpu.items():
            out.add_row(f"    {name}", f"{value:.2f} %")
    return out


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.footprint", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory-copysets", type=int, default=100)
    parser.add_argument("--cpu-copysets", type=int, default=300)
    parser.add_argument("--watch", type=float, default=60.0, help="seconds over which idle CPU is taken")
    parser.add_argument("--runtime", type=float, default=10.0, help="seconds of each job of the load")
    parser.add_argument("--size", type=parse_size, default=512 * MiB, help="area of the load")
    parser.add_argument(
        "--parts", type=output.some_of(("memory", "cpu")), default="memory,cpu", help="some of memory,cpu"
    )
    parser.add_argument("--dir", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--output", type=Path, default=Path("build/footprint.json"))
    return parser.parse_args(argv)


def main() -> None:
    options = parse_arguments()
    require("fio")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say = progress()
    found = Footprint(options.memory_copysets, options.cpu_copysets, options.watch)
    with workspace(options.dir, say) as directory:
        if "memory" in options.parts:
            memory(options, directory, found, say)
        if "cpu" in options.parts:
            idle_cpu(options, directory, found, say)
    output.write(options.output, asdict(found))
    out = output.console(160)
    out.print(table(found))
    for name, kinds in sorted(found.loaded.items()):
        out.print(f"{name} under load: {format_size(kinds['pss'])} with shared pages by their share")
    out.print(f"written to {options.output}")


if __name__ == "__main__":
    main()
