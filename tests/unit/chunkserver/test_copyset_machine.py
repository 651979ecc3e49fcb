"""The copyset's state machine: commands, checkpoints, crashes at any moment on a disk that loses unsynced writes."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curve_storage.chunkserver import (
    atomic_file,
    chunk_directory,
    chunk_file,
    commands,
    copyset,
    pool,
    snapshot,
)
from curve_storage.chunkserver.copyset import Copyset
from curve_storage.errors import Corruption, Fenced, StoreReadOnly
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE

ZEROS = bytes(BLOCK_SIZE)


def block(number: int) -> bytes:
    return number.to_bytes(4, "little") * (BLOCK_SIZE // 4)


def apply(machine: Copyset, command: tuple[bytes, bytes]) -> Any:
    return machine.apply(machine.applied + 1, 1, command[0], memoryview(command[1]))


def content(machine: Copyset, chunk_id: int, offset: int, length: int) -> bytes | None:
    """None: the chunk does not exist. Asserts that nothing is bad."""
    chunk = machine.chunks.get(chunk_id)
    if chunk is None:
        assert chunk_id not in machine.chunks.hollow
        return None
    data = chunk.read_blocking(offset, length)
    assert chunk.check(offset, data) == []
    return bytes(data)


def test_commands(disk: Any, parts: SimpleNamespace) -> None:
    machine = disk.create()
    assert apply(machine, parts.write(1, 0, block(1) + block(2), 1)) is None
    assert apply(machine, parts.write(1, BLOCK_SIZE, block(3), 2)) is None
    assert content(machine, 1, 0, 3 * BLOCK_SIZE) == block(1) + block(3) + ZEROS
    assert apply(machine, parts.discard(1, 0, BLOCK_SIZE, 3)) is None
    assert content(machine, 1, 0, 3 * BLOCK_SIZE) == ZEROS + block(3) + ZEROS
    assert apply(machine, parts.write(1, 0, block(9), 2)) is None, "a repeated number succeeds …"
    assert content(machine, 1, 0, BLOCK_SIZE) == ZEROS, "… without being applied"
    free = disk.pool.free
    assert apply(machine, parts.discard(1, 0, CHUNK_SIZE, 4)) is None
    assert content(machine, 1, 0, BLOCK_SIZE) is None
    disk.settle()
    assert disk.pool.free == free + 1
    assert apply(machine, parts.delete(77, 5)) is None, "deleting what does not exist"
    assert apply(machine, parts.write(2, 0, block(1), 6)) is None
    assert apply(machine, parts.delete(2, 7)) is None
    assert machine.chunks.ids() == []


async def test_an_emptied_chunk_returns_to_the_pool_with_the_checkpoint(disk: Any, parts: SimpleNamespace) -> None:
    machine = disk.create()
    for chunk in (1, 2):
        apply(machine, parts.write(chunk, 8 * BLOCK_SIZE, block(1), 2 * chunk))
        apply(machine, parts.discard(chunk, 0, 64 * BLOCK_SIZE, 2 * chunk + 1))
    apply(machine, parts.write(2, 0, block(2), 9))
    assert content(machine, 1, 0, 16 * BLOCK_SIZE) == ZEROS * 16
    await machine.checkpoint()
    assert machine.chunks.ids() == [2]
    assert content(machine, 2, 0, 2 * BLOCK_SIZE) == block(2) + ZEROS


def test_fencing_and_deletion_of_a_volume(disk: Any, parts: SimpleNamespace) -> None:
    machine = disk.create()
    apply(machine, parts.write(1, 0, block(1), 1))
    assert apply(machine, (commands.fence(5, 2), b"")) is None
    assert isinstance(apply(machine, parts.write(1, 0, block(2), 2)), Fenced)
    assert content(machine, 1, 0, BLOCK_SIZE) == block(1)
    assert apply(machine, parts.write(1, 0, block(2), 1, epoch=2)) is None
    assert content(machine, 1, 0, BLOCK_SIZE) == block(2)
    assert isinstance(apply(machine, parts.write(1, 0, block(3), 3, epoch=1, generation=9)), Fenced)
    assert apply(machine, commands.delete_volume(5, [1, 2, 3])) is None
    assert machine.chunks.ids() == []
    assert isinstance(apply(machine, parts.write(1, 0, block(3), 9, epoch=99)), Fenced)


def test_an_unknown_command_stops_the_replica(disk: Any) -> None:
    machine = disk.create()
    for header in (b"\x01\x09" + bytes(72), b"\x63\x01", b"\x01"):
        with pytest.raises(Corruption):
            apply(machine, (header, b""))


async def test_checkpoint_and_restart(disk: Any, parts: SimpleNamespace) -> None:
    machine = disk.create()
    assert machine.durable_index() == 0
    for seq in range(1, 20):
        apply(machine, parts.write(seq % 3, seq * BLOCK_SIZE, block(seq), seq))
    assert await machine.checkpoint() == 19
    assert machine.durable_index() == 19
    disk.open()
    again = disk.load()
    assert again.durable_index() == 19
    for seq in range(1, 20):
        assert content(again, seq % 3, seq * BLOCK_SIZE, BLOCK_SIZE) == block(seq)
    assert apply(again, parts.write(1, 0, block(99), 19)) is None
    assert content(again, 1, 0, BLOCK_SIZE) == ZEROS, "the writer's table survived: number 19 is known"


async def test_a_full_pool_makes_chunks_hollow_and_they_fill_up_later(tmp_path: Path, parts: SimpleNamespace) -> None:
    disk = parts.Disk(tmp_path / "data", files=2)
    machine = disk.create()
    for chunk in (1, 2, 3):
        assert apply(machine, parts.write(chunk, 0, block(chunk), chunk)) is None
    assert machine.chunks.hollow == {3}
    assert machine.chunks.ids() == [1, 2, 3]
    await machine.checkpoint()
    disk.open()
    machine = disk.load()
    assert machine.chunks.hollow == {3}, "known after a restart"
    apply(machine, parts.delete(1, 4))
    disk.settle()
    apply(machine, parts.write(3, BLOCK_SIZE, block(33), 5))
    assert machine.chunks.hollow == set()
    chunk = machine.chunks.get(3)
    assert chunk is not None
    data = chunk.read_blocking(0, 2 * BLOCK_SIZE)
    assert chunk.check(0, data) == [0], "what was missed is known to be missing"
    machine.install(3, 0, [chunk_file.crc32c(block(3))], block(3))
    assert content(machine, 3, 0, 2 * BLOCK_SIZE) == block(3) + block(33)
    assert not disk.failures


async def test_a_lost_chunk_file_is_not_mistaken_for_zeros(disk: Any, parts: SimpleNamespace) -> None:
    machine = disk.create()
    apply(machine, parts.write(4, 0, block(4), 1))
    await machine.checkpoint()
    (disk.path() / chunk_directory.chunk_file_name(4)).unlink()
    disk.open()
    assert disk.load().chunks.hollow == {4}


async def test_without_space_for_the_meta_file_the_store_is_read_only_until_there_is(
    disk: Any, parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = disk.create()
    apply(machine, parts.write(1, 0, block(1), 1))

    def full(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(atomic_file.os, "write", full)
        for _ in range(2):
            with pytest.raises(StoreReadOnly):
                await machine.checkpoint()
        disk.monitor.look_again()
        assert disk.monitor.read_only
        assert machine.durable_index() == 0
    disk.monitor.look_again()
    assert not disk.monitor.read_only
    assert await machine.checkpoint() == 1
    disk.open()
    assert content(disk.load(), 1, 0, BLOCK_SIZE) == block(1)


async def test_a_failed_fsync_is_fatal(tmp_path: Path, parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = parts.Disk(tmp_path / "data")
    machine = disk.create()
    apply(machine, parts.write(1, 0, block(1), 1))

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(copyset.os, "fsync", broken)
    with pytest.raises(chunk_file.DiskFailed):
        await machine.checkpoint()
    assert machine.durable_index() == 0
    assert [failure.code for failure in disk.failures] == ["disk_failed"]


async def test_open_files_are_bounded_and_changed_ones_are_not_lost(tmp_path: Path, parts: SimpleNamespace) -> None:
    disk = parts.Disk(tmp_path / "data", files=24, open_limit=4)
    machine = disk.create()
    for seq in range(1, 21):
        apply(machine, parts.write(seq, 0, block(seq), seq))
    await machine.checkpoint()
    for _ in range(3):
        for seq in range(1, 21):
            assert content(machine, seq, 0, BLOCK_SIZE) == block(seq)
        disk.files.trim()
        disk.files.trim()
        assert sum(machine.chunks.is_open(seq) for seq in range(1, 21)) <= 4
    assert not disk.failures


# ---- crashes


class Crash(BaseException):
    """Power is lost here."""


class LyingDisk:
    """Stands in for `os` in the modules that write: remembers what is not synced, and loses parts of it at a crash.

    Lost are single pages of data (whole, or only their first half written), and the newest renames."""

    SECTOR = 512

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pages: dict[tuple[int, int], bytes] = {}  # (inode, page) → content when last synced
        self._renames: list[tuple[str, str]] = []
        self.countdown: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _tick(self) -> None:
        if self.countdown is not None:
            self.countdown -= 1
            if self.countdown < 0:
                raise Crash

    def _remember(self, fd: int, offset: int, length: int) -> None:
        stat = os.fstat(fd)
        with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as file:
            for page in range(offset // 4096, (offset + length - 1) // 4096 + 1):
                if (stat.st_ino, page) not in self._pages:
                    self._pages[stat.st_ino, page] = os.pread(file.fileno(), 4096, page * 4096)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        self._tick()
        self._remember(fd, offset, len(data))
        return os.pwrite(fd, data, offset)

    def pwritev(self, fd: int, buffers: Any, offset: int) -> int:
        self._tick()
        self._remember(fd, offset, sum(map(len, buffers)))
        return os.pwritev(fd, buffers, offset)

    def fsync(self, fd: int) -> None:
        self._tick()
        inode = os.fstat(fd).st_ino
        for key in [key for key in self._pages if key[0] == inode]:
            del self._pages[key]
        # Journals are ordered: whatever was renamed before a sync is durable with it.
        self._renames.clear()

    def rename(self, source: Any, target: Any) -> None:
        self._tick()
        os.rename(source, target)
        if ".tmp" not in str(source):
            self._renames.append((str(source), str(target)))

    def lose_power(self, root: Path) -> None:
        self.countdown = None
        by_inode = {path.stat().st_ino: path for path in root.rglob("*") if path.is_file()}
        keep_renames = self._rng.randint(0, len(self._renames))
        for (inode, page), old in self._pages.items():
            fate = self._rng.random()
            if inode not in by_inode or fate < 0.4:
                continue  # this page reached the disk
            with open(by_inode[inode], "r+b") as file:
                torn = self._rng.randrange(0, 4096, self.SECTOR) if fate > 0.8 and page >= 5 else 0
                file.seek(page * 4096 + torn)
                file.write(old[torn:])
        for source, target in reversed(self._renames[keep_renames:]):
            if os.path.exists(target) and not os.path.exists(source):
                os.rename(target, source)
        self._pages.clear()
        self._renames.clear()


class Model:
    def __init__(self) -> None:
        self.chunks: dict[int, dict[int, bytes]] = {}

    def write(self, chunk: int, first: int, blocks: list[bytes]) -> None:
        self.chunks.setdefault(chunk, {}).update({first + n: data for n, data in enumerate(blocks)})

    def discard(self, chunk: int, first: int, count: int) -> None:
        if chunk in self.chunks:
            for number in range(first, first + count):
                self.chunks[chunk].pop(number, None)
            if not self.chunks[chunk]:
                del self.chunks[chunk]

    def delete(self, chunk: int) -> None:
        self.chunks.pop(chunk, None)


SPAN = 24


@pytest.mark.parametrize("seed", range(30))
async def test_any_crash_is_repaired_by_replay(
    seed: int, tmp_path: Path, parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    lying = LyingDisk(rng)
    for module in (atomic_file, chunk_directory, chunk_file, copyset, pool, snapshot):
        monkeypatch.setattr(module, "os", lying)
    root = tmp_path / "data"
    disk = parts.Disk(root, files=7, open_limit=3)
    machine = disk.create()
    log: list[tuple[bytes, bytes]] = []
    model = Model()
    seq = 0
    for _life in range(6):
        lying.countdown = rng.choice([None, rng.randint(1, 120)])
        try:
            for _ in range(rng.randint(5, 60)):
                if rng.random() < 0.08:
                    await machine.checkpoint()
                if rng.random() < 0.1:
                    disk.pool.step()
                seq += 1
                chunk, first = rng.randint(1, 5), rng.randint(0, SPAN - 1)
                kind = rng.random()
                if kind < 0.7:
                    data = [block(rng.getrandbits(31)) for _ in range(rng.choice([1, 1, 1, 3, 9]))]
                    command = parts.write(chunk, first * BLOCK_SIZE, b"".join(data), seq, low=max(1, seq - 5))
                    log.append(command)  # committed: from here on it must survive
                    model.write(chunk, first, data)
                elif kind < 0.85:
                    command = parts.discard(chunk, first * BLOCK_SIZE, 4 * BLOCK_SIZE, seq)
                    log.append(command)
                    model.discard(chunk, first, 4)
                else:
                    command = parts.delete(chunk, seq)
                    log.append(command)
                    model.delete(chunk)
                apply(machine, command)
                if rng.random() < 0.2:  # a client repeats it: another log entry, no second effect
                    repeated = log[-1]
                    log.append(repeated)
                    apply(machine, repeated)
        except Crash:
            pass
        machine.chunks.close_all()
        lying.lose_power(root)
        disk.open()
        machine = disk.load()
        assert machine.durable_index() <= len(log)
        for header, payload in log[machine.durable_index() :]:
            machine.apply(machine.applied + 1, 1, header, memoryview(payload))
        for number in set(machine.chunks.ids()) - set(model.chunks):
            assert content(machine, number, 0, CHUNK_SIZE) == bytes(CHUNK_SIZE)
        assert set(machine.chunks.ids()) >= set(model.chunks)
        for chunk_id, blocks in model.chunks.items():
            expected = b"".join(blocks.get(number, ZEROS) for number in range(SPAN + 9))
            assert content(machine, chunk_id, 0, (SPAN + 9) * BLOCK_SIZE) == expected
        await machine.checkpoint()
        assert machine.chunks.ids() == sorted(model.chunks)
        disk.settle()
        assert disk.pool.status().total == 7
        assert disk.pool.free == 7 - len(model.chunks)
    assert not disk.failures
