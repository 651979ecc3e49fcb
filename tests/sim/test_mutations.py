"""The checkers must be able to fail: known mistakes are planted one at a time, and each must be found."""

from __future__ import annotations

import cluster_simulation
import consensus_cluster
import copyset_crash_sweep
import pytest
import test_log_crash_sweep
from mutations import CLUSTERS, COPYSET, GROUPS, LOG, Mutation, all_mutations

LIVES = 600
CLUSTER_LIVES = 16
CLUSTER_EVENTS = 300
LOG_SEEDS = (2, 5, 6)
COPYSET_SEEDS = (1, 2, 3, 4)
STEPS = 40
EVERY = 7
UNFIT = ("TypeError", "AttributeError", "NameError")
"""What a plant raises by itself when the product has changed: such a failure is nothing that a check has found."""


def check(kind: str) -> None:
    """Raises when something is wrong."""
    if kind == GROUPS:
        for seed in range(1, 1 + LIVES):
            consensus_cluster.run(seed)
    elif kind == LOG:
        for seed in LOG_SEEDS:
            test_log_crash_sweep.sweep(seed, 25)
    elif kind == CLUSTERS:
        for seed in range(1, 1 + CLUSTER_LIVES):
            cluster_simulation.run(seed, CLUSTER_EVENTS)
    else:
        assert kind == COPYSET
        for seed in COPYSET_SEEDS:
            assert copyset_crash_sweep.sweep(seed, STEPS, EVERY) > 50


@pytest.mark.timeout(900)
@pytest.mark.parametrize("planted", all_mutations(), ids=lambda planted: planted.name)
def test_a_planted_mistake_is_found(planted: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.plant(monkeypatch)
    try:
        check(planted.check)
    except Exception as found:
        said = f"{type(found).__name__}: {found}"
        print(f"{planted.name}: {said[:300]}")
        assert not any(f"{name}: " in said for name in UNFIT), f"the mistake does not fit the product any more: {said}"
        return
    raise AssertionError(f"{planted.check} did not notice: {planted.what}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [GROUPS, LOG, COPYSET, CLUSTERS])
def test_without_a_mistake_nothing_is_found(kind: str) -> None:
    check(kind)


def test_the_list_is_long_enough_and_its_names_differ() -> None:
    names = [planted.name for planted in all_mutations()]
    assert len(names) == len(set(names)) >= 18
