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

COPYSETS = 50


class Chunks:
    """No chunks; counts how often it is asked for its size."""

    def __init__(self) -> None:
        self.hollow: set[int] = set()
        self.sized = 0

    def __len__(self) -> int:
        self.sized += 1
        return 0

    def suspect(self) -> list[int]:
        return []

    def with_files(self) -> list[int]:
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


async def test_a_round_looks_at_each_copyset_once() -> None:
    copysets = {number: SimpleNamespace(group=number, chunks=Chunks()) for number in range(1, COPYSETS + 1)}
    await rounds(copysets, 3, lambda _scrubber, _done: None)
    assert sum(copyset.chunks.sized for copyset in copysets.values()) <= 3 * COPYSETS


async def test_what_was_removed_is_forgotten() -> None:
    copysets = {number: SimpleNamespace(group=number, chunks=Chunks()) for number in range(1, 3001)}
    known: list[int] = []

    def after(scrubber: scrub.Scrubber, done: int) -> None:
        known.append(len(scrubber._done))
        for number in list(copysets)[10:]:
            del copysets[number]

    await rounds(copysets, 2, after)
    assert known[0] > 3000 and known[1] <= 11
