"""The one-file file system over a device in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from curve_storage.attach import loop
from curve_storage.attach.device import Buffer, FencedDevice
from curve_storage.attach.file_device import FileDevice
from curve_storage.attach.volume_file import FILE_INODE, VolumeFile
from curve_storage.errors import Fenced, OutOfRange
from curve_storage.fuse import abi
from curve_storage.fuse.ops import Attributes

SIZE = 1 << 20


class MemoryDevice:
    fenced = False
    read_only = False

    def __init__(self) -> None:
        self.data = bytearray(os.urandom(SIZE))
        self.flushes = 0

    @property
    def size(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int) -> Buffer:
        return memoryview(self.data)[offset : offset + length]

    async def write(self, offset: int, data: memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    async def discard(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)

    async def flush(self) -> None:
        self.flushes += 1

    async def refresh(self) -> int:
        return self.size

    async def close(self) -> None: ...

    def stalled(self) -> str | None:
        return None

    def on_fenced(self, callback: Callable[[], None]) -> None: ...


async def test_lookup_and_attributes() -> None:
    file = VolumeFile(MemoryDevice())
    found = await file.lookup(abi.ROOT_INODE, b"volume")
    assert (found.inode, found.size) == (FILE_INODE, SIZE)
    for parent, name in ((abi.ROOT_INODE, b"other"), (FILE_INODE, b"volume")):
        with pytest.raises(FileNotFoundError):
            await file.lookup(parent, name)
    assert (await file.getattr(abi.ROOT_INODE)).is_directory
    assert [entry.name for entry in await file.readdir(abi.ROOT_INODE, 1)] == [b"..", b"volume"]


async def test_reads_end_at_the_end_and_writes_do_not_pass_it() -> None:
    device = MemoryDevice()
    file = VolumeFile(device)
    assert await file.read(FILE_INODE, 0, SIZE - 10, 100) == bytes(device.data[-10:])
    assert await file.read(FILE_INODE, 0, SIZE + 10, 100) == b""
    assert await file.write(FILE_INODE, 0, 4096, memoryview(b"x" * 4096)) == 4096
    assert device.data[4096:8192] == b"x" * 4096
    with pytest.raises(OSError) as raised:
        await file.write(FILE_INODE, 0, SIZE - 1, memoryview(b"xx"))
    assert raised.value.errno == errno.ENOSPC


async def test_growing_needs_the_word() -> None:
    device = MemoryDevice()
    file = VolumeFile(device)
    device.data += bytes(SIZE)
    assert (await file.getattr(FILE_INODE)).size == SIZE
    file.resized()
    assert (await file.getattr(FILE_INODE)).size == 2 * SIZE
    with pytest.raises(PermissionError):
        await file.setattr(FILE_INODE, abi.SetAttr.SIZE, Attributes(inode=2, mode=0, size=7))
    assert (await file.setattr(FILE_INODE, abi.SetAttr.MTIME, Attributes(inode=2, mode=0))).size == 2 * SIZE


@pytest.mark.parametrize("mode", [abi.Fallocate.PUNCH_HOLE | abi.Fallocate.KEEP_SIZE, abi.Fallocate.ZERO_RANGE])
async def test_punch_and_zero_discard(mode: abi.Fallocate) -> None:
    device = MemoryDevice()
    file = VolumeFile(device)
    before = bytes(device.data)
    await file.fallocate(FILE_INODE, 0, 4096, 8192, mode)
    assert device.data == before[:4096] + bytes(8192) + before[12288:]
    await file.fallocate(FILE_INODE, 0, 0, SIZE, abi.Fallocate(0))
    assert device.data[:4096] == before[:4096], "an allocation changes nothing"
    for bad in ((SIZE, 4096, mode), (0, 4096, abi.Fallocate(0x20))):
        with pytest.raises(OSError):
            await file.fallocate(FILE_INODE, 0, *bad)


async def test_fsync_flushes() -> None:
    device = MemoryDevice()
    await VolumeFile(device).fsync(FILE_INODE, 0, True)
    assert device.flushes == 1


async def test_a_fenced_device_fails_everything() -> None:
    told = []
    device = FencedDevice(SIZE, Fenced("taken"))
    device.on_fenced(lambda: told.append(True))
    file = VolumeFile(device)
    assert told and (await file.getattr(FILE_INODE)).size == SIZE
    with pytest.raises(Fenced):
        await file.read(FILE_INODE, 0, 0, 4096)
    with pytest.raises(OSError) as raised:
        await file.open(FILE_INODE, os.O_RDWR)
    assert raised.value.errno == errno.EROFS


async def test_file_device(tmp_path: Path) -> None:
    path = tmp_path / "device"
    path.write_bytes(os.urandom(SIZE))
    device = FileDevice(path)
    await device.write(512, memoryview(b"abc"))
    assert await device.read(511, 5) == path.read_bytes()[511:516]
    await device.discard(0, 8192)
    assert await device.read(0, 8192) == bytes(8192)
    with pytest.raises(OutOfRange):
        await device.read(SIZE - 1, 2)
    os.truncate(path, 2 * SIZE)
    assert device.size == SIZE and await device.refresh() == 2 * SIZE
    await device.flush()
    await device.close()
    await device.close()


def test_loop_layouts_have_the_kernels_sizes() -> None:
    assert loop._INFO.size == 232 and loop._CONFIG.size == 304


def test_bound_devices_are_those_with_a_backing_file(tmp_path: Path) -> None:
    sys = tmp_path / "sys"
    for number, backing in ((0, "/a/volume"), (1, None), (12, "/b c/volume (deleted)")):
        folder = sys / "block" / f"loop{number}"
        folder.mkdir(parents=True)
        if backing is not None:
            (folder / "loop").mkdir()
            (folder / "loop" / "backing_file").write_text(backing + "\n")
            (folder / "diskseq").write_text(f"{100 + number}\n")
    found = list(loop.bound_devices(sys))
    assert [(device.number, device.backing) for device in found] == [(0, "/a/volume"), (12, "/b c/volume (deleted)")]
    assert [device.number for device in loop.candidates(Path("/a/volume"), sys)] == [0]
    assert loop.candidates(tmp_path / "x", sys) == []
    again = loop.known(0, 100, sys)
    assert again is not None and again.backing == "/a/volume" and loop.is_bound(again)
    assert loop.known(0, 99, sys) is None, "bound anew meanwhile"
    (sys / "block" / "loop0" / "diskseq").write_text("200\n")
    assert not loop.is_bound(again)
