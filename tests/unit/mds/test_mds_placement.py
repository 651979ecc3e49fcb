"""Copyset generation, segment allocation and capacity: pure arithmetic."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curve_storage.errors import FailedPrecondition, NoSpace
from curve_storage.mds.allocation import SegmentAllocator, copyset_weight
from curve_storage.mds.capacity import check_promise, usable
from curve_storage.mds.placement import Candidate, copyset_count, generate, plan
from curve_storage.units import GiB


def candidates(*per_zone: int) -> list[Candidate]:
    return [
        Candidate(zone * 100 + n, f"z{zone}", f"s{zone}-{n // 2}")
        for zone, count in enumerate(per_zone, 1)
        for n in range(count)
    ]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 6), min_size=3, max_size=7), st.integers(1, 3), st.integers(1, 80), st.integers(0, 1 << 30)
)
def test_members_are_distinct_and_in_distinct_zones(sizes: list[int], replicas: int, count: int, seed: int) -> None:
    nodes = candidates(*sizes)
    zone_of = {node.id: node.zone for node in nodes}
    made = generate(nodes, replicas=replicas, zones=replicas, count=count, rng=random.Random(seed))
    assert len(made.copysets) == count
    for members in made.copysets:
        assert len(set(members)) == len({zone_of[m] for m in members}) == replicas
    for zone in set(zone_of.values()):
        loads = [load for node, load in made.load.items() if zone_of[node] == zone]
        assert max(loads) - min(loads) <= 1


@pytest.mark.parametrize("sizes", [(4, 4, 4), (3, 3, 3, 3), (2, 2, 2, 2, 2, 2), (100, 100, 100)])
def test_even_zones_give_an_even_load(sizes: tuple[int, ...]) -> None:
    nodes = candidates(*sizes)
    count = len(nodes) * 8
    made = generate(nodes, replicas=3, zones=3, count=count, rng=random.Random(5))
    assert max(made.load.values()) - min(made.load.values()) <= 1
    assert made.least_scatter >= min(len(nodes) - sizes[0], 12)


def test_one_zone_uses_different_servers_where_it_can() -> None:
    nodes = [Candidate(n, "z", f"s{n % 3}") for n in range(6)]
    made = generate(nodes, replicas=3, zones=1, count=40, rng=random.Random(1))
    assert all(len({nodes[m].server for m in members}) == 3 for members in made.copysets)


def arguments(count: int = 0, scatter: int = 0) -> dict[str, object]:
    return {
        "replicas": 3, "zones": 3, "count": count, "scatter_width": scatter, "per_chunkserver": 4, "where": "pool",
        "rng": random.Random(1),
    }  # fmt: skip


def test_what_is_missing_is_named() -> None:
    with pytest.raises(FailedPrecondition, match=r"3 zones .* there are 2 \(z1: 2, z2: 1\)"):
        plan(candidates(2, 1), **arguments())  # type: ignore[arg-type]
    with pytest.raises(FailedPrecondition, match="there are 0"):
        plan([], **arguments())  # type: ignore[arg-type]
    with pytest.raises(FailedPrecondition, match="at most 4"):
        plan(candidates(2, 2, 2), **arguments(scatter=5))  # type: ignore[arg-type]
    with pytest.raises(FailedPrecondition, match="smaller scatter width"):
        plan(candidates(9, 9, 9), **arguments(count=9, scatter=18))  # type: ignore[arg-type]


def test_the_scatter_width_is_reached() -> None:
    made = plan(candidates(9, 9, 9), **arguments(scatter=14))  # type: ignore[arg-type]
    assert made.least_scatter >= 14
    assert len(made.copysets) >= copyset_count(27, 3, 4, 14)


def test_allocation_is_round_robin_over_equals() -> None:
    allocator = SegmentAllocator(random.Random(3))
    weights = {(1, n): 10.0 for n in range(16)}
    first = allocator.choose(weights, 64)
    assert set(Counter(first).values()) == {4}
    total = Counter(first)
    for _ in range(10):
        total.update(allocator.choose(weights, 64))
    assert max(total.values()) - min(total.values()) <= 1


def test_allocation_follows_free_space() -> None:
    allocator = SegmentAllocator(random.Random(3))
    weights = {(1, 1): 100.0, (1, 2): 300.0, (1, 3): 600.0}
    total: Counter[tuple[int, int]] = Counter()
    for _ in range(100):
        total.update(allocator.choose(weights, 64))
    assert [round(total[1, n] / 64) for n in (1, 2, 3)] == [10, 30, 60]


def test_a_copyset_that_comes_back_does_not_get_everything() -> None:
    allocator = SegmentAllocator(random.Random(3))
    both = {(1, 1): 1.0, (1, 2): 1.0}
    allocator.choose(both, 10)
    for _ in range(20):
        allocator.choose({(1, 1): 1.0}, 64)
    assert abs(Counter(allocator.choose(both, 64))[1, 1] - 32) <= 1


def test_the_fullest_member_decides() -> None:
    assert copyset_weight({1: 10, 2: 5, 3: 99}, (1, 2, 3)) == 5
    assert copyset_weight({1: 10}, (1, 2, 3)) == 1  # never nothing: thin volumes go on


@pytest.mark.parametrize(
    ("zones", "replicas", "distinct", "result"),
    [
        ([100, 100, 100], 3, 3, 100),
        ([100, 100, 1000], 3, 3, 100),
        ([100, 100, 100, 100], 3, 3, 133),
        ([50, 50, 50, 1000], 3, 3, 75),
        ([100, 100], 3, 3, 0),
        ([300], 3, 1, 100),
        ([100, 200], 3, 2, 100),
        ([], 3, 3, 0),
    ],
)
def test_usable(zones: list[int], replicas: int, distinct: int, result: int) -> None:
    assert usable(zones, replicas, distinct) == result


def test_promises() -> None:
    def check(wanted: int, ratio: float = 1.0) -> None:
        check_promise(poolset="p", capacity=10 * GiB, promised=8 * GiB, wanted=wanted, over_provisioning=ratio)

    check(2 * GiB)
    check(7 * GiB, 1.5)
    with pytest.raises(NoSpace, match=r"3 GiB more do not fit: poolset p holds 10 GiB.*8 GiB.*2 GiB are left"):
        check(3 * GiB)
    with pytest.raises(NoSpace, match=r"over-provisioning 1.5"):
        check(8 * GiB, 1.5)
