"""The interface a file system implements to be served by a FUSE session.

Methods are coroutines and raise OSError with an errno, or a CurveError. Names are bytes, offsets and sizes bytes,
times seconds. Every method not overridden answers ENOSYS, which the kernel remembers and asks no more.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from curve_storage.fuse import abi

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Attributes:
    inode: int
    mode: int  # type and permissions, as st_mode
    size: int = 0
    links: int = 1
    uid: int = 0
    gid: int = 0
    time: float = 0.0  # of last access, modification and change alike
    block_size: int = 4096

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class Caching:
    """How long the kernel may keep an answer, in whole seconds."""

    entry: int = 0
    attributes: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    handle: int = 0
    flags: int = 0  # of abi.Open


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    name: bytes
    inode: int
    mode: int


@dataclass(frozen=True, slots=True)
class FilesystemSpace:
    blocks: int
    free: int
    block_size: int = 4096
    files: int = 0
    files_free: int = 0


def _unsupported() -> NoReturn:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


class Operations:
    caching = Caching()

    async def lookup(self, parent: int, name: bytes) -> Attributes:
        _unsupported()

    async def getattr(self, inode: int) -> Attributes:
        _unsupported()

    async def setattr(self, inode: int, valid: abi.SetAttr, wanted: Attributes) -> Attributes:
        _unsupported()

    async def open(self, inode: int, flags: int) -> Opened:
        _unsupported()

    async def read(self, inode: int, handle: int, offset: int, size: int) -> Buffer:
        """At most `size` bytes; fewer only at the end of the file."""
        _unsupported()

    async def write(self, inode: int, handle: int, offset: int, data: memoryview) -> int:
        """`data` is valid only until this returns. The number of bytes written."""
        _unsupported()

    async def flush(self, inode: int, handle: int) -> None:
        """A descriptor of the open file was closed."""
        _unsupported()

    async def fsync(self, inode: int, handle: int, data_only: bool) -> None:
        _unsupported()

    async def fallocate(self, inode: int, handle: int, offset: int, length: int, mode: abi.Fallocate) -> None:
        _unsupported()

    async def release(self, inode: int, handle: int) -> None:
        """The last descriptor of the open file is gone."""

    async def readdir(self, inode: int, offset: int) -> Sequence[DirectoryEntry]:
        """Entries from the `offset`-th on."""
        _unsupported()

    async def statfs(self, inode: int) -> FilesystemSpace:
        _unsupported()

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel dropped this many lookups of the inode."""
