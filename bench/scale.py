"""Scale: `python -m bench.scale`. CPU seconds and memory of one MDS, by default with 10,020 chunkservers and 1,002,000
copysets; bytes in etcd; memory of a client. All of it is the product's code; only network and etcd are left out."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.scale_cluster import BigCluster, Cost, Size, cpu, resident
from bench.scale_sizes import client_memory, record_bytes
from curve_storage.mds import health, messages
from curve_storage.mds.records import Entry
from curve_storage.units import MiB, TiB

SIZES = {
    "small": Size(zones=6, per_zone=50, replicas=30),
    "medium": Size(zones=60, per_zone=17, replicas=300),
    "large": Size(zones=60, per_zone=167, replicas=300),
}

Row = tuple[str, float, str]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    cost = Cost()
    with cpu(cost):
        result = work()
    return cost.seconds, result


async def measure(size: Size, show: Callable[[Row], None]) -> BigCluster:
    gc.collect()
    before = resident()
    began = time.process_time()
    cluster = BigCluster(size)
    await cluster.start()
    core = cluster.term.core
    show(("building the tables", time.process_time() - began, "s, with this program's own"))
    gc.collect()
    gc.freeze()
    stored = resident()
    show(("memory: metadata", (stored - before) / MiB, "MiB"))
    cost, sent = await cluster.everybody(full=True)
    show(("first full reports of all", cost.seconds, f"s CPU, {sent / MiB:.1f} MiB of replies"))
    gc.collect()
    show(("memory: what was reported", (resident() - stored) / MiB, "MiB"))
    await cluster.pass_time(60)
    for changed in (0, 3):
        cost, sent = await cluster.everybody(full=False, changed=changed)
        show((f"round of heartbeats, {changed} changes each", cost.seconds, f"s CPU, {sent / MiB:.2f} MiB of replies"))
    some = max(10, size.chunkservers // 60)
    cost, sent = await cluster.everybody(full=True, number=some)
    show((f"full reports of {some} chunkservers", cost.seconds, f"s CPU, {sent / MiB:.1f} MiB of replies"))
    schedule(cluster, show)
    show(("status: health and counts", timed(lambda: (health.judge(core), health.counts(core)))[0], "s CPU"))
    show(("status: pools", timed(lambda: messages.pools(core))[0], "s CPU"))
    seconds, _ = timed(lambda: cluster.term.segments.choose(Entry(id=99, parent=1, name="a", poolset="default")))
    show(("places of a new segment", seconds * 1000, "ms CPU"))
    await lose_one(cluster, show)
    show(("memory: all", resident() / MiB, "MiB"))
    return cluster


def schedule(cluster: BigCluster, show: Callable[[Row], None]) -> None:
    for what in ("first", "next"):
        seconds, steps = timed(cluster.term.scheduling.round)
        show((f"{what} round of the schedulers, in balance", seconds, f"s CPU, {len(steps)} steps"))


async def lose_one(cluster: BigCluster, show: Callable[[Row], None]) -> None:
    """One chunkserver is silent for good: its copysets are given to others, as many at a time as may be copied."""
    lost = frozenset({7})
    await cluster.pass_time(700, silent=lost)
    for what in ("first", "next"):
        seconds, steps = timed(cluster.term.scheduling.round)
        show((f"{what} round with a chunkserver lost", seconds, f"s CPU, {len(steps)} steps"))
    cost, _ = await cluster.everybody(full=False, changed=3, silent=lost)
    running = len(cluster.term.core.operators.running)
    show((f"round of heartbeats, {running} steps under way", cost.seconds, "s CPU"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="large", help="chunkservers: 300, 1,020 or 10,020")
    parser.add_argument("--output", type=Path, help="also write the figures there, as JSON")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    print(f"one MDS, {size.chunkservers} chunkservers, {size.copysets} copysets")
    rows: list[Row] = []

    def show(row: Row) -> None:
        rows.append(row)
        print(f"{row[0]:46} {row[1]:10.3f} {row[2]}", flush=True)

    asyncio.run(measure(size, show))
    for name, count in record_bytes().items():
        show((f"etcd: {name}", count, "bytes, key and value"))
    for allocated in (1 * TiB, 10 * TiB if arguments.size == "small" else 100 * TiB):
        show((f"client: segments of {allocated // TiB} TiB", client_memory(allocated) / MiB, "MiB"))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({name: value for name, value, _ in rows}, indent=1))


if __name__ == "__main__":
    main()
