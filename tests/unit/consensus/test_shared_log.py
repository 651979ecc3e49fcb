"""The shared log on a real directory: what is read back, released, damaged, full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from log_lab import MEMBERS, SMALL, commit, opened

from curve_storage.consensus.api import Membership
from curve_storage.consensus.disk import RealDisk
from curve_storage.consensus.entry import COMMAND, CONFIG, Entry, HardState, pack_membership
from curve_storage.consensus.incarnation import next_incarnation
from curve_storage.consensus.log import SharedLog
from curve_storage.consensus.log_record import HEADER_SIZE
from curve_storage.errors import AlreadyExists, Corruption, DiskFailed


def put(log: SharedLog, group: int, count: int, size: int = 1000, term: int = 1) -> None:
    state = log.groups[group]
    for index in range(state.last_index + 1, state.last_index + 1 + count):
        log.save(state, None, [Entry(index, term, COMMAND, b"%d" % index, bytes([group % 256]) * size)], None)
        commit(log)


def headers(log: SharedLog, group: int) -> list[bytes]:
    state = log.groups[group]
    return [entry.header for entry in state.read(state.base_index + 1, state.last_index, 1 << 30)]


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for group in (5, 6):
        log.create_group(group, MEMBERS)
        put(log, group, 10)
    changed = Membership(voters=(1, 2), learners=(4,), epoch=3)
    log.save(log.groups[5], HardState(4, 2), [Entry(11, 4, CONFIG, pack_membership(changed))], None)
    log.save(log.groups[6], None, [Entry(8, 2, COMMAND, b"other")], None)
    commit(log)
    log.close()
    log = opened(tmp_path)
    five, six = log.groups[5], log.groups[6]
    assert (five.term, five.vote, five.last_index, five.last_term) == (4, 2, 11, 4)
    assert five.configs == [(0, MEMBERS), (11, changed)]
    assert headers(log, 6) == [b"%d" % index for index in range(1, 8)] + [b"other"]
    assert six.restored(0).runs == [(1, 1), (8, 2)]
    with pytest.raises(AlreadyExists):
        log.create_group(5, MEMBERS)


def test_segments_are_recycled_when_every_group_has_passed_them(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for group in (5, 6):
        log.create_group(group, MEMBERS)
    put(log, 6, 1)
    put(log, 5, 60)
    assert len(log.segments) >= 2
    log.groups[5].released = 60
    assert log.blockers() == [6]
    assert log.collect() == ([], {})
    log.groups[6].released = 1
    files, bases = log.collect()
    assert files and bases[6] == 1
    for file in files:
        log.pool.recycle(file)
    put(log, 5, 40)
    log.close()
    log = opened(tmp_path)
    assert not log.damage
    assert log.groups[5].last_index == 100
    assert log.groups[6].base_index == log.groups[6].last_index == 1
    assert headers(log, 5)[-1] == b"100"


def test_full_log_makes_writes_wait_in_order_and_names_the_group(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.create_group(5, MEMBERS)
    put(log, 5, 200)
    assert log.stalled
    assert log.blockers() == [5]
    assert log.pool.files == SMALL.max_size // SMALL.segment_size
    written = log.groups[5].last_index
    assert written < 200
    for _ in range(10):
        log.groups[5].released = log.groups[5].last_index
        for file in log.collect()[0]:
            log.pool.recycle(file)
        commit(log)
        if not log.stalled:
            break
    assert log.groups[5].last_index > written
    log.close()
    assert opened(tmp_path).groups[5].last_index > written


def test_removed_group_is_forgotten_and_may_come_back_empty(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.create_group(5, MEMBERS)
    put(log, 5, 5)
    log.remove_group(5)
    commit(log)
    log.create_group(5, Membership(voters=(7,)))
    put(log, 5, 2)
    log.close()
    log = opened(tmp_path)
    assert log.groups[5].last_index == 2
    assert log.groups[5].configs == [(0, Membership(voters=(7,)))]


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def place(log: SharedLog, group: int, index: int) -> tuple[str, int]:
    state = log.groups[group]
    position = state._positions[index - state.base_index - 1]
    return log._file(position >> 32).name, position & 0xFFFFFFFF


@pytest.mark.parametrize("where", [HEADER_SIZE + 300, 20], ids=["data", "header"])
def test_damaged_record_condemns_its_group_and_no_other(tmp_path: Path, where: int) -> None:
    log = opened(tmp_path)
    for group in (5, 6):
        log.create_group(group, MEMBERS)
    for _ in range(5):
        put(log, 5, 1)
        put(log, 6, 1)
    name, offset = place(log, 5, 3)
    log.close()
    flip(tmp_path / name, offset + where)
    log = opened(tmp_path)
    assert log.groups[5].corrupt
    assert not log.groups[6].corrupt
    assert headers(log, 6) == [b"%d" % index for index in range(1, 6)]
    assert len(log.damage) == 1 and name in log.damage[0]
    put(log, 6, 60)  # the verdict outlives the segment
    log.groups[6].released = 65
    for file in log.collect()[0]:
        log.pool.recycle(file)
    log.close()
    log = opened(tmp_path)
    assert log.groups[5].corrupt and not log.groups[6].corrupt


def test_damaged_last_record_of_a_group_is_noticed_too(tmp_path: Path) -> None:
    """Its header is gone, and no later record of the group shows the gap: no group is trusted without proof."""
    log = opened(tmp_path)
    for group in (5, 6, 7):
        log.create_group(group, MEMBERS)
        put(log, group, 3)
    put(log, 6, 2)
    name, offset = place(log, 5, 3)
    log.close()
    flip(tmp_path / name, offset + 4)
    log = opened(tmp_path)
    assert log.groups[5].corrupt
    assert not log.groups[6].corrupt and not log.groups[7].corrupt


def test_damaged_start_of_a_segment_is_not_taken_for_a_free_file(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.create_group(5, MEMBERS)
    put(log, 5, 60)
    name = log.segments[-1].file.name
    log.close()
    flip(tmp_path / name, 4)
    log = opened(tmp_path)
    assert log.damage
    assert log.groups[5].last_index == 60 or log.groups[5].corrupt


def test_damage_found_while_reading_names_the_group(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.create_group(5, MEMBERS)
    put(log, 5, 5)
    name, offset = place(log, 5, 2)
    flip(tmp_path / name, offset + HEADER_SIZE + 10)
    with pytest.raises(Corruption, match="group 5"):
        log.groups[5].read(1, 5, 1 << 20)


def test_unsynced_tail_is_cut_quietly(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.create_group(5, MEMBERS)
    put(log, 5, 5)
    name, offset = place(log, 5, 5)
    log.close()
    flip(tmp_path / name, offset + HEADER_SIZE + 10)
    log = opened(tmp_path)
    assert not log.damage
    assert log.groups[5].last_index == 4 and not log.groups[5].corrupt


def test_disk_errors_are_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    with pytest.raises(DiskFailed, match="file"):
        RealDisk(blocked / "log")
    with pytest.raises(DiskFailed):
        RealDisk(tmp_path).open("missing")


def test_half_made_segment_is_no_segment(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.create_group(5, MEMBERS)
    put(log, 5, 1)
    log.close()
    (tmp_path / "segment-0009.log.new").write_bytes(b"x" * 100)
    log = opened(tmp_path)
    assert log.groups[5].last_index == 1
    assert not list(tmp_path.glob("*.new"))


def test_any_flipped_bit_of_the_incarnation_still_lets_it_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # thousands of files
    path = tmp_path / "incarnation"
    for number in (1, 2, 3):
        assert next_incarnation(path) == number
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        rotten = bytearray(good)
        rotten[bit // 8] ^= 1 << bit % 8
        path.write_bytes(rotten)
        assert next_incarnation(path, lambda: 1.7e9) > 3
        assert next_incarnation(path, lambda: 0.0) > 1.7e15, "and goes on from there"
