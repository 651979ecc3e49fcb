"""What a round of the scrub costs a chunkserver at rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from curve_storage.chunkserver import scrub
from curve_storage.chunkserver.config import ScrubConfig
from curve_storage.clock import ManualClock
from curve_storage.consensus.api import Membership
from curve_storage.errors import Unavailable
from curve_storage.units import BLOCK_SIZE

COPYSETS = 50


class Chunks:
    """Counts how often it is asked for all its chunks, of which a large disk has very many."""

    def __init__(self) -> None:
        self.hollow: set[int] = set()
        self.asked = 0

    def suspect(self) -> list[int]:
        return []

    def with_files(self) -> list[int]:
        self.asked += 1
        return []


async def rounds(copysets: dict[int, Any], count: int, after: Callable[[scrub.Scrubber, int], None]) -> None:
    done = 0

    async def sleep(_seconds: float) -> None:
        nonlocal done
        done += 1
        after(scrubber, done)
        if done == count:
            raise asyncio.CancelledError

    scrubber = scrub.Scrubber(
        SimpleNamespace(by_group=copysets),  # type: ignore[arg-type]
        SimpleNamespace(),  # type: ignore[arg-type]
        SimpleNamespace(),  # type: ignore[arg-type]
        ScrubConfig(interval=1e9),
        ManualClock(),
        sleep=sleep,
    )
    with pytest.raises(asyncio.CancelledError):
        await scrubber.run()


async def test_chunks_are_asked_for_once_per_moment() -> None:
    """Not in every round: a moment of the interval lasts minutes, a round a second."""
    copysets = {number: SimpleNamespace(group=number, chunks=Chunks()) for number in range(1, COPYSETS + 1)}
    await rounds(copysets, 5, lambda _scrubber, _done: None)
    assert {copyset.chunks.asked for copyset in copysets.values()} == {1}


async def test_what_was_removed_is_forgotten() -> None:
    copysets = {number: SimpleNamespace(group=number, chunks=Chunks()) for number in range(1, 3001)}
    known: list[int] = []

    def after(scrubber: scrub.Scrubber, done: int) -> None:
        known.append(len(scrubber._passed))
        for number in list(copysets)[10:]:
            del copysets[number]

    await rounds(copysets, 2, after)
    assert known[0] > 3000 and known[1] <= 11


@pytest.mark.parametrize("made_anew", [False, True])
async def test_a_replica_removed_under_the_scrub_is_no_failure_of_the_disk(
    disk: Any, parts: SimpleNamespace, made_anew: bool
) -> None:
    """Whoever still holds the old one leaves the path alone: another replica may live there."""
    host, voters, clock = parts.FakeHost(), Membership(voters=(1,)), ManualClock()
    disk.copysets.create(parts.GROUP, voters, host)
    copyset = disk.copysets.by_group[parts.GROUP]
    for chunk in (1, 2):
        header, data = parts.write(chunk, 0, bytes([chunk]) * BLOCK_SIZE, chunk)
        copyset.apply(chunk, 1, header, memoryview(data))
    await copyset.checkpoint()
    copyset.apply(3, 1, b"", memoryview(b""))  # what the next checkpoint would write
    events: list[str] = []

    async def sleep(seconds: float) -> None:
        if "round" not in events:
            events.append("round")
            clock.advance(1001)
        elif "removed" not in events:
            assert len(copyset.chunks) == 2, "between two chunks"
            events.append("removed")
            await disk.copysets.remove(parts.GROUP, host)
            if made_anew:
                assert disk.copysets.create(parts.GROUP, voters, host)
        elif seconds == scrub._IDLE:
            raise asyncio.CancelledError

    scrubber = scrub.Scrubber(
        disk.copysets,
        SimpleNamespace(),  # type: ignore[arg-type]
        disk.monitor,
        ScrubConfig(interval=1000.0),
        clock,
        sleep=sleep,
    )
    with pytest.raises(asyncio.CancelledError):
        await scrubber.run()
    assert events == ["round", "removed"] and disk.failures == []
    assert await copyset.checkpoint() == 2 and not await copyset.renew_meta()
    copyset.chunks.hollow.add(9)
    with pytest.raises(Unavailable, match="removed"):
        copyset.chunks.materialize(9)
    assert disk.failures == []
    if made_anew:
        assert disk.load(parts.GROUP).applied == 0
    else:
        assert not disk.path(parts.GROUP).exists()
