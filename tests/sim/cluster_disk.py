"""Machines' disks in memory, behind the names that the chunkserver's modules use: `os` and `Path`.

A kill of the process keeps what it wrote. A loss of power keeps what was synced; of each later write to a file all,
nothing, a beginning or some sectors; and of later changes of names a prefix, as journaling file systems do (a sync of a
directory makes durable all changes of names up to the last one there). A bit can be flipped where nobody looks.
"""

from __future__ import annotations

import errno
import os as real_os
import random
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from cluster_loop import Killed, Process

PAGE = 4096
SECTOR = 512
_ZEROS = bytes(PAGE)
MOUNTS: dict[str, Disk] = {}
"""Machine → its disk; paths are /<machine>/…"""


class File:
    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.size = 0
        self.durable: dict[int, bytes] = {}
        self.durable_size = 0
        self.unsynced: list[tuple[int, bytes]] = []

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        first, last = offset // PAGE, (offset + length - 1) // PAGE
        if not length:
            return b""
        get = self.pages.get
        data = b"".join([get(page, _ZEROS) for page in range(first, last + 1)])
        return data[offset - first * PAGE :][:length]

    def write(self, offset: int, data: bytes) -> None:
        _put(self.pages, offset, data)
        self.size = max(self.size, offset + len(data))
        self.unsynced.append((offset, data))

    def truncate(self) -> None:
        self.pages, self.size, self.unsynced = {}, 0, []

    def sync(self) -> None:
        if self.durable_size > self.size:
            self.durable = dict(self.pages)
        else:
            for offset, data in self.unsynced:
                for page in range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1):
                    if page in self.pages:
                        self.durable[page] = self.pages[page]
        self.durable_size = self.size
        self.unsynced = []

    def lose_power(self, rng: random.Random) -> None:
        if self.unsynced or self.size != self.durable_size:
            if rng.random() < 0.5:
                self.durable_size = max(self.size, self.durable_size)
            for offset, data in self.unsynced:
                self.durable_size = max(self.durable_size, self._survives(offset, data, rng))
        self.unsynced = []
        self.pages, self.size = dict(self.durable), self.durable_size

    def _survives(self, offset: int, data: bytes, rng: random.Random) -> int:
        fate = rng.random()
        if fate < 0.25:
            _put(self.durable, offset, data)
            return offset + len(data)
        if fate < 0.5:
            return 0
        if fate < 0.75:
            kept = rng.randrange(len(data) + 1)
            _put(self.durable, offset, data[:kept])
            return offset + kept
        end = 0
        for start in range(0, len(data), SECTOR):
            if rng.random() < 0.5:
                part = data[start : start + SECTOR]
                _put(self.durable, offset + start, part)
                end = offset + start + len(part)
        return end

    def flip(self, position: int, bit: int) -> None:
        for pages in (self.pages, self.durable):
            page = bytearray(pages.get(position // PAGE, _ZEROS))
            page[position % PAGE] ^= 1 << bit
            pages[position // PAGE] = bytes(page)


def _put(pages: dict[int, bytes], offset: int, data: bytes) -> None:
    position = 0
    while position < len(data):
        page, start = divmod(offset + position, PAGE)
        size = min(PAGE - start, len(data) - position)
        part = data[position : position + size]
        old = pages.get(page)
        if old is None:
            if part.count(0) != size:
                pages[page] = part if size == PAGE else _ZEROS[:start] + part + _ZEROS[start + size :]
        else:
            pages[page] = part if size == PAGE else old[:start] + part + old[start + size :]
        position += size


class Directory:
    def __init__(self) -> None:
        self.names: dict[str, File | Directory] = {}
        self.durable: dict[str, File | Directory] = {}


_Change = tuple[Directory, str, "File | Directory | None"]


class Disk:
    """Of one machine; only its present process may use it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.root = Directory()
        self.handles: dict[int, File | Directory] = {}
        self._next = 1 << 40  # never a number of this process
        self._journal: list[list[_Change]] = []
        MOUNTS[process.name] = self
        process.on_kill.append(self.handles.clear)

    def check(self) -> None:
        """Before each operation: the process may die here. Raises Killed."""
        process = self.process
        if Process.running is not process or process.loop is None:
            raise Killed
        process.step()

    # --- names -------------------------------------------------------------------------------------------------------

    def find(self, path: PurePosixPath) -> File | Directory | None:
        found: File | Directory | None = self.root
        for name in path.parts[2:]:
            if not isinstance(found, Directory):
                return None
            found = found.names.get(name)
        return found

    def place(self, path: PurePosixPath) -> tuple[Directory, str]:
        parent = self.find(path.parent)
        if not isinstance(parent, Directory):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return parent, path.name

    def get(self, path: PurePosixPath) -> File | Directory:
        found = self.find(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return found

    def change(self, *changes: _Change) -> None:
        for directory, name, item in changes:
            if item is None:
                directory.names.pop(name, None)
            else:
                directory.names[name] = item
        self._journal.append(list(changes))

    def sync_directory(self, directory: Directory) -> None:
        last = max((at for at, entry in enumerate(self._journal) if any(c[0] is directory for c in entry)), default=-1)
        self._commit(last + 1)

    def _commit(self, count: int) -> None:
        for entry in self._journal[:count]:
            for directory, name, item in entry:
                if item is None:
                    directory.durable.pop(name, None)
                else:
                    directory.durable[name] = item
        del self._journal[:count]

    def lose_power(self, rng: random.Random) -> None:
        for _, file in sorted(self.files(self.root), key=lambda pair: pair[0]):
            file.lose_power(rng)
        kept = rng.randrange(len(self._journal) + 1) if self._journal else 0
        before = {id(file) for _, file in self.files(self.root)}
        self._commit(kept)
        self._journal.clear()
        self._forget(self.root)
        for _, file in sorted(self.files(self.root), key=lambda pair: pair[0]):
            if id(file) not in before:  # its removal was lost
                file.lose_power(rng)

    def _forget(self, directory: Directory) -> None:
        directory.names = dict(directory.durable)
        for item in directory.names.values():
            if isinstance(item, Directory):
                self._forget(item)

    def files(self, directory: Directory, prefix: str = "") -> Iterator[tuple[str, File]]:
        for name, item in directory.names.items():
            if isinstance(item, Directory):
                yield from self.files(item, f"{prefix}{name}/")
            else:
                yield prefix + name, item

    def wipe(self) -> None:
        """A new, empty disk in its place."""
        self.root = Directory()
        self._journal.clear()
        self.handles.clear()

    def handle(self, item: File | Directory) -> int:
        self._next += 1
        self.handles[self._next] = item
        return self._next


def _disk(path: Any) -> Disk:
    return MOUNTS[path.parts[1]]


def _disk_of(fd: int) -> Disk:
    process = Process.running
    if process is None or process.loop is None:
        raise Killed
    return MOUNTS[process.name]


class SimOs:
    """The functions of `os` that chunkserver and consensus use, on the disk of the running process."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def __getattr__(self, name: str) -> Any:
        if name.isupper() or name in ("strerror", "getpid"):
            return getattr(real_os, name)
        raise AttributeError(f"os.{name} is not simulated")

    def _file(self, fd: int) -> File:
        disk = _disk_of(fd)
        disk.check()
        found = disk.handles.get(fd)
        if not isinstance(found, File):
            raise OSError(errno.EBADF, "Bad file descriptor")
        return found

    def urandom(self, size: int) -> bytes:
        return self._rng.randbytes(size)

    # --- files -------------------------------------------------------------------------------------------------------

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        disk = _disk(path)
        disk.check()
        found = disk.find(path)
        if found is None:
            if not flags & real_os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            found = File()
            disk.change((*disk.place(path), found))
        elif flags & real_os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        elif flags & real_os.O_TRUNC and isinstance(found, File):
            found.truncate()
        return disk.handle(found)

    def close(self, fd: int) -> None:
        process = Process.running
        if process is not None and process.name in MOUNTS:
            MOUNTS[process.name].handles.pop(fd, None)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return self._file(fd).read(offset, length)

    def preadv(self, fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        file = self._file(fd)
        if flags & real_os.RWF_NOWAIT and self._rng.random() < 0.1:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        done = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            data = file.read(offset + done, len(view))
            view[: len(data)] = data
            done += len(data)
            if len(data) < len(view):
                break
        return done

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        file, data = self._file(fd), bytes(data)
        file.write(offset, data)
        return len(data)

    def write(self, fd: int, data: Any) -> int:
        """Only ever used to fill a new file from its beginning."""
        file, data = self._file(fd), bytes(data)
        file.write(file.size, data)
        return len(data)

    def pwritev(self, fd: int, buffers: Sequence[Any], offset: int) -> int:
        return self.pwrite(fd, b"".join(buffers), offset)

    def fsync(self, fd: int) -> None:
        disk = _disk_of(fd)
        disk.check()
        found = disk.handles.get(fd)
        if isinstance(found, Directory):
            disk.sync_directory(found)
        elif found is not None:
            found.sync()
        else:
            raise OSError(errno.EBADF, "Bad file descriptor")

    fdatasync = fsync

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        file = self._file(fd)
        file.size = max(file.size, offset + length)

    def posix_fadvise(self, fd: int, offset: int, length: int, advice: int) -> None:
        pass

    # --- names -------------------------------------------------------------------------------------------------------

    def rename(self, source: Any, target: Any) -> None:
        disk = _disk(source)
        disk.check()
        item = disk.get(source)
        existing = disk.find(target)
        if isinstance(existing, Directory) and existing.names:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(target))
        disk.change((*disk.place(source), None), (*disk.place(target), item))

    replace = rename

    def unlink(self, path: Any) -> None:
        disk = _disk(path)
        disk.check()
        disk.get(path)
        disk.change((*disk.place(path), None))

    def listdir(self, path: Any) -> list[str]:
        disk = _disk(path)
        disk.check()
        found = disk.get(path)
        if not isinstance(found, Directory):
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
        return list(found.names)

    def statvfs(self, path: Any) -> Any:
        blocks = 1 << 30
        return real_os.statvfs_result((PAGE, PAGE, blocks, blocks, blocks, blocks, blocks, blocks, 0, 255))


class SimPath(PurePosixPath):
    """A path on a simulated disk."""

    __slots__ = ()

    def _disk(self) -> Disk:
        disk = _disk(self)
        disk.check()
        return disk

    def exists(self) -> bool:
        return self._disk().find(self) is not None

    def is_dir(self) -> bool:
        return isinstance(self._disk().find(self), Directory)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        disk = self._disk()
        found = disk.find(self)
        if found is not None:
            if exist_ok and isinstance(found, Directory):
                return
            raise FileExistsError(errno.EEXIST, "File exists", str(self))
        if parents and disk.find(self.parent) is None:
            self.parent.mkdir(mode, True, True)
        disk.change((*disk.place(self), Directory()))

    def rmdir(self) -> None:
        disk = self._disk()
        found = disk.get(self)
        if isinstance(found, Directory) and found.names:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(self))
        disk.change((*disk.place(self), None))

    def iterdir(self) -> Iterator[SimPath]:
        found = self._disk().get(self)
        assert isinstance(found, Directory)
        yield from [self / name for name in found.names]

    def glob(self, pattern: str) -> list[SimPath]:
        return [path for path in self.iterdir() if path.match(pattern)]

    def read_bytes(self) -> bytes:
        found = self._disk().get(self)
        assert isinstance(found, File)
        return found.read(0, found.size)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

    def stat(self) -> Any:
        found = self._disk().get(self)
        size = found.size if isinstance(found, File) else 0
        return real_os.stat_result((0, 0, 0, 0, 0, 0, size, 0, 0, 0))

    def unlink(self, missing_ok: bool = False) -> None:
        disk = self._disk()
        if disk.find(self) is None:
            if missing_ok:
                return
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))
        disk.change((*disk.place(self), None))

    def rename(self, target: SimPath) -> None:
        disk = self._disk()
        disk.change((*disk.place(self), None), (*disk.place(target), disk.get(self)))

    def absolute(self) -> SimPath:
        return self

    def open(self, mode: str = "r") -> _Writer:
        assert mode in ("w", "wb")
        disk = self._disk()
        found = disk.find(self)
        if not isinstance(found, File):
            found = File()
            disk.change((*disk.place(self), found))
        found.truncate()
        return _Writer(disk, found)


class _Writer:
    def __init__(self, disk: Disk, file: File) -> None:
        self._disk = disk
        self._file = file
        self._fd = disk.handle(file)

    def write(self, data: str | bytes) -> None:
        self._disk.check()
        self._file.write(self._file.size, data.encode() if isinstance(data, str) else bytes(data))

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        return self._fd

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._disk.handles.pop(self._fd, None)
