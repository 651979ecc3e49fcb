"""The pool: progress, what a crash leaves, running out and filling up again."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from curve_storage.chunkserver import pool as pool_module
from curve_storage.chunkserver.chunk_file import DATA_START, FILE_SIZE
from curve_storage.chunkserver.config import PoolConfig
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.errors import ConfigError, CurveError, NoSpace
from curve_storage.units import MiB


def make(root: Path, files: int, **keys: object) -> ChunkPool:
    failures: list[CurveError] = []
    config = PoolConfig(size=files * FILE_SIZE, **{"first_batch": 2, "ready": 2, "reserve": 0, **keys})
    made = ChunkPool(root, config, failures.append)
    made.scan(0)
    return made


def settle(pool: ChunkPool) -> None:
    while pool.step():
        pass


def test_formats_in_batches_and_reports_progress(tmp_path: Path) -> None:
    pool = make(tmp_path, 20)
    assert not pool.first_batch_ready
    assert pool.status().format_percent == 0
    assert pool.step()
    assert pool.first_batch_ready
    seen = [pool.status().format_percent]
    while pool.step():
        seen.append(pool.status().format_percent)
    assert seen == sorted(seen)
    assert seen[-1] == 100
    assert pool.status().free == pool.status().total == 20
    assert not pool.status().formatting
    for directory in ("new", "ready"):
        for path in (tmp_path / directory).iterdir():
            stat = path.stat()
            assert stat.st_size == FILE_SIZE
            assert stat.st_blocks * 512 >= FILE_SIZE  # really allocated: a write never needs space


def test_taken_files_are_blank_and_come_back_blank(tmp_path: Path) -> None:
    pool = make(tmp_path / "pool", 2)
    settle(pool)
    for round_ in range(5):
        target = tmp_path / f"chunk{round_}"
        pool.take(target)
        with open(target, "r+b") as file:
            assert file.read(DATA_START) == bytes(DATA_START)
            file.seek(0)
            file.write(b"x" * (DATA_START + 4096))
        pool.give_back(target)
        settle(pool)
    assert pool.status().free == 2


def test_an_empty_pool_says_so_and_recovers(tmp_path: Path) -> None:
    pool = make(tmp_path / "pool", 3)
    settle(pool)
    for number in range(3):
        pool.take(tmp_path / f"chunk{number}")
    assert pool.status().full
    assert not pool.accepts_new_chunk()
    with pytest.raises(NoSpace):
        pool.take(tmp_path / "one-too-many")
    assert not (tmp_path / "one-too-many").exists()
    pool.give_back(tmp_path / "chunk1")
    settle(pool)
    assert pool.accepts_new_chunk()
    pool.take(tmp_path / "again")


def test_the_reserve_is_for_what_is_committed(tmp_path: Path) -> None:
    pool = make(tmp_path / "pool", 4, reserve=2)
    settle(pool)
    pool.take(tmp_path / "a")
    assert pool.accepts_new_chunk()
    pool.take(tmp_path / "b")
    assert not pool.accepts_new_chunk()
    pool.take(tmp_path / "c")  # applying still finds a file
    assert pool.status().full


def test_after_a_crash_staged_files_are_cleaned_again(tmp_path: Path) -> None:
    pool = make(tmp_path / "pool", 4)
    settle(pool)
    # A taken file was written to, but its rename was lost: it is back in `ready` with a table that says "written".
    staged = next((tmp_path / "pool" / "ready").iterdir())
    with open(staged, "r+b") as file:
        file.write(b"\xee" * DATA_START)
    again = make(tmp_path / "pool", 4)
    settle(again)
    assert again.status().free == 4
    for number in range(4):
        again.take(tmp_path / f"chunk{number}")
        with open(tmp_path / f"chunk{number}", "rb") as file:
            assert file.read(DATA_START) == bytes(DATA_START)


def test_half_formatted_files_are_made_anew(tmp_path: Path) -> None:
    pool = make(tmp_path / "pool", 3)
    settle(pool)
    (tmp_path / "pool" / "new" / "00000099").write_bytes(b"short")
    again = make(tmp_path / "pool", 3)
    settle(again)
    assert again.status().free == 3
    assert not (tmp_path / "pool" / "new" / "00000099").exists()


def test_a_full_file_system_stops_formatting_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.posix_fallocate
    room = 3

    def fallocate(descriptor: int, offset: int, length: int) -> None:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= 1
        real(descriptor, offset, length)

    monkeypatch.setattr(pool_module.os, "posix_fallocate", fallocate)
    pool = make(tmp_path / "pool", 6)
    settle(pool)
    status = pool.status()
    assert status.free == 3
    assert not status.formatting
    assert "full after 3 of 6" in status.message
    assert pool.first_batch_ready
    room = 100
    pool._retry_at = 0.0
    settle(pool)
    assert pool.status().free == 6
    assert pool.status().message == ""


def test_sizes(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    total = stat.f_blocks * stat.f_frsize
    for size, share in (("10%", 0.1), ("auto", 0.8)):
        pool = ChunkPool(tmp_path / size, PoolConfig(size=size), lambda error: None)
        assert pool.status().target == int(total * share) // FILE_SIZE
    with pytest.raises(ConfigError, match=r"pool\.size"):
        ChunkPool(tmp_path / "tiny", PoolConfig(size="1Mi"), lambda error: None)
    for wrong in ("120%", "many", "-3%"):
        with pytest.raises(ValueError, match=r"size"):
            PoolConfig(size=wrong)


def test_the_worker_thread_formats_and_stages(tmp_path: Path) -> None:
    pool = make(tmp_path / "pool", 5, bandwidth=2048 * MiB)
    pool.start()
    try:
        deadline = time.monotonic() + 60
        while (pool.status().free < 5 or len(pool._ready) < 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pool.status().free == 5
        pool.take(tmp_path / "chunk")
        pool.give_back(tmp_path / "chunk")
        while pool.status().free < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pool.status().free == 5
    finally:
        pool.stop()


def test_a_disk_error_in_the_worker_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[CurveError] = []
    pool = ChunkPool(tmp_path / "pool", PoolConfig(size=4 * FILE_SIZE), failures.append)
    pool.scan(0)

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(pool_module.os, "fsync", broken)
    pool.start()
    deadline = time.monotonic() + 60
    while not failures and time.monotonic() < deadline:
        time.sleep(0.01)
    pool.stop()
    assert failures[0].code == "disk_failed"


def test_a_file_that_cannot_even_be_renamed_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(tmp_path / "pool", 3)
    settle(pool)
    pool.take(tmp_path / "chunk")

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pool_module.os, "rename", full)
        pool.give_back(tmp_path / "chunk")
    assert not (tmp_path / "chunk").exists()
    assert pool.status().total == 2
    settle(pool)
    assert pool.status().free == 3, "and made again when there is space"
