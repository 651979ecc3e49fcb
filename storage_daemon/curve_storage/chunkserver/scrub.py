"""Reads every chunk once per interval, within a bandwidth, and repairs what does not match its checksum.

Also gives hollow chunks a file as soon as the pool has one, and fetches at once what is known to be bad.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from curve_storage.chunkserver.chunk_file import BLOCKS, DATA_START
from curve_storage.chunkserver.config import ScrubConfig
from curve_storage.chunkserver.copyset import Copyset
from curve_storage.chunkserver.copysets import Copysets
from curve_storage.chunkserver.disk_state import DiskMonitor
from curve_storage.chunkserver.reading import read_checked
from curve_storage.chunkserver.repair import LONGEST, Repairer
from curve_storage.clock import Clock
from curve_storage.errors import CurveError, DiskFailed
from curve_storage.telemetry import logs, metrics
from curve_storage.units import BLOCK_SIZE

_IDLE = 1.0
_RETRY = 60.0  # seconds until a chunk that could not be repaired is tried again

log = logs.get("scrub")
_scrubbed = metrics.counter("curve_chunkserver_scrubbed_bytes", "Bytes read and verified by the scrub")


class Scrubber:
    def __init__(
        self,
        copysets: Copysets,
        repairer: Repairer,
        disk: DiskMonitor,
        config: ScrubConfig,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._copysets = copysets
        self._repairer = repairer
        self._disk = disk
        self._config = config
        self._clock = clock
        self._sleep = sleep
        self._last: dict[tuple[int, int], float] = {}
        self._retry_at: dict[tuple[int, int], float] = {}
        self._started = clock.monotonic()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                for copyset in list(self._copysets.by_group.values()):
                    await self.copyset(copyset)
            except DiskFailed as error:
                self._disk.failed(error)
            await self._sleep(_IDLE)

    async def copyset(self, copyset: Copyset) -> None:
        """Hollow chunks, those with known bad blocks, and those that are due. Raises DiskFailed."""
        for chunk in sorted(copyset.chunks.hollow):
            copyset.chunks.materialize(chunk)
        now = self._clock.monotonic()
        for number in copyset.chunks.suspect():
            if now >= self._retry_at.get((copyset.group, number), 0.0):
                self._retry_at[copyset.group, number] = now + _RETRY
                await self.chunk(copyset, number)
        if not self._config.enabled:
            return
        known = copyset.chunks.with_files()
        for chunk in known:
            key = (copyset.group, chunk)
            # A chunk is first due one interval after start, spread by its number, so that a restart reads nothing.
            due = self._last.get(key, self._started - self._config.interval * (chunk % 97) / 97)
            if now - due >= self._config.interval:
                await self.chunk(copyset, chunk)
                self._last[key] = now
        if len(self._last) > 2 * sum(len(one.chunks) for one in self._copysets.by_group.values()) + 1024:
            self._last.clear()
            self._retry_at.clear()

    async def chunk(self, copyset: Copyset, number: int) -> None:
        """Verifies and repairs one chunk; what cannot be repaired is logged. Raises DiskFailed."""
        cold = not copyset.chunks.is_open(number)
        chunk = copyset.chunks.get(number)
        if chunk is None:
            return
        spans = chunk.written_runs(LONGEST)
        if chunk.bad:
            await self._repair(copyset, number, sorted(chunk.bad))
        for first, count in spans:
            started = self._clock.monotonic()
            chunk = copyset.chunks.get(number)
            if chunk is None:
                return
            length = count * BLOCK_SIZE
            data, bad = await read_checked(copyset, chunk, first * BLOCK_SIZE, length)
            if data is not None and bad:
                await self._repair(copyset, number, bad)
            _scrubbed.inc(length)
            await self._sleep(max(0.0, started + length / self._config.bandwidth - self._clock.monotonic()))
        if cold and chunk is not None and not chunk.dirty and not chunk.stale:
            # What nobody else reads need not stay in memory.
            os.posix_fadvise(chunk.fd, DATA_START, BLOCKS * BLOCK_SIZE, os.POSIX_FADV_DONTNEED)

    async def _repair(self, copyset: Copyset, chunk: int, blocks: list[int]) -> None:
        try:
            await self._repairer.repair(copyset, chunk, blocks)
        except DiskFailed:
            raise
        except CurveError as error:
            log.error("bad blocks not repaired", group=copyset.group, chunk=chunk, blocks=blocks[:8], error=str(error))
