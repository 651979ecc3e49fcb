"""Load with a shadow copy: what every 4 KiB block may hold, given which writes were acknowledged.

A block's content names the block, the version and a seed, so a block that was never asked for, a torn block or one
from another place is recognised. While a write is under way its block may hold the old or the new version; once a read
has seen one of them, that is the state from then on.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from dataclasses import dataclass, field

from curve_storage.client import BlockVolume
from curve_storage.units import BLOCK_SIZE

ZERO = 0
_HEAD = struct.Struct("<QQQ")


def content(block: int, version: int) -> bytes:
    if version == ZERO:
        return bytes(BLOCK_SIZE)
    line = _HEAD.pack(block, version, (block * 2654435761 ^ version) & (2**64 - 1))
    return (line * (BLOCK_SIZE // len(line) + 1))[:BLOCK_SIZE]


def version_of(block: int, data: bytes) -> int:
    """Raises AssertionError when the data is no version of this block."""
    if not any(data):
        return ZERO
    _found, version, _seed = _HEAD.unpack_from(data)
    assert data == content(block, version), f"block {block}: not a whole version of it: {data[:32].hex()}"
    return version


@dataclass
class Stalls:
    """Completion times of requests, for the longest time without any and the slowest single one."""

    last: float = field(default_factory=time.monotonic)
    gap: float = 0.0
    slowest: float = 0.0
    count: int = 0

    def done(self, started: float) -> None:
        now = time.monotonic()
        self.gap = max(self.gap, now - self.last)
        self.slowest = max(self.slowest, now - started)
        self.last = now
        self.count += 1


class Checker:
    """runs: first block and number of blocks of each area; areas are far apart, to lie in different copysets."""

    def __init__(self, areas: list[tuple[int, int]], seed: int) -> None:
        self.blocks = [first + n for first, count in areas for n in range(count)]
        self.acknowledged: dict[int, int] = {}
        self.under_way: dict[int, set[int]] = {}
        self.rng = random.Random(seed)
        self.stalls = Stalls()
        self._next = 1
        self._areas = areas
        self._busy: set[int] = set()
        self._stop = asyncio.Event()
        self.task: asyncio.Future[None]

    def start(self, volume: BlockVolume) -> None:
        self._stop = asyncio.Event()
        self.task = asyncio.ensure_future(self._load(volume, self._stop))

    async def progress(self, count: int, seconds: float) -> None:
        """Until `count` more requests are done; raises what ended the load, TimeoutError when it stalls that long."""
        goal = self.stalls.count + count
        async with asyncio.timeout(seconds):
            while self.stalls.count < goal:
                if self.task.done():
                    self.task.result()
                    raise AssertionError("the load has ended")
                await asyncio.sleep(0.02)

    async def stop(self, seconds: float) -> None:
        """Lets what is under way finish."""
        self._stop.set()
        async with asyncio.timeout(seconds):
            await self.task

    async def abandon(self) -> None:
        """Cancels what is under way: it stays noted as possible."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _load(self, volume: BlockVolume, stop: asyncio.Event, workers: int = 8) -> None:
        self.stalls = Stalls()
        tasks = [asyncio.ensure_future(self._work(volume, stop)) for _ in range(workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _pick(self) -> list[int]:
        """Adjacent blocks that no other worker uses at the moment."""
        while True:
            first, count = self.rng.choice(self._areas)
            length = self.rng.choice((1, 1, 1, 2, 8, 16))
            start = first + self.rng.randrange(max(1, count - length))
            chosen = [start + n for n in range(min(length, count))]
            if not self._busy.intersection(chosen):
                return chosen

    async def _work(self, volume: BlockVolume, stop: asyncio.Event) -> None:
        while not stop.is_set():
            chosen = self._pick()
            self._busy.update(chosen)
            try:
                started = time.monotonic()
                action = self.rng.random()
                offset, length = chosen[0] * BLOCK_SIZE, len(chosen) * BLOCK_SIZE
                if action < 0.2:
                    self._check(chosen, bytes(await volume.read(offset, length)))
                else:
                    version = ZERO if action > 0.95 else self._next
                    self._next += 1
                    for block in chosen:
                        self.under_way.setdefault(block, set()).add(version)
                    if version == ZERO:
                        await volume.discard(offset, length)
                    else:
                        await volume.write(offset, b"".join(content(block, version) for block in chosen))
                    for block in chosen:
                        self.acknowledged[block] = version
                        self.under_way.pop(block)
                self.stalls.done(started)
            finally:
                self._busy.difference_update(chosen)

    def _check(self, blocks: list[int], data: bytes) -> None:
        for n, block in enumerate(blocks):
            found = version_of(block, data[n * BLOCK_SIZE : (n + 1) * BLOCK_SIZE])
            allowed = {self.acknowledged.get(block, ZERO)} | self.under_way.get(block, set())
            assert found in allowed, f"block {block} holds version {found}, not one of {sorted(allowed)}"

    async def verify(self, volume: BlockVolume) -> int:
        """Reads everything, no load beside it; returns how many blocks were compared."""
        for first, count in self._areas:
            for start in range(first, first + count, 64):
                blocks = list(range(start, min(start + 64, first + count)))
                data = bytes(await volume.read(start * BLOCK_SIZE, len(blocks) * BLOCK_SIZE))
                self._check(blocks, data)
                for n, block in enumerate(blocks):
                    self.acknowledged[block] = version_of(block, data[n * BLOCK_SIZE : (n + 1) * BLOCK_SIZE])
                    self.under_way.pop(block, None)
        return len(self.blocks)
