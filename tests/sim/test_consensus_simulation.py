"""Seeded lives of groups of 3 and 5 members. A failure names its seed; `SIM_BASE=<seed> SIM_SEEDS=1` repeats it.

In CI 1,000 seeds of 500 events; more: make sim SEEDS=100000. Seeds that failed once: failed_seeds.txt.
"""

from __future__ import annotations

import os

import consensus_cluster
import pytest

BASE = int(os.environ.get("SIM_BASE", "1"))
SEEDS = int(os.environ.get("SIM_SEEDS", "1000"))
CHUNK = 20


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(BASE, BASE + SEEDS, CHUNK))
def test_lives(first: int) -> None:
    for seed in range(first, min(first + CHUNK, BASE + SEEDS)):
        consensus_cluster.run(seed)


def test_the_same_seed_lives_the_same_life() -> None:
    first, second = consensus_cluster.run(42), consensus_cluster.run(42)
    assert first.time == second.time
    assert first.truth.acked == second.truth.acked
    assert first.truth.entries == second.truth.entries


def test_lives_are_eventful() -> None:
    """Elections, acknowledged commands, reads under lease, snapshots, recycled segments and changes all take place."""
    total = {"terms": 0, "acked": 0, "leases": 0, "reads": 0, "snapshots": 0, "epochs": 0, "recycled": 0, "slept": 0}
    for seed in range(2000, 2080):
        life = consensus_cluster.run(seed)
        total["terms"] += len(life.truth.leaders)
        total["acked"] += len(life.truth.acked)
        for name, count in life.counts.items():
            total[name] += count
    assert all(count >= 20 for count in total.values()), total
