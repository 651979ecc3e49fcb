"""A session on a real mount: the kernel asks, an in-memory file answers, on one event loop."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from curve_storage import mountinfo
from curve_storage.clock import SystemClock
from curve_storage.fuse import abi, mount
from curve_storage.fuse.handshake import SessionFacts
from curve_storage.fuse.ops import Attributes, Buffer, Caching, FilesystemSpace, Opened, Operations
from curve_storage.fuse.session import Session

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
MiB = 1 << 20
INODE = 2


@pytest.fixture(scope="module", autouse=True)
def own_mounts() -> None:
    """Mounts of this process alone: no other namespace on the machine keeps them after the unmount."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.fail("root and /dev/fuse are needed")
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive, private = 0x20000, 0x4000, 0x40000
    if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, recursive | private, None):
        pytest.fail(f"no mount namespace: {os.strerror(ctypes.get_errno())}")


class Memory(Operations):
    """One file, `f`. gate: while it is clear, reads and writes wait."""

    caching = Caching(entry=60, attributes=60)

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = 0
        self.interrupted = 0
        self.writes: list[int] = []

    def _attributes(self) -> Attributes:
        return Attributes(inode=INODE, mode=stat.S_IFREG | 0o600, size=len(self.data))

    async def lookup(self, parent: int, name: bytes) -> Attributes:
        if name != b"f":
            raise FileNotFoundError(errno.ENOENT, "")
        return self._attributes()

    async def getattr(self, inode: int) -> Attributes:
        return Attributes(inode=1, mode=stat.S_IFDIR | 0o700) if inode == abi.ROOT_INODE else self._attributes()

    async def open(self, inode: int, flags: int) -> Opened:
        return Opened(flags=abi.Open.DIRECT_IO | abi.Open.PARALLEL_DIRECT_WRITES)

    async def read(self, inode: int, handle: int, offset: int, size: int) -> Buffer:
        self.started += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.interrupted += 1
            raise
        return memoryview(self.data)[offset : offset + size]

    async def write(self, inode: int, handle: int, offset: int, data: memoryview) -> int:
        self.started += 1
        await self.gate.wait()
        self.writes.append(offset)
        self.data[offset : offset + len(data)] = data
        return len(data)

    async def statfs(self, inode: int) -> FilesystemSpace:
        return FilesystemSpace(blocks=1, free=0)

    async def fsync(self, inode: int, handle: int, data_only: bool) -> None:
        raise OSError(errno.EDQUOT, "")


class Mounted:
    def __init__(self, folder: Path, ops: Operations, slabs: int) -> None:
        self.folder = folder
        self.file = folder / "f"
        self.ended = asyncio.Event()
        self.descriptor = mount.open_device()
        mount.mount(self.descriptor, folder, "test")
        self.session = self.make(ops, slabs)
        self.session.start()

    def make(self, ops: Operations, slabs: int = 4, **options: Any) -> Session:
        return Session(self.descriptor, ops, clock=SystemClock(), on_end=self.ended.set, slabs=slabs, **options)


@asynccontextmanager
async def mounted(folder: Path, ops: Operations, slabs: int = 4) -> AsyncIterator[Mounted]:
    folder.mkdir()
    found = Mounted(folder, ops, slabs)
    try:
        yield found
    finally:
        await asyncio.to_thread(mount.unmount, folder, lazy=True)
        await asyncio.wait_for(found.ended.wait(), 30)
        os.close(found.descriptor)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not check():
            await asyncio.sleep(0.01)


def pattern(offset: int, size: int) -> bytes:
    return (offset // 4096).to_bytes(8, "little") * (size // 8)


async def test_read_and_write_whole(tmp_path: Path) -> None:
    ops = Memory(8 * MiB)
    async with mounted(tmp_path / "m", ops) as found:

        def work() -> None:
            fd = os.open(found.file, os.O_RDWR)
            data = os.urandom(4 * MiB)
            assert os.pwrite(fd, data, MiB) == len(data)
            assert os.pread(fd, 4 * MiB, MiB) == data
            assert os.pwrite(fd, b"odd", 5) == 3 and os.pread(fd, 5, 4) == b"\0odd\0"
            with pytest.raises(OSError) as raised:
                os.fsync(fd)
            assert raised.value.errno == errno.EDQUOT
            os.close(fd)
            assert not (found.folder / "absent").exists()

        await asyncio.to_thread(work)
        statistics = found.session.statistics
        assert statistics.writes.bytes == 4 * MiB + 3 and statistics.reads.bytes == 4 * MiB + 5
        assert statistics.errors == 1
        assert found.session.inflight == 0 and found.session.oldest() == 0.0


async def test_more_writes_than_buffers(tmp_path: Path) -> None:
    """With every buffer in use the kernel keeps its requests; all are served in the end."""
    ops = Memory(64 * MiB)
    async with mounted(tmp_path / "m", ops, slabs=2) as found:
        ops.gate.clear()

        def write(index: int) -> None:
            fd = os.open(found.file, os.O_WRONLY)
            offset = index * MiB
            assert os.pwrite(fd, pattern(offset, MiB), offset) == MiB
            os.close(fd)

        writers = [asyncio.create_task(asyncio.to_thread(write, index)) for index in range(16)]
        await until(lambda: found.session.inflight >= 4)
        assert found.session.inflight <= 6, "more requests than there are buffers were taken"
        ops.gate.set()
        await asyncio.wait_for(asyncio.gather(*writers), 60)
        for index in range(16):
            assert ops.data[index * MiB : (index + 1) * MiB] == pattern(index * MiB, MiB)


async def test_interrupted_read(tmp_path: Path) -> None:
    ops = Memory(MiB)
    async with mounted(tmp_path / "m", ops) as found:
        ops.gate.clear()
        reader = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"import os; os.pread(os.open({str(found.file)!r}, os.O_RDONLY), 4096, 0)"
        )
        await until(lambda: ops.started == 1)
        reader.send_signal(signal.SIGKILL)
        assert await asyncio.wait_for(reader.wait(), 60) == -signal.SIGKILL
        await until(lambda: ops.interrupted == 1 and found.session.inflight == 0)
        ops.gate.set()
        assert await asyncio.to_thread(found.file.read_bytes) == bytes(MiB)


