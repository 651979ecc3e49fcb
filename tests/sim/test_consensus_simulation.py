"""Seeded lives of groups of 3 and 5 members. A failure names its seed; `SIM_BASE=<seed> SIM_SEEDS=1` repeats it.

In CI 1,000 seeds of 500 events; more: SIM_SEEDS=100000 SIM_BASE=5000 pytest tests/sim -n 2.
"""

from __future__ import annotations

import os

import consensus_cluster
import pytest

BASE = int(os.environ.get("SIM_BASE", "1"))
SEEDS = int(os.environ.get("SIM_SEEDS", "1000"))
CHUNK = 20

REGRESSIONS: dict[int, str] = {
    28: "a position refused at the log's base was tried again without end",
    387: "a leader of an earlier term installed a snapshot",
    29985: "a learner with nothing to receive after its snapshot was probed for ever",
}
"""Seeds that failed since the simulation took its present form, and why. A change of the simulation's choices makes
seeds mean something else: what it found before is kept as directed tests in tests/unit/consensus."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(BASE, BASE + SEEDS, CHUNK))
def test_lives(first: int) -> None:
    for seed in range(first, min(first + CHUNK, BASE + SEEDS)):
        consensus_cluster.run(seed)


@pytest.mark.parametrize("seed", sorted(REGRESSIONS))
def test_seeds_that_failed_once(seed: int) -> None:
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
