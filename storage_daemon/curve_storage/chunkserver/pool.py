"""Chunk files made ahead, so that a write never makes a file grow and never waits for the file system's allocation.

Directories under `pool/`; a file moves between them by rename:

    new     allocated, never written            clean  used before, header and table zeroed again (durably)
    ready   staged: the next ones to be taken   dirty  given back, to be cleaned

A taken file is written to before its rename is durable, so after a crash it may be back here with a few stray pages.
Therefore only files of `ready` are taken, their move to `ready` is durable beforehand, and at start everything in
`ready` and `dirty` is cleaned again. Data bytes need no zeroing: a chunk's table says which blocks were written.

A worker thread formats, cleans, and writes the data of staged files once, so that first writes do not split extents.
Everything else is called from the event loop. Errors of the disk go to `on_failed` (in the worker's thread).
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from curve_storage.chunkserver.atomic_file import fsync_directory
from curve_storage.chunkserver.chunk_file import DATA_START, FILE_SIZE, NO_SPACE, disk_failed
from curve_storage.chunkserver.config import PoolConfig
from curve_storage.errors import ConfigError, CurveError, NoSpace
from curve_storage.units import MiB, format_size

_FORMAT_BATCH = 8
_STAGE_NOW = 8
_PATIENCE = 1.0  # seconds that taking a file may wait for the worker
_RETRY = 10.0  # seconds between attempts to format when the file system is full


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Counts of chunk files. total: existing ones, in the pool and in copysets; target: what formatting aims at."""

    total: int
    free: int
    target: int
    reserve: int
    format_percent: int
    message: str

    @property
    def formatting(self) -> bool:
        return self.total < self.target and not self.message

    @property
    def full(self) -> bool:
        """No new chunk may be created by clients; what is committed already still finds the reserve."""
        return self.free <= self.reserve


