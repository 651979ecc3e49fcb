"""One flipped bit anywhere in the shared log: every structure, every byte of headers, in the middle and at the tail.

A group ends either whole, with exactly what was acknowledged, or condemned, with the place named. Never does it come
back with less, more or other than it had promised.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from log_lab import MEMBERS, commit, opened

from curve_storage.consensus import log_record
from curve_storage.consensus.entry import COMMAND, CONFIG, Entry, HardState, pack_membership
from curve_storage.consensus.log import SharedLog
from curve_storage.consensus.log_record import HEADER_SIZE, Record, unpack_header
from curve_storage.errors import Corruption

GROUPS = (5, 6, 7)
NAMES = {
    value: name
    for name, value in vars(log_record).items()
    if name in ("SEGMENT", "BATCH", "ENTRY", "STATE", "HARD", "TRUNCATE", "CREATE", "RESTORE_BEGIN", "RESTORE")
}

Promise = tuple[int, int, int, tuple[tuple[int, bytes, bytes], ...]]


def promise(log: SharedLog, group: int) -> Promise:
    """Term, vote, last index, entries: what this replica has acknowledged. Raises Corruption when reading finds rot."""
    state = log.groups[group]
    entries = state.read(state.base_index + 1, state.last_index, 1 << 30) if state.last_index > state.base_index else []
    found = tuple((entry.index, bytes(entry.header), bytes(entry.payload)) for entry in entries)
    return state.term, state.vote, state.last_index, found


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments with every kind of record, sealed at the end as a log at rest is."""
    path = tmp_path_factory.mktemp("log")
    log = opened(path)
    for group in GROUPS:
        log.create_group(group, MEMBERS)
    commit(log)
    for index in range(1, 16):
        for group in GROUPS:
            state = log.groups[group]
            log.save(state, None, [Entry(index, 1, COMMAND, b"h%d" % index, bytes([group]) * 700)], None)
            commit(log)
    assert len(log.segments) == 2
    five, six, seven = (log.groups[group] for group in GROUPS)
    log.save(five, HardState(4, 2), [Entry(14, 4, CONFIG, pack_membership(MEMBERS))], None)  # cuts 14, 15
    commit(log)
    log.begin_restore(seven, 40, 3, MEMBERS, None)
    commit(log)
    log.restore(seven, 40, 3, MEMBERS, None)
    commit(log)
    log.save(six, HardState(9, 3), [], None)
    commit(log)
    assert not log.seal_idle() and log.seal_idle(), "at rest since the last look"
    commit(log)
    assert not log.seal_idle(), "once is enough"
    assert not log.stalled, "everything was written"
    log.close()
    return path


def records(path: Path) -> list[tuple[Path, int, Record]]:
    found = []
    for file in sorted(path.glob("segment-*.log")):
        data = file.read_bytes()
        offset = 0
        while (record := unpack_header(data, offset)) is not None:
            found.append((file, offset, record))
            offset += record.length
    return found


def check(work: Path, good: dict[int, Promise], what: str, *, named: bool) -> set[str]:
    """What happened to the groups: {"whole"}, {"condemned"} or both."""
    log = opened(work)
    try:
        outcomes = set()
        for group, expected in good.items():
            state = log.groups.get(group)
            assert state is not None, f"{what}: group {group} is forgotten"
            if state.corrupt:
                assert log.damage or "damaged" in state.corrupt, f"{what}: {state.corrupt}"
                outcomes.add("condemned")
                continue
            try:
                found = promise(log, group)
            except Corruption as error:
                assert f"group {group}" in error.what and error.where and error.todo
                outcomes.add("condemned")
                continue
            assert found == expected, f"{what}: group {group} is not as it was"
            outcomes.add("whole")
        assert bool(log.damage) == named, f"{what}: {log.damage}"
        assert all("segment" in place for place in log.damage)
        return outcomes
    finally:
        log.close()


def test_every_structure_of_the_log(original: Path, tmp_path: Path) -> None:
    rng = random.Random(4)
    work = tmp_path / "log"
    shutil.copytree(original, work)
    log = opened(work)
    good = {group: promise(log, group) for group in GROUPS}
    log.close()
    shutil.rmtree(work)
    shutil.copytree(original, work)
    everything = records(work)
    assert {NAMES[record.type] for _, _, record in everything} == set(NAMES.values())
    last = everything[-1]
    condemned: dict[str, int] = {}
    flips = 0
    for file, offset, record in everything:
        kind = NAMES[record.type]
        alike = [one for one in everything if one[2].type == record.type]
        middle = (file, offset, record) not in (alike[0], alike[-1], everything[-2])
        # Each byte of the header for the first and last record of each kind and for the very end; of others some.
        places = rng.sample(range(HEADER_SIZE), 2) if middle else list(range(HEADER_SIZE))
        if record.data_length:
            places += [HEADER_SIZE + rng.randrange(record.data_length) for _ in range(1 if middle else 8)]
        for place in places:
            bit = 1 << rng.randrange(8)
            with file.open("r+b") as stream:
                before = file.read_bytes()
                stream.seek(offset + place)
                stream.write(bytes([before[offset + place] ^ bit]))
            seal = (file, offset, record) == last
            outcome = check(work, good, f"{kind} at {file.name} {offset}, byte {place}", named=not seal)
            if "condemned" in outcome:
                assert not seal, "the seal proves, it holds nothing"
                condemned[kind] = condemned.get(kind, 0) + 1
            flips += 1
            file.write_bytes(before)
            for other in work.glob("segment-*.log"):
                if other.name != file.name:
                    shutil.copyfile(original / other.name, other)
    assert {"ENTRY", "HARD", "TRUNCATE", "RESTORE_BEGIN", "RESTORE"} <= condemned.keys()
    print(f"{flips} flipped bits, all found; those that condemned a replica, by kind of record: {condemned}")


def test_without_the_seal_the_last_batch_cannot_be_told_from_a_torn_one(original: Path, tmp_path: Path) -> None:
    """Why the seal is there: this test fails the day the first one no longer needs it."""
    work = tmp_path / "log"
    shutil.copytree(original, work)
    *_, (hard_file, hard, _), (file, offset, seal) = records(work)
    assert seal.type == log_record.BATCH and not seal.data_length
    data = bytearray(file.read_bytes())
    data[offset : offset + seal.length] = bytes(seal.length)
    data[hard + 20] ^= 1
    assert hard_file == file
    file.write_bytes(data)
    log = opened(work)
    assert not log.damage and log.groups[6].vote == 0, "the vote is forgotten in silence"
    log.close()


def test_the_only_segment_is_found_without_its_header(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.create_group(5, MEMBERS)
    commit(log)
    log.save(log.groups[5], HardState(4, 2), [Entry(1, 4, COMMAND, b"h", b"p")], None)
    commit(log)
    good = {5: promise(log, 5)}
    log.close()
    file = tmp_path / "segment-0001.log"
    data = file.read_bytes()
    for place in range(HEADER_SIZE):
        file.write_bytes(data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :])
        check(tmp_path, good, f"byte {place}", named=True)
