"""A local file served as if it were a volume: for tests and benchmarks of the node side alone.

Nothing is replicated and nobody is fenced. Users attach volumes.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from curve_storage.attach.device import Buffer
from curve_storage.errors import CurveError, OutOfRange

_PUNCH_AND_KEEP = 0x02 | 0x01
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class FileDevice:
    """delay: seconds added to every read and write, as a network has."""

    fenced = False

    def __init__(self, path: Path, *, read_only: bool = False, delay: float = 0.0) -> None:
        self.read_only = read_only
        self._path = path
        self._fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR))
        self._delay = delay
        self.size = os.fstat(self._fd).st_size

    async def read(self, offset: int, length: int) -> Buffer:
        self._check(offset, length)
        if self._delay:
            await asyncio.sleep(self._delay)
        return os.pread(self._fd, length, offset)

    async def write(self, offset: int, data: memoryview) -> None:
        self._check(offset, len(data))
        if self._delay:
            await asyncio.sleep(self._delay)
        if os.pwrite(self._fd, data, offset) != len(data):
            raise CurveError("short write", where=str(self._path))

    async def discard(self, offset: int, length: int) -> None:
        self._check(offset, length)
        if _libc.fallocate(self._fd, _PUNCH_AND_KEEP, offset, length):
            raise CurveError(f"cannot punch: {os.strerror(ctypes.get_errno())}", where=str(self._path))

    async def flush(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, os.fdatasync, self._fd)

    async def refresh(self) -> int:
        self.size = os.fstat(self._fd).st_size
        return self.size

    async def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def stalled(self) -> str | None:
        return None

    def on_fenced(self, callback: Callable[[], None]) -> None:
        """Never happens."""

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.size:
            raise OutOfRange(f"{length} bytes at {offset} are not within {self.size}", where=str(self._path))
