"""Workers: one round at a time per cluster, woken by events, retried with growing pauses, gone with the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from curve_operator.reconcile import Outcome
from curve_operator.work import STALE, Workers
from curve_storage.clock import ManualClock, SystemClock
from curve_storage.errors import Unavailable


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_burst_of_events_is_one_round_and_rounds_do_not_overlap() -> None:
    running = rounds = most = 0

    async def run(namespace: str, name: str) -> Outcome:
        nonlocal running, rounds, most
        running += 1
        most = max(most, running)
        rounds += 1
        await asyncio.sleep(0.02)
        running -= 1
        return Outcome(1000)

    workers = Workers(run, SystemClock(), gather=0.05)
    for _ in range(50):
        workers.wake("ns", "a")
    await until(lambda: rounds == 1 and running == 0)
    workers.wake("ns", "a")
    await until(lambda: rounds == 2)
    assert most == 1
    await workers.close()


async def test_time_alone_is_a_reason() -> None:
    rounds = 0

    async def run(namespace: str, name: str) -> Outcome:
        nonlocal rounds
        rounds += 1
        return Outcome(0.01)

    workers = Workers(run, SystemClock(), gather=0)
    workers.wake("ns", "a")
    await until(lambda: rounds >= 5)
    await workers.close()


async def test_failures_are_retried_and_do_not_stop_others() -> None:
    seen: list[str] = []

    async def run(namespace: str, name: str) -> Outcome:
        seen.append(name)
        if name == "bad" and seen.count("bad") < 2:
            raise Unavailable("no API server")
        if name == "worse" and seen.count("worse") < 2:
            raise RuntimeError("a defect")
        return Outcome(1000)

    workers = Workers(run, SystemClock(), gather=0)
    for name in ("bad", "worse", "good"):
        workers.wake("ns", name)
    await until(lambda: seen.count("bad") == 2 and seen.count("worse") == 2 and seen.count("good") == 1)
    await workers.close()


async def test_a_deleted_cluster_is_forgotten_and_may_come_back() -> None:
    rounds = 0

    async def run(namespace: str, name: str) -> Outcome:
        nonlocal rounds
        rounds += 1
        return Outcome(0, gone=True)

    workers = Workers(run, SystemClock(), gather=0)
    workers.wake("ns", "a")
    await until(lambda: rounds == 1 and not workers._tasks)
    workers.wake("ns", "a")
    await until(lambda: rounds == 2)
    await workers.close()
    workers.wake("ns", "a")
    assert not workers._tasks or all(task.done() for task in workers._tasks.values())


async def test_a_round_that_hangs_makes_the_operator_unhealthy() -> None:
    clock = ManualClock()
    started = asyncio.Event()

    async def run(namespace: str, name: str) -> Outcome:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    workers = Workers(run, clock, gather=0)
    workers.wake("ns", "a")
    await asyncio.wait_for(started.wait(), 30)
    assert workers.stuck() is None
    clock.advance(STALE + 1)
    assert "ns/a" in (workers.stuck() or "")
    await workers.close()
