"""Reads every chunk once per interval, within a bandwidth, and repairs what does not match its checksum.

Read from the disk, not from the page cache: block by block against the table, header and table against what this
process knows, the copyset's `meta` against its seal. Each chunk has its own moment in the interval, by the wall clock,
so that restarts neither postpone the scrub nor set it off.

Also gives hollow chunks a file as soon as the pool has one, and fetches at once what is known to be bad.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from curve_storage.chunkserver.chunk_file import ChunkFile
from curve_storage.chunkserver.config import ScrubConfig
from curve_storage.chunkserver.copyset import Copyset
from curve_storage.chunkserver.copysets import Copysets
from curve_storage.chunkserver.disk_state import DiskMonitor
from curve_storage.chunkserver.reading import read_checked
from curve_storage.chunkserver.repair import LONGEST, Repairer
from curve_storage.clock import Clock
from curve_storage.errors import CurveError, DiskFailed, StoreReadOnly, Unavailable
from curve_storage.telemetry import logs, metrics
from curve_storage.units import BLOCK_SIZE

META = -1
_MOMENTS = 1009
_IDLE = 1.0
_RESTART = 3600.0
_WATCH = "Watch this disk, replace it if it recurs"
_RETRY = 60.0  # seconds until a chunk that could not be repaired is tried again

log = logs.get("scrub")
_scrubbed = metrics.counter("curve_chunkserver_scrubbed_bytes", "Bytes read and verified by the scrub")
_chunks = metrics.counter("curve_chunkserver_scrubbed_chunks", "Chunks read and verified by the scrub")
_found = metrics.counter(
    "curve_chunkserver_scrub_damage", "Damage found by the scrub: bad blocks, and headers, tables and meta files"
)


class Scrubber:
    def __init__(
        self,
        copysets: Copysets,
        repairer: Repairer,
        disk: DiskMonitor,
        config: ScrubConfig,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        small_files: Callable[[], list[str]] = list,
    ) -> None:
        """small_files: checks the disk's other files, writes anew what has rotted, and names it. Raises OSError."""
        self._copysets = copysets
        self._repairer = repairer
        self._disk = disk
        self._config = config
        self._clock = clock
        self._sleep = sleep
        self._small_files = small_files
        self._retry_at: dict[tuple[int, int], float] = {}
        # What came due while this process was being restarted is done too.
        self._started = self._slot(min(_RESTART, config.interval / 20))
        self._passed: dict[int, int] = {}
        """Of each group the slot up to which everything was verified."""
        self._unsaved: set[int] = set()
        """Groups whose `meta` is to be looked at again: there was no space to write it anew."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                slot = self._slot()
                if self._config.enabled and self._due(0, [META], slot):
                    self._check_small_files()
                self._passed[0] = slot
                for copyset in list(self._copysets.by_group.values()):
                    try:
                        await self.copyset(copyset)
                    except Unavailable:
                        continue  # removed meanwhile
            except DiskFailed as error:
                self._disk.failed(error)
            self._forget_removed()
            await self._sleep(_IDLE)

    def _forget_removed(self) -> None:
        alive = {0, *self._copysets.by_group}
        for group in self._passed.keys() - alive:
            del self._passed[group]
        self._unsaved &= alive
        now = self._clock.monotonic()
        self._retry_at = {key: at for key, at in self._retry_at.items() if at > now and key[0] in alive}

    def _check_small_files(self) -> None:
        try:
            rotten = self._small_files()
        except OSError as error:
            log.warning("small files not verified", error=str(error))
            return
        for path in rotten:
            _found.inc()
            log.error("a small file has rotted on the disk; it was written anew", path=path, todo=_WATCH)

    async def copyset(self, copyset: Copyset) -> None:
        """Hollow chunks, those with known bad blocks, and those due. Raises DiskFailed, Unavailable (removed)."""
        for chunk in sorted(copyset.chunks.hollow):
            copyset.chunks.materialize(chunk)
        now = self._clock.monotonic()
        for number in copyset.chunks.suspect():
            if now >= self._retry_at.get((copyset.group, number), 0.0):
                self._retry_at[copyset.group, number] = now + _RETRY
                await self.chunk(copyset, number)
        slot = self._slot()
        if not self._config.enabled or self._passed.get(copyset.group) == slot:
            return
        if copyset.group in self._unsaved or self._due(copyset.group, [META], slot):
            await self._meta(copyset)
        for chunk in self._due(copyset.group, copyset.chunks.with_files(), slot):
            await self.chunk(copyset, chunk)
        self._passed[copyset.group] = slot
        await asyncio.sleep(0)  # a disk has very many chunks to ask

    def _slot(self, ago: float = 0.0) -> int:
        """The time in moments: something is due only when it changes. ago: seconds."""
        return int((self._clock.wall() - ago) * _MOMENTS // self._config.interval)

    def _due(self, group: int, chunks: Sequence[int], slot: int) -> list[int]:
        """Those whose moment has passed since the group was looked at last. A clock that was ahead counts as now."""
        since = min(self._passed.get(group, self._started), slot)
        found = []
        for chunk in chunks:
            moment = (group * 31 + chunk) * 389 % _MOMENTS
            if (slot - moment) // _MOMENTS > (since - moment) // _MOMENTS:
                found.append(chunk)
        return found

    async def chunk(self, copyset: Copyset, number: int) -> None:
        """Verifies and repairs one chunk; what cannot be repaired is logged. Raises as `copyset`."""
        cold = not copyset.chunks.is_open(number)
        chunk = copyset.chunks.get(number)
        if chunk is None:
            return
        chunk.forget_cached()
        await self._head(copyset, chunk)
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
        _chunks.inc()
        if cold and chunk is not None and not chunk.dirty and not chunk.stale:
            chunk.forget_cached()  # what nobody else reads need not stay in memory

    async def _head(self, copyset: Copyset, chunk: ChunkFile) -> None:
        """A chunk that nobody changes is never written anew, so a rotten header would wait for the next start."""
        if chunk.dirty or chunk.stale:
            return  # its next checkpoint writes both anew
        loop = asyncio.get_running_loop()
        differs = await loop.run_in_executor(copyset.around.io, chunk.head_on_disk_differs)
        # A checkpoint may have run beside the thread's read.
        if differs and not chunk.dirty and not chunk.stale and chunk.head_on_disk_differs():
            copyset.chunks.changed(chunk)
            _found.inc()
            log.error(
                "header or checksum table of a chunk has rotted on the disk; the next checkpoint writes it anew",
                group=copyset.group, chunk=chunk.id, path=str(chunk.path), todo=_WATCH,
            )  # fmt: skip

    async def _meta(self, copyset: Copyset) -> None:
        self._unsaved.discard(copyset.group)
        try:
            if await copyset.renew_meta():
                _found.inc()
                log.error(
                    "the checkpoint file of a replica has rotted on the disk; it was written anew",
                    group=copyset.group, path=str(copyset.path), todo=_WATCH,
                )  # fmt: skip
        except StoreReadOnly:
            self._unsaved.add(copyset.group)

    async def _repair(self, copyset: Copyset, chunk: int, blocks: list[int]) -> None:
        _found.inc(len(blocks))
        try:
            await self._repairer.repair(copyset, chunk, blocks)
        except DiskFailed:
            raise
        except CurveError as error:
            log.error("bad blocks not repaired", group=copyset.group, chunk=chunk, blocks=blocks[:8], error=str(error))
