"""One open block volume: reads, writes and discards of byte ranges, durable on a majority of replicas.

Requests are cut at chunk boundaries and at 1 MiB. Whole blocks go straight through; a write that does not cover whole
4 KiB blocks reads the blocks at its edges, and `ordering.RangeOrder` keeps that right beside other writes. Writes that
overlap and are in flight together may land in either order. A read beside a write of the same block sees the old or
the new block, never a mixture of both.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from curve_storage.client.cluster import Cluster
from curve_storage.client.datapath import Buffer, DataPath
from curve_storage.client.ordering import RangeOrder
from curve_storage.client.retry import Backoff
from curve_storage.client.segments import Chunks, SegmentMap
from curve_storage.client.session import RENEW_TIMEOUT, Session, open_patiently
from curve_storage.client.stall import StallMonitor
from curve_storage.client.throttle import VolumeThrottle
from curve_storage.errors import (
    ChunkNotExist,
    CurveError,
    Fenced,
    InUse,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Unauthenticated,
)
from curve_storage.proto import mds_pb2
from curve_storage.telemetry import logs
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE, SEGMENT_SIZE, MiB
from curve_storage.wire.messages import MessageType

MAX_REQUEST = MiB
DISCARD_WINDOW = 16
SEGMENT_TIMEOUT = 5.0
CLOSE_GRACE = 10.0

_BLOCK_MASK = BLOCK_SIZE - 1
_CHUNK_MASK = CHUNK_SIZE - 1
_SEGMENT_MASK = SEGMENT_SIZE - 1
_CHUNK_SHIFT = CHUNK_SIZE.bit_length() - 1
_SEGMENT_SHIFT = SEGMENT_SIZE.bit_length() - 1
_ZEROS = memoryview(bytes(MAX_REQUEST))

_log = logs.get("client")


def pieces(offset: int, length: int, limit: int = MAX_REQUEST) -> Iterator[tuple[int, int]]:
    """(offset, length) parts of a range that cross no chunk boundary and are at most `limit` bytes long."""
    end = offset + length
    while offset < end:
        part = min(end - offset, limit, CHUNK_SIZE - (offset & _CHUNK_MASK))
        yield offset, part
        offset += part


def zeros(length: int) -> memoryview:
    """A read-only view of `length` zero bytes."""
    return _ZEROS[:length] if length <= MAX_REQUEST else memoryview(bytes(length))


class BlockVolume:
    """Made by `open`. size: bytes; (epoch, generation): this writer's identity; fenced: another writer has taken over,
    nothing works any more. All methods raise Fenced then, OutOfRange beyond the end, PermissionDenied for writing to a
    volume opened read-only, and DeadlineExceeded when a patience was given and ran out."""

    def __init__(self, cluster: Cluster, session: Session, stall: StallMonitor, *, patience: float | None) -> None:
        """Use `open`."""
        self._clock = cluster.clock
        self._session = session
        self._stall = stall
        self._data = DataPath(cluster, session, stall, patience=patience, rng=random.Random())
        self._mds = cluster.mds
        self._segments = SegmentMap(cluster.clock, exclusive=not session.read_only)
        self._order = RangeOrder()
        self._throttle = VolumeThrottle()
        self._fence_callbacks: list[Callable[[], None]] = []
        self._closed = False
        self.throttled_seconds = 0.0
        self.read_only = session.read_only
        self.size = 0
        self.fenced = False
        session.on_volume = self._take
        session.on_lost = self._lost
        self._data.on_fenced = self._on_fenced
        self._take(session.volume)

    @classmethod
    async def open(
        cls,
        cluster: Cluster,
        *,
        path: str = "",
        volume_id: int = 0,
        epoch: int = 0,
        read_only: bool = False,
        patience: float | None = None,
    ) -> BlockVolume:
        """Opens by path or id. epoch: from AttachVolume, 0 for the present one; Fenced when it is an old one.
        patience: seconds that an operation keeps trying, None: for ever (a volume attached to a workload)."""
        session = Session(cluster.mds, cluster.clock, path=path, volume_id=volume_id, epoch=epoch, read_only=read_only)
        stall = StallMonitor(cluster.clock, path or f"volume {volume_id}")
        await open_patiently(session, patience, cluster.clock, stall)
        volume = cls(cluster, session, stall, patience=patience)
        session.keep()
        volume._data.start()
        return volume

    @property
    def volume_id(self) -> int:
        return self._session.volume_id

    @property
    def epoch(self) -> int:
        return self._session.epoch

    @property
    def generation(self) -> int:
        return self._session.generation

    @property
    def path(self) -> str:
        return self._session.volume.path

    def stalled(self) -> str | None:
        """What I/O has been waiting for, for more than a second; None when it flows."""
        return self._stall.reason()

    def on_fenced(self, callback: Callable[[], None]) -> None:
        """`callback` runs once, when (or at once if) the volume is fenced."""
        if self.fenced:
            callback()
        else:
            self._fence_callbacks.append(callback)

    # ---- operations

    async def read(self, offset: int, length: int) -> Buffer:
        """`length` bytes from `offset`; a read-only view where possible."""
        self._check(offset, length)
        if length == 0:
            return b""
        if self._throttle.active:
            await self._pace(length)
        if (offset | length) & _BLOCK_MASK:
            start, end = offset & ~_BLOCK_MASK, (offset + length + _BLOCK_MASK) & ~_BLOCK_MASK
            data: Buffer = memoryview(await self._read_aligned(start, end - start))
            data = data[offset - start : offset - start + length]
        else:
            data = await self._read_aligned(offset, length)
        return data

    async def read_into(self, offset: int, target: memoryview) -> None:
        """The same into a writable buffer of bytes."""
        target[:] = await self.read(offset, len(target))

    async def write(self, offset: int, data: Buffer) -> None:
        """Durable on a majority when done. `data` must not change until then."""
        length = len(data)
        self._check_mutation(offset, length)
        if length == 0:
            return
        if self._throttle.active:
            await self._pace(length)
        if (offset | length) & _BLOCK_MASK:
            await self._write_unaligned(offset, memoryview(data))
        else:
            key, waits = self._order.shared(offset, offset + length)
            try:
                if waits:
                    await asyncio.wait(waits)
                await self._write_aligned(offset, data)
            finally:
                self._order.leave(key)

    async def discard(self, offset: int, length: int) -> None:
        """The range reads as zeros afterwards; its whole blocks are freed, and its whole chunks given back."""
        self._check_mutation(offset, length)
        if length == 0:
            return
        end = offset + length
        first, last = (offset + _BLOCK_MASK) & ~_BLOCK_MASK, end & ~_BLOCK_MASK
        if first >= last:
            await self._zero_edge(offset, end)
        else:
            if offset < first:
                await self._zero_edge(offset, first)
            if last < end:
                await self._zero_edge(last, end)
            key, waits = self._order.shared(first, last)
            try:
                if waits:
                    await asyncio.wait(waits)
                await self._discard_aligned(first, last)
            finally:
                self._order.leave(key)

    async def flush(self) -> None:
        """Nothing to do: a write is durable when it is answered. Raises Fenced when later ones cannot be."""
        if self._data.dead is not None:
            raise self._data.dead

    async def refresh(self) -> int:
        """The size in bytes, from the MDS; the throttle is renewed too."""
        await self._session.renew_or_reopen(self._session.generation)
        return self.size

    async def close(self) -> None:
        """Waits a while for what is in flight, then gives the session back. Idempotent."""
        if self._closed:
            return
        self._closed = True
        deadline = self._clock.monotonic() + CLOSE_GRACE
        while self._data.dead is None and self._clock.monotonic() < deadline:
            if not (self._data.inflight or len(self._order) or self._segments.loading):
                break
            await asyncio.sleep(0.01)
        await self._data.close()
        for task in list(self._segments.loading.values()):
            task.cancel()
        await self._session.close()

    # ---- checks

    def _check(self, offset: int, length: int) -> None:
        if self._data.dead is not None:
            raise self._data.dead
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(
                f"bytes {offset} to {offset + length} of a volume of {self.size}",
                where=self.path,
                todo="Extend the volume, or refresh its size",
            )

    def _check_mutation(self, offset: int, length: int) -> None:
        self._check(offset, length)
        if self.read_only:
            raise PermissionDenied("the volume is open for reading only", where=self.path, todo="Open it for writing")

    async def _pace(self, length: int) -> None:
        delay = self._throttle.take(length, self._clock.monotonic())
        if delay > 0:
            self.throttled_seconds += delay
            await asyncio.sleep(delay)

    # ---- whole blocks

    async def _read_aligned(self, offset: int, length: int) -> Buffer:
        if length <= MAX_REQUEST and (offset & _CHUNK_MASK) + length <= CHUNK_SIZE:
            return await self._read_piece(offset, length)
        target = memoryview(bytearray(length))

        async def part(start: int, size: int) -> None:
            target[start - offset : start - offset + size] = await self._read_piece(start, size)

        await _all([part(start, size) for start, size in pieces(offset, length)])
        return target

    async def _read_piece(self, offset: int, length: int) -> memoryview:
        chunks = self._segments.get(offset >> _SEGMENT_SHIFT)
        if chunks is None:
            chunks = await self._segment(offset >> _SEGMENT_SHIFT, allocate=False)
            if chunks is None:
                return zeros(length)
        group, chunk = chunks[(offset & _SEGMENT_MASK) >> _CHUNK_SHIFT]
        try:
            return await self._data.read(group, chunk, offset & _CHUNK_MASK, length)
        except ChunkNotExist:
            return zeros(length)

    async def _write_aligned(self, offset: int, data: Buffer) -> None:
        length = len(data)
        if length <= MAX_REQUEST and (offset & _CHUNK_MASK) + length <= CHUNK_SIZE:
            await self._write_piece(offset, data)
            return
        view = memoryview(data)
        await _all(
            [self._write_piece(start, view[start - offset : start - offset + n]) for start, n in pieces(offset, length)]
        )

    async def _write_piece(self, offset: int, data: Buffer) -> None:
        chunks = self._segments.get(offset >> _SEGMENT_SHIFT)
        if chunks is None:
            chunks = await self._segment(offset >> _SEGMENT_SHIFT, allocate=True)
            assert chunks is not None
        group, chunk = chunks[(offset & _SEGMENT_MASK) >> _CHUNK_SHIFT]
        await self._data.mutate(MessageType.CHUNK_WRITE, group, chunk, offset & _CHUNK_MASK, len(data), data)

    async def _discard_aligned(self, first: int, last: int) -> None:
        # Whole chunks one by one, a window of them at a time: a large volume has thousands.
        window: list[Coroutine[Any, Any, None]] = []
        for start, size in pieces(first, last - first, CHUNK_SIZE):
            chunks = self._segments.get(start >> _SEGMENT_SHIFT)
            if chunks is None:
                chunks = await self._segment(start >> _SEGMENT_SHIFT, allocate=False)
            if chunks is None:
                continue
            group, chunk = chunks[(start & _SEGMENT_MASK) >> _CHUNK_SHIFT]
            window.append(self._discard_piece(group, chunk, start & _CHUNK_MASK, size))
            if len(window) == DISCARD_WINDOW:
                await _all(window)
                window = []
        await _all(window)

    async def _discard_piece(self, group: int, chunk: int, offset: int, length: int) -> None:
        try:
            await self._data.mutate(MessageType.CHUNK_DISCARD, group, chunk, offset, length, b"")
        except ChunkNotExist:
            return

    # ---- parts of blocks

    async def _write_unaligned(self, offset: int, data: memoryview) -> None:
        end = offset + len(data)
        start, stop = offset & ~_BLOCK_MASK, (end + _BLOCK_MASK) & ~_BLOCK_MASK
        key, waits = self._order.exclusive(start, stop)
        try:
            if waits:
                await asyncio.wait(waits)
            if stop - start == BLOCK_SIZE:
                await self._merge(start, offset, data)
                return
            first, last = (offset + _BLOCK_MASK) & ~_BLOCK_MASK, end & ~_BLOCK_MASK
            parts: list[Coroutine[Any, Any, None]] = []
            if offset < first:
                parts.append(self._merge(start, offset, data[: first - offset]))
            if first < last:
                parts.append(self._write_aligned(first, data[first - offset : last - offset]))
            if last < end:
                parts.append(self._merge(last, last, data[last - offset :]))
            await _all(parts)
        finally:
            self._order.leave(key)

    async def _merge(self, block: int, offset: int, data: memoryview) -> None:
        """Changes a part of the block at `block`; the caller holds it exclusively."""
        merged = bytearray(await self._read_piece(block, BLOCK_SIZE))
        merged[offset - block : offset - block + len(data)] = data
        await self._write_piece(block, merged)

    async def _zero_edge(self, offset: int, end: int) -> None:
        for start, size in pieces(offset, end - offset):
            if await self._segment(start >> _SEGMENT_SHIFT, allocate=False) is not None:
                await self._write_unaligned(start, zeros(size))

    # ---- segments

    async def _segment(self, index: int, *, allocate: bool) -> Chunks | None:
        """The chunks of a segment; None when it is not allocated. Waits for the MDS like any other I/O."""
        known = self._segments.get(index)
        if known is not None or (not allocate and self._segments.known_absent(index)):
            return known
        loading = self._segments.loading
        task = loading.get((index, allocate))
        if task is None:
            task = asyncio.get_running_loop().create_task(self._load_segment(index, allocate))
            loading[index, allocate] = task
            task.add_done_callback(lambda _task: loading.pop((index, allocate), None))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._data.dead is not None:
                raise self._data.dead from None
            raise

    async def _load_segment(self, index: int, allocate: bool) -> Chunks | None:
        session = self._session
        key = self._data.next_key()
        backoff = Backoff(0.02, 2.0)
        deadline = self._data.deadline()
        try:
            while True:
                if self._data.dead is not None:
                    raise self._data.dead
                generation = session.generation
                try:
                    reply = await self._mds.namespace.GetSegment(
                        mds_pb2.GetSegmentRequest(
                            volume_id=session.volume_id,
                            offset=index * SEGMENT_SIZE,
                            allocate=allocate,
                            session=session.id,
                            epoch=session.epoch,
                        ),
                        timeout=SEGMENT_TIMEOUT,
                    )
                    chunks = self._segments.store(index, reply)
                    if chunks is not None or not allocate:
                        return chunks
                    error = CurveError("the MDS allocated nothing", where=self.path, todo="See the log of the MDS")
                except Fenced as fenced:
                    self._data.die(fenced)
                    raise
                except (NotFound, Unauthenticated) as lost:
                    error = lost  # the session has run out, or the volume is gone: opening it anew tells which
                    await self._renew(generation)
                except CurveError as failed:
                    if not failed.retryable:
                        raise
                    error = failed
                what = f"the MDS to {'allocate' if allocate else 'describe'} a segment: {error}"
                await self._data.pause(key, backoff.next(), deadline, what, error)
        finally:
            self._stall.done(key)

    async def _renew(self, generation: int) -> None:
        try:
            await self._session.renew_or_reopen(generation, RENEW_TIMEOUT)
        except CurveError as error:
            if not error.retryable:
                raise

    # ---- news from the session

    def _take(self, volume: mds_pb2.Volume) -> None:
        self.size = max(self.size, volume.size)  # volumes only grow; replies may arrive out of order
        limits = volume.throttle
        self._throttle.configure(limits.iops, limits.bytes_per_second, self._clock.monotonic())

    def _lost(self, error: CurveError) -> None:
        if isinstance(error, InUse):
            return  # held by somebody for now: asked again later
        self._data.die(
            error
            if isinstance(error, Fenced)
            else Fenced(f"the volume cannot be opened again: {error.what}", where=self.path, todo="Detach the volume")
        )

    def _on_fenced(self, error: Fenced) -> None:
        self.fenced = True
        callbacks, self._fence_callbacks = self._fence_callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                _log.exception("fence_callback_failed", volume=self.path)


async def _all(parts: list[Coroutine[Any, Any, None]]) -> None:
    """Runs the parts of one request together. All have ended when it returns or raises: buffers are free again."""
    if len(parts) == 1:
        await parts[0]
        return
    results = await asyncio.gather(*parts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
