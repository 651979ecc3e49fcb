"""Seeded lives of whole clusters. A failure names its seed and shows the last 100 events; `SIM_BASE=<seed> SIM_SEEDS=1`
repeats it.

In CI 16 seeds of 300 operations and faults; more: SIM_SEEDS=1000 SIM_BASE=5000 pytest, with this file.
"""

from __future__ import annotations

import os
from collections import Counter

import cluster_simulation
import pytest
from cluster_checker import Broken, History, Operation, pattern
from cluster_world import Violation

BASE = int(os.environ.get("SIM_BASE", "1"))
SEEDS = int(os.environ.get("SIM_SEEDS", "16"))
EVENTS = 300


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(BASE, BASE + SEEDS))
def test_lives(seed: int) -> None:
    cluster_simulation.run(seed, EVENTS)


KINDS = (
    "crash", "crash in the middle", "power", "pause", "partition", "one-way", "reset", "slow disk", "wall clock",
    "duplicates", "attached", "extended", "deleted", "rot", "disks lost",
)  # fmt: skip


@pytest.mark.timeout(900)
def test_lives_are_eventful() -> None:
    """Every kind of fault and change takes place within a few lives."""
    total: Counter[str] = Counter()
    for seed in range(1, 16):
        life = cluster_simulation.run(seed, EVENTS)
        total += life.world.counts
        total["acknowledged"] += life.history.acknowledged
        if all(total[kind] for kind in KINDS):
            break
    assert all(total[kind] for kind in KINDS) and total["acknowledged"] > 100, total


@pytest.mark.timeout(900)
def test_the_same_seed_lives_the_same_life() -> None:
    assert cluster_simulation.run(4, EVENTS).digest == cluster_simulation.run(4, EVENTS).digest


# --- the checker itself ----------------------------------------------------------------------------------------------


class _World:
    def __init__(self) -> None:
        self.trace: list[str] = []
        self.events = 0
        self.failures: list[str] = []

    def note(self, who: str, what: str) -> None:
        self.trace.append(what)

    def fail(self, what: str, upto: int | None = None) -> None:
        self.failures.append(what)


UNIT = ("/v", 0, -1)


def _read(history: History, number: int, writer: tuple[int, int] = (1, 1)) -> None:
    operation = history.begin("c", "read", writer, [UNIT], reading=True)
    history.decode(operation, pattern(number, UNIT) if number else bytes(4096), 0)
    history.end("c", operation)


def _write(history: History) -> Operation:
    operation = history.begin("c", "write", (1, 1), [UNIT])
    history.end("c", operation)
    return operation


def test_the_checker_takes_what_one_order_explains() -> None:
    history = History(_World())
    first = history.begin("c", "write", (1, 1), [UNIT])
    _write(history)
    _read(history, first.number)
    history.end("c", first)
    _read(history, first.number)
    lost = history.begin("c", "write", (1, 1), [UNIT])  # never answered, takes effect late
    _read(history, first.number)
    _read(history, lost.number)
    zeros = history.begin("c", "discard", (1, 1), [UNIT], zeros=True)
    history.end("c", zeros)
    _read(history, 0)
    assert history.check() == 1


def test_the_checker_finds_a_lost_write_and_a_stale_read() -> None:
    history = History(_World())
    first = _write(history)
    _write(history)
    _read(history, first.number)
    with pytest.raises(Broken, match="no order explains"):
        history.check()


def test_the_checker_finds_a_write_that_took_effect_twice() -> None:
    history = History(_World())
    first = _write(history)
    second = _write(history)
    _read(history, second.number)
    _read(history, first.number)
    with pytest.raises(Broken):
        history.check()


@pytest.mark.parametrize("acknowledged", [True, False])
def test_the_checker_finds_a_fenced_write(acknowledged: bool) -> None:
    """One that began before the attachment must have taken effect before it, or never."""
    history = History(_World())
    late = history.begin("c", "write", (1, 1), [UNIT])
    history.fence("/v", 2)
    _read(history, 0)
    if acknowledged:
        history.end("c", late)
    _read(history, late.number, (2, 2))
    with pytest.raises(Broken):
        history.check()


def test_an_acknowledgement_after_the_fence_is_noticed_at_once() -> None:
    world = _World()
    history = History(world)
    history.fence("/v", 2)
    world.note("-", "later")
    late = history.begin("c", "write", (1, 1), [UNIT])
    history.end("c", late)
    assert "fenced" in world.failures[0]


def test_a_mixture_and_a_misplaced_block_are_noticed() -> None:
    world = _World()
    history = History(world)
    operation = history.begin("c", "read", (1, 1), [UNIT], reading=True)
    history.decode(operation, pattern(1, UNIT)[:2048] + pattern(2, UNIT)[:2048], 0)
    history.decode(operation, pattern(1, ("/v", 7, -1)), 0)
    assert "mixture" in world.failures[0] and "belongs to 7" in world.failures[1]


def test_a_violation_carries_its_trace() -> None:
    violation = Violation("wrong", ["first", "second"])
    assert violation.trace == ["first", "second"] and "second" in str(violation)