async def test_hand_over_answers_each_request_once(tmp_path: Path) -> None:
    """The first session is given up with requests in hand; the second gets them again, none is lost."""
    ops = Memory(16 * MiB)
    async with mounted(tmp_path / "m", ops) as found:
        ops.gate.clear()

        def write(index: int) -> int:
            fd = os.open(found.file, os.O_WRONLY)
            try:
                return os.pwrite(fd, pattern(index * 65536, 65536), index * 65536)
            finally:
                os.close(fd)

        writers = [asyncio.create_task(asyncio.to_thread(write, index)) for index in range(8)]
        await until(lambda: ops.started >= 4)
        first = found.session
        first.stop_reading()
        assert await first.drain(0.05) > 0
        first.abandon()
        await until(lambda: first.inflight == 0)
        assert ops.writes == [], "an abandoned request was carried out"
        ops.gate.set()
        second = found.make(ops, facts=first.facts)
        second.start(takeover=True)
        assert await asyncio.wait_for(asyncio.gather(*writers), 60) == [65536] * 8
        assert sorted(ops.writes) == [index * 65536 for index in range(8)]
        assert second.statistics.resent >= 4
        assert second.statistics.errors == 0


async def test_kernel_without_resend_fails_what_was_in_hand(tmp_path: Path) -> None:
    """What the first session held fails, what comes later works; nothing is asked to be repeated."""
    ops = Memory(16 * MiB)
    async with mounted(tmp_path / "m", ops) as found:
        ops.gate.clear()

        def write(offset: int) -> int:
            fd = os.open(found.file, os.O_WRONLY)
            try:
                return os.pwrite(fd, b"x" * 4096, offset)
            except OSError as error:
                return -(error.errno or 0)
            finally:
                os.close(fd)

        lost = [asyncio.create_task(asyncio.to_thread(write, index * 4096)) for index in range(3)]
        await until(lambda: ops.started == 3)
        first = found.session
        first.stop_reading()
        first.abandon()
        await until(lambda: first.inflight == 0)
        ops.gate.set()
        assert first.facts is not None
        facts = SessionFacts(first.facts.minor, first.facts.flags & ~int(abi.Init.HAS_RESEND), first.facts.max_write)
        second = found.make(ops, facts=facts)
        second.start(takeover=True)
        await asyncio.to_thread(os.statvfs, found.folder)
        assert await asyncio.wait_for(asyncio.gather(*lost), 60) == [-errno.EIO] * 3
        assert second.statistics.resent == 0 and ops.writes == []
        assert await asyncio.to_thread(write, 8192) == 4096


async def test_drain_waits_for_what_is_in_hand(tmp_path: Path) -> None:
    ops = Memory(MiB)
    async with mounted(tmp_path / "m", ops) as found:
        ops.gate.clear()
        reading = asyncio.create_task(asyncio.to_thread(found.file.read_bytes))
        await until(lambda: ops.started == 1)
        found.session.stop_reading()
        asyncio.get_running_loop().call_later(0.1, ops.gate.set)
        assert await found.session.drain(60) == 0
        found.make(ops, facts=found.session.facts).start(takeover=True)
        assert await asyncio.wait_for(reading, 60) == bytes(MiB)


async def test_size_changes_when_told(tmp_path: Path) -> None:
    ops = Memory(MiB)
    async with mounted(tmp_path / "m", ops) as found:
        size = lambda: found.file.stat().st_size  # noqa: E731
        assert await asyncio.to_thread(size) == MiB
        ops.data += bytes(MiB)
        assert await asyncio.to_thread(size) == MiB, "the attribute was not cached"
        found.session.invalidate_attributes(INODE)
        assert await asyncio.to_thread(size) == 2 * MiB


async def test_unmount_ends_the_session(tmp_path: Path) -> None:
    async with mounted(tmp_path / "m", Memory(MiB)) as found:
        held = await asyncio.to_thread(os.open, found.file, os.O_RDONLY)
        done = await asyncio.to_thread(subprocess.run, ["umount", str(found.folder)], capture_output=True)
        assert done.returncode != 0 and not found.ended.is_set(), "a file is open"
        await asyncio.to_thread(os.close, held)
    assert found.ended.is_set()
    assert str(found.folder) not in [str(entry.target) for entry in mountinfo.mounts()]