class ChunkPool:
    def __init__(self, root: Path, config: PoolConfig, on_failed: Callable[[CurveError], None], *, log_size: int = 0):
        self._config = config
        self._on_failed = on_failed
        self._directories = {name: root / name for name in ("new", "clean", "ready", "dirty")}
        for directory in self._directories.values():
            directory.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._target = self._target_files(log_size)
        self._reserve = config.reserve if config.reserve is not None else min(16, self._target // 16)
        self._new: deque[str] = deque()
        self._clean: deque[str] = deque()
        self._ready: deque[str] = deque()
        self._dirty: deque[str] = deque()
        self._in_hand = 0  # files that are being cleaned at the moment
        self._staging = 0  # files that are being moved to `ready`
        self._used = 0
        self._total = 0  # files in existence, wherever they are
        self._number = 0
        self._message = ""
        self._retry_at = 0.0
        self._wake = threading.Event()
        self._stopping = False
        self._worker: threading.Thread | None = None

    def _target_files(self, log_size: int) -> int:
        size = self._config.size
        if isinstance(size, str):
            percent = 80.0 if size == "auto" else float(size[:-1])
            fs = os.statvfs(self._root)
            available = int(fs.f_blocks * fs.f_frsize * percent / 100) - (log_size if size == "auto" else 0)
        else:
            available = size
        files = available // FILE_SIZE
        if files < 2:
            raise ConfigError(
                f"pool.size: {size!r} gives {format_size(max(0, available))}, too little for two chunks of 16 MiB",
                where=str(self._root),
                todo="Use a larger disk, or set pool.size to at least 64Mi",
            )
        return files

    # ---- start, stop, state

    def scan(self, used: int) -> None:
        """Takes stock. used: chunk files that copysets and trash hold. Raises OSError."""
        self._used = used
        for name, queue in (("new", self._new), ("clean", self._clean), ("ready", self._dirty), ("dirty", self._dirty)):
            directory = self._directories[name]
            for entry in sorted(os.listdir(directory)):
                self._number = max(self._number, int(entry) if entry.isdigit() else 0)
                if name == "ready":
                    os.rename(directory / entry, self._directories["dirty"] / entry)
                else:
                    queue.append(entry)
        # What stopped the last process in the middle of formatting has another size.
        for entry in list(self._new):
            path = self._directories["new"] / entry
            if path.stat().st_size != FILE_SIZE:
                path.unlink()
                self._new.remove(entry)
        self._total = used + len(self._new) + len(self._clean) + len(self._ready) + len(self._dirty)

    def start(self) -> None:
        """Starts the worker; `scan` comes first."""
        self._worker = threading.Thread(target=self._work, name="pool", daemon=True)
        self._worker.start()

    def stop(self) -> None:
        """Ends the worker after the file it is at."""
        self._stopping = True
        self._wake.set()
        if self._worker is not None:
            self._worker.join(timeout=10)
            self._worker = None

    @property
    def free(self) -> int:
        return len(self._ready) + len(self._clean) + len(self._new) + self._staging

    @property
    def used(self) -> int:
        """Chunk files in copysets and trash, and given-back ones that are still to be cleaned."""
        return self._used + len(self._dirty)

    def status(self) -> PoolStatus:
        percent = min(100, 100 * self._total // self._target)
        return PoolStatus(self._total, self.free, self._target, self._reserve, percent, self._message)

    @property
    def first_batch_ready(self) -> bool:
        """Enough files for service, or everything there will be."""
        return self._total >= min(self._config.first_batch, self._target) or bool(self._message)

    def accepts_new_chunk(self) -> bool:
        """May a client's write create a chunk now? (The reserve is for followers and replay.)"""
        return self.free > self._reserve

    # ---- take and give back

    def take(self, destination: Path) -> None:
        """Moves a blank file to `destination` (its directory is synced by the next checkpoint). Raises NoSpace."""
        while not self._ready:
            self._stage_now()
        name = self._ready.popleft()
        os.rename(self._directories["ready"] / name, destination)
        self._used += 1
        if len(self._ready) < self._config.ready:
            self._wake.set()

    def _stage_now(self) -> None:
        """The worker has not kept up: waits for what it has in hand, or cleans some files here. Raises NoSpace."""
        patience = time.monotonic() + _PATIENCE
        while not self._clean and not self._new:
            if self._ready:
                return
            if self._clean_some(_STAGE_NOW):
                continue
            if not (self._in_hand or self._staging) or time.monotonic() > patience:
                raise NoSpace(
                    f"no free chunk: {self._message}" if self._message else "no free chunk is left in the pool",
                    where=str(self._root),
                    todo="Delete volumes, enlarge pool.size, or add chunkservers",
                )
            self._wake.set()  # no more writing ahead
            time.sleep(0.002)
        staged: list[str] = []
        while len(staged) < _STAGE_NOW:
            source, queue = ("clean", self._clean) if self._clean else ("new", self._new)
            try:
                name = queue.popleft()
            except IndexError:
                break
            os.rename(self._directories[source] / name, self._directories["ready"] / name)
            staged.append(name)
        fsync_directory(self._directories["ready"])
        self._ready.extend(staged)

    def give_back(self, path: Path) -> None:
        """A chunk file no longer needed; usable again when its header and table are zeroed. Raises OSError."""
        self._number += 1
        name = f"{self._number:08d}"
        try:
            os.rename(path, self._directories["dirty"] / name)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            # Not even a name fits any more: the space itself is worth more than the file made ahead.
            os.unlink(path)
            self._used -= 1
            self._total -= 1
            return
        self._used -= 1
        self._dirty.append(name)
        self._wake.set()

    # ---- the worker

    def _work(self) -> None:
        try:
            while not self._stopping:
                self._wake.clear()
                if not self._try_step():
                    self._wake.wait(timeout=1.0)
        except OSError as error:
            self._on_failed(disk_failed(error, Path(error.filename or self._root)))
        except CurveError as error:
            self._on_failed(error)

    def _try_step(self) -> bool:
        try:
            return self.step()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            return False  # what it had in hand is found again at the next start

    def step(self) -> bool:
        """One piece of the worker's work, the most urgent first; False when there is nothing to do. Raises OSError."""
        return self._clean_some() or self._format_some(first=True) or self._stage_some() or self._format_some()

    def _clean_some(self, most: int = 32) -> bool:
        batch: list[str] = []
        try:
            while len(batch) < most:
                batch.append(self._dirty.popleft())
                self._in_hand += 1
        except IndexError:
            pass
        if not batch:
            return False
        # The move out of the copyset first, or a crash could show the copyset a blanked chunk.
        fsync_directory(self._directories["dirty"])
        cleaned = []
        for name in batch:
            path = self._directories["dirty"] / name
            if path.stat().st_size != FILE_SIZE:
                path.unlink()
                self._total -= 1
                continue
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(descriptor, bytes(DATA_START), 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(path, self._directories["clean"] / name)
            cleaned.append(name)
        fsync_directory(self._directories["clean"])
        self._in_hand -= len(batch)
        self._clean.extend(cleaned)
        return True

    def _format_some(self, *, first: bool = False) -> bool:
        total = self._total
        goal = min(self._config.first_batch, self._target) if first else self._target
        missing = min(_FORMAT_BATCH, goal - total)
        if missing <= 0:
            if not first:
                self._message = ""
            return False
        if time.monotonic() < self._retry_at:
            return False
        made = []
        try:
            for _ in range(missing):
                self._keep_margin()
                self._number += 1
                name = f"{self._number:08d}"
                self._allocate(self._directories["new"] / name)
                made.append(name)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self._message = (
                f"the file system is full after {total + len(made)} of {self._target} chunks of pool.size; "
                "free space or set a smaller pool.size"
            )
            self._retry_at = time.monotonic() + _RETRY
        if made:
            fsync_directory(self._directories["new"])
            self._total += len(made)
            self._new.extend(made)
        return bool(made)

    def _keep_margin(self) -> None:
        """Checkpoints need room too: formatting leaves 2 % of the file system free."""
        fs = os.statvfs(self._root)
        if fs.f_bavail * fs.f_frsize < FILE_SIZE + min(1024 * MiB, fs.f_blocks * fs.f_frsize // 50):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._root))

    def _allocate(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, FILE_SIZE)
            os.fsync(descriptor)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(descriptor)

    def _stage_some(self) -> bool:
        """Moves one file to `ready`; one of `new` is written first, unless the pool is nearly empty."""
        if len(self._ready) >= self._config.ready:
            return False
        self._staging = 1
        try:
            source, name = "clean", self._clean.popleft()
        except IndexError:
            try:
                source, name = "new", self._new.popleft()
            except IndexError:
                self._staging = 0
                return False
        if source == "new" and len(self._ready) > 1 and len(self._new) > 1:
            self._write_ahead(self._directories["new"] / name)
        os.rename(self._directories[source] / name, self._directories["ready"] / name)
        fsync_directory(self._directories["ready"])
        self._ready.append(name)
        self._staging = 0
        return True

    def _write_ahead(self, path: Path) -> None:
        """Turns allocated extents into written ones, past the page cache where the file system can, at the set pace."""
        zeros = mmap.mmap(-1, MiB)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            started, done = time.monotonic(), 0
            while done < FILE_SIZE and not self._stopping and not self._wake.is_set():
                done += os.pwrite(descriptor, memoryview(zeros)[: min(MiB, FILE_SIZE - done)], done)
                time.sleep(max(0.0, started + done / self._config.bandwidth - time.monotonic()))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
