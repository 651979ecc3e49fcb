"""The schedule of faults: everything from the seed, never two replicas at once, every kind in its turn."""

from __future__ import annotations

import itertools

import pytest

from e2e.chaos import plan
from e2e.chaos.plan import KINDS, Action, Domain
from e2e.chaos.run import TARGETS

HOUR = 3600.0


def test_same_seed_same_schedule() -> None:
    assert plan.make(7, HOUR, 13, TARGETS) == plan.make(7, HOUR, 13, TARGETS)
    assert plan.make(7, HOUR, 13, TARGETS) != plan.make(8, HOUR, 13, TARGETS)


@pytest.mark.parametrize("seed", range(30))
def test_an_hour_has_two_hundred_faults_of_all_kinds(seed: int) -> None:
    faults = plan.make(seed, HOUR, 13, TARGETS)
    assert len(faults) >= 220
    assert {fault.kind for fault in faults} == set(KINDS)
    assert [fault.number for fault in faults] == list(range(1, len(faults) + 1))
    assert all(0 <= fault.at < HOUR and fault.target in TARGETS[fault.kind.targets] for fault in faults)
    assert all(fault.kind.shortest <= fault.seconds <= fault.kind.longest for fault in faults)
    assert sum(fault.kind.action == Action.EXTEND for fault in faults) <= 10


@pytest.mark.parametrize("seed", range(30))
def test_one_fault_of_a_domain_at_a_time(seed: int) -> None:
    """So a majority of every copyset can serve: no chunkserver is hit before the last one had time to recover."""
    for domain in Domain:
        end = 0.0
        for fault in plan.make(seed, HOUR, 13, TARGETS):
            if domain in fault.kind.domains:
                assert fault.at >= end - 0.05, f"{fault} begins before {domain} is whole"
                end = fault.at + fault.seconds + fault.kind.settle


def test_domains_overlap() -> None:
    faults = plan.make(1, HOUR, 13, TARGETS)
    pairs = itertools.pairwise(faults)
    assert sum(later.at < earlier.at + earlier.seconds for earlier, later in pairs) > 10


def test_extensions_are_counted() -> None:
    faults = plan.make(1, HOUR, 5, TARGETS, extends=2)
    assert sum(fault.kind.action == Action.EXTEND for fault in faults) == 2


def test_every_kind_has_a_description_of_its_own() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
