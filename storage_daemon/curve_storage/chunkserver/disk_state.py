"""What the heartbeat says of the disk, and what clients are told while it is full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from curve_storage.chunkserver.atomic_file import write_atomic
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.errors import CurveError, NoSpace, StoreReadOnly
from curve_storage.proto import mds_pb2
from curve_storage.telemetry import logs

PROBE = "space-probe"
_PROBE_SIZE = 1 << 20

log = logs.get("disk")


class DiskMonitor:
    """Implements copyset.DiskSpace. on_failed: called once, with the error after which the disk is not trusted."""

    def __init__(self, directory: Path, pool: ChunkPool, on_failed: Callable[[CurveError], None]) -> None:
        self._directory = directory
        self._pool = pool
        self._on_failed = on_failed
        self._exhausted = ""
        self.failure: CurveError | None = None
        self._was_full = False

    def exhausted(self, what: str) -> StoreReadOnly:
        if not self._exhausted:
            log.error("the file system is full, the store is read-only", reason=what)
        self._exhausted = what
        return self.store_read_only()

    def look_again(self) -> None:
        """Writable again when a small file can be written."""
        if not self._exhausted:
            return
        probe = self._directory / PROBE
        try:
            write_atomic(probe, bytes(_PROBE_SIZE))
        except OSError:
            return
        probe.unlink()
        self._exhausted = ""
        log.info("the file system has space again, the store is writable")

    def failed(self, error: CurveError) -> None:
        if self.failure is None:
            self.failure = error
            log.critical("this chunkserver ends", error=str(error), code=error.code)
            self._on_failed(error)

    @property
    def read_only(self) -> bool:
        """Nothing at all may be written (an empty pool only stops new chunks)."""
        return bool(self._exhausted)

    def no_space(self) -> NoSpace:
        status = self._pool.status()
        if status.formatting:
            return NoSpace(
                f"the chunk pool is still being made ({status.format_percent} %)", todo="Retry in a few seconds"
            )
        return NoSpace(
            f"the chunk pool is used up ({status.free} of {status.total} chunks free, {status.reserve} in reserve)",
            todo="Delete volumes, add chunkservers, or enlarge pool.size",
        )

    def store_read_only(self) -> StoreReadOnly:
        return StoreReadOnly(
            f"the store is read-only: the file system is full ({self._exhausted})",
            todo="Free space on the chunkserver's file system; it becomes writable by itself",
        )

    def state(self) -> tuple[mds_pb2.DiskState.ValueType, str]:
        """The state for a heartbeat with a sentence on why it is not normal."""
        status = self._pool.status()
        if self.failure is not None:
            return mds_pb2.DISK_STATE_ERROR, str(self.failure)
        full = status.full and not status.formatting
        if full != self._was_full:
            self._was_full = full
            log.warning("the chunk pool is used up" if full else "the chunk pool has chunks again", free=status.free)
        if self._exhausted or full:
            error = self.store_read_only() if self._exhausted else self.no_space()
            return mds_pb2.DISK_STATE_FULL, str(error)
        if status.formatting:
            return mds_pb2.DISK_STATE_FORMATTING, f"the chunk pool is being made: {status.format_percent} %"
        return mds_pb2.DISK_STATE_NORMAL, status.message
