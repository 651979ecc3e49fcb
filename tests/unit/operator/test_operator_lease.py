"""One leader: candidates with clocks of their own on one Lease object, with lost updates, pauses and refusals."""

from __future__ import annotations

import asyncio
import copy
import random
from typing import Any

import pytest

from curve_operator import lease as module
from curve_operator.lease import DURATION, STOP_AFTER, Lease, Sighting, decide
from curve_storage.clock import ManualClock
from curve_storage.errors import Aborted, AlreadyExists, Unavailable


class FakeApi:
    """One Lease with optimistic locking; `down` makes every call fail."""

    def __init__(self) -> None:
        self.object: dict[str, Any] | None = None
        self.version = 0
        self.down = False

    async def get(self, api: str, kind: str, name: str, namespace: str = "") -> dict[str, Any] | None:
        self._check()
        return copy.deepcopy(self.object)

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self._check()
        if self.object is not None:
            raise AlreadyExists("exists")
        return self._store(manifest)

    async def replace(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self._check()
        if self.object is None or manifest["metadata"].get("resourceVersion") != str(self.version):
            raise Aborted("conflict")
        return self._store(manifest)

    def _check(self) -> None:
        if self.down:
            raise Unavailable("no API server")

    def _store(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.object = copy.deepcopy(manifest)
        self.object["metadata"]["resourceVersion"] = str(self.version)
        return self.object


def candidate(api: FakeApi, name: str, start: float = 0.0) -> tuple[Lease, ManualClock]:
    clock = ManualClock(start)
    return Lease(api, clock, name="l", namespace="n", identity=name), clock


async def test_first_comes_second_waits_until_the_lease_is_over() -> None:
    api = FakeApi()
    one, _ = candidate(api, "one")
    two, clock = candidate(api, "two", 5000)
    assert await one.attempt() and one.held()
    assert not await two.attempt() and not two.held()
    clock.advance(DURATION - 0.1)
    assert not await two.attempt()
    clock.advance(0.2)
    assert await two.attempt() and two.held()
    assert api.object is not None and api.object["spec"]["leaseTransitions"] == 1


async def test_a_renewal_starts_the_wait_anew() -> None:
    api = FakeApi()
    one, first = candidate(api, "one")
    two, clock = candidate(api, "two")
    assert await one.attempt()
    assert not await two.attempt()
    clock.advance(DURATION - 1)
    first.advance(DURATION - 1)
    assert await one.attempt()
    clock.advance(2)
    assert not await two.attempt()


async def test_the_holder_stops_before_another_can_start() -> None:
    """The margin holds for the worst case: the other saw the last renewal at the very moment it was sent."""
    api = FakeApi()
    one, first = candidate(api, "one")
    two, second = candidate(api, "two")
    assert await one.attempt()
    assert not await two.attempt()
    assert STOP_AFTER < DURATION
    for clock in (first, second):
        clock.advance(STOP_AFTER)
    assert not one.held()
    assert not await two.attempt()


async def test_release_hands_over_at_once() -> None:
    api = FakeApi()
    one, _ = candidate(api, "one")
    two, _ = candidate(api, "two")
    assert await one.attempt()
    await one.release()
    assert not one.held()
    assert await two.attempt()
    await one.release()
    assert two.held()


async def test_of_two_that_take_it_at_once_one_wins() -> None:
    api = FakeApi()
    api.object = {"metadata": {"resourceVersion": "0"}, "spec": {}}
    got = await asyncio.gather(*(candidate(api, name)[0].attempt() for name in "abcde"))
    assert got.count(True) == 1


async def test_keep_reports_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_EVERY", 0.001)
    api = FakeApi()
    one, clock = candidate(api, "one")
    assert await one.attempt()
    lost = asyncio.Event()
    task = asyncio.create_task(one.keep(lost.set))
    api.down = True
    await asyncio.sleep(0.02)
    assert not lost.is_set(), "an API server that is away for a moment is no loss"
    clock.advance(STOP_AFTER)
    await asyncio.wait_for(lost.wait(), 30)
    await task


async def test_keep_notices_that_another_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_EVERY", 0.001)
    api = FakeApi()
    one, _ = candidate(api, "one")
    assert await one.attempt()
    assert api.object is not None
    api.object["spec"]["holderIdentity"] = "two"
    lost = asyncio.Event()
    await asyncio.wait_for(one.keep(lost.set), 30)
    assert lost.is_set()


@pytest.mark.parametrize("seed", range(30))
async def test_never_two_holders(seed: int) -> None:
    """Random renewals, pauses, failures and clock rates; true time advances for all, each clock with its own error."""
    chance = random.Random(seed)
    api = FakeApi()
    members = [(*candidate(api, f"m{index}", chance.uniform(0, 1e6)), chance.uniform(0.98, 1.02)) for index in range(3)]
    for _ in range(400):
        passed = chance.choice((0.1, 1.0, 4.0, 9.0))
        for _, clock, rate in members:
            clock.advance(passed * rate)
        api.down = chance.random() < 0.2
        one = chance.choice(members)[0]
        try:
            await one.attempt()
        except Unavailable:
            pass
        assert sum(item.held() for item, _, _ in members) <= 1


def test_decide_is_pure() -> None:
    assert decide(None, "a", Sighting(), 0)[0] == "create"
    held = {"spec": {"holderIdentity": "b", "renewTime": "t", "leaseDurationSeconds": 15}}
    step, seen = decide(held, "a", Sighting(), 100)
    assert (step, seen.at) == ("wait", 100)
    assert decide(held, "a", seen, 116)[0] == "take"
    assert decide(held, "b", seen, 100)[0] == "renew"
