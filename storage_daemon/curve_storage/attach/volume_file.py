"""A FUSE file system whose one file, `volume`, is the volume: a loop device over it is the block device.

Only root can enter. Reads and writes bypass the page cache and run in parallel; the loop device above caches.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from curve_storage.attach.device import BlockDevice
from curve_storage.fuse import abi
from curve_storage.fuse.ops import (
    Attributes,
    Buffer,
    Caching,
    DirectoryEntry,
    FilesystemSpace,
    Opened,
    Operations,
)
from curve_storage.units import BLOCK_SIZE

FILE_NAME = "volume"
FILE_INODE = 2

_NAME = FILE_NAME.encode()
_ROOT = Attributes(inode=abi.ROOT_INODE, mode=stat.S_IFDIR | 0o500, links=2)
_OPENED = Opened(flags=abi.Open.DIRECT_IO | abi.Open.PARALLEL_DIRECT_WRITES)
_DISCARDING = (abi.Fallocate.PUNCH_HOLE, abi.Fallocate.ZERO_RANGE)


class VolumeFile(Operations):
    """The size changes only through `resized`, which the kernel is then told of: so attributes may be cached long.

    A cached attribute also means that the kernel answers stat without us, even while no process serves the file.
    """

    caching = Caching(entry=86400, attributes=86400)

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._read = device.read
        self._write = device.write
        self._size = device.size
        self._mode = stat.S_IFREG | (0o400 if device.read_only else 0o600)

    def resized(self) -> None:
        self._size = self._device.size

    def _attributes(self) -> Attributes:
        return Attributes(inode=FILE_INODE, mode=self._mode, size=self._size)

    async def lookup(self, parent: int, name: bytes) -> Attributes:
        if parent != abi.ROOT_INODE or name != _NAME:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._attributes()

    async def getattr(self, inode: int) -> Attributes:
        return _ROOT if inode == abi.ROOT_INODE else self._attributes()

    async def setattr(self, inode: int, valid: abi.SetAttr, wanted: Attributes) -> Attributes:
        if valid & abi.SetAttr.SIZE and wanted.size != self._size:
            raise PermissionError(errno.EPERM, "the size of a volume is changed by expanding it")
        return await self.getattr(inode)

    async def open(self, inode: int, flags: int) -> Opened:
        if self._device.read_only and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return _OPENED

    async def read(self, inode: int, handle: int, offset: int, size: int) -> Buffer:
        if offset + size > self._size:
            size = max(0, self._size - offset)
            if size == 0:
                return b""
        return await self._read(offset, size)

    async def write(self, inode: int, handle: int, offset: int, data: memoryview) -> int:
        if offset + len(data) > self._size:
            raise OSError(errno.ENOSPC, "beyond the end of the volume")
        await self._write(offset, data)
        return len(data)

    async def flush(self, inode: int, handle: int) -> None:
        """Closing a descriptor needs nothing: a write is durable when it is answered."""

    async def fsync(self, inode: int, handle: int, data_only: bool) -> None:
        await self._device.flush()

    async def fallocate(self, inode: int, handle: int, offset: int, length: int, mode: abi.Fallocate) -> None:
        if offset + length > self._size:
            raise OSError(errno.ENOSPC, "beyond the end of the volume")
        if any(mode & kind for kind in _DISCARDING):
            await self._device.discard(offset, length)
        elif int(mode) & ~int(abi.Fallocate.KEEP_SIZE):  # as numbers: unknown bits count
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    async def readdir(self, inode: int, offset: int) -> Sequence[DirectoryEntry]:
        entries = [
            DirectoryEntry(b".", abi.ROOT_INODE, stat.S_IFDIR),
            DirectoryEntry(b"..", abi.ROOT_INODE, stat.S_IFDIR),
            DirectoryEntry(_NAME, FILE_INODE, stat.S_IFREG),
        ]
        return entries[offset:]

    async def statfs(self, inode: int) -> FilesystemSpace:
        return FilesystemSpace(blocks=self._size // BLOCK_SIZE, free=0, files=1)
