"""Crashes of the shared log: at every write and sync, with the unsynced tail kept, lost, cut and torn in several ways.

What is recovered must be the state after some record between the last batch that was reported durable and the last one
written, over all groups at once; and what is appended afterwards must survive in turn.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

from consensus_disk import SimDisk, SimFile

from curve_storage.consensus.api import Membership
from curve_storage.consensus.config import LogConfig
from curve_storage.consensus.entry import COMMAND, CONFIG, Entry, HardState, pack_membership
from curve_storage.consensus.log import SharedLog
from curve_storage.consensus.log_segment import NO_HEADER

CONFIG_ = LogConfig(segment_size=32 * 1024, max_size=32 * 1024 * 8)
MEMBERS = Membership(voters=(1, 2, 3))

State = dict[int, tuple[int, int, int, tuple[tuple[int, int, bytes], ...], Membership]]
"""Group → term, vote, last index, entries (index, term, header), membership."""


class Model:
    """The groups' states after every single record."""

    def __init__(self) -> None:
        self.groups: dict[int, tuple[int, int, int, dict[int, tuple[int, bytes]], list[tuple[int, Membership]]]] = {}
        self.history: list[State] = [{}]
        self.durable = 0

    def note(self) -> None:
        self.history.append(
            {
                group: (
                    term, vote, last,
                    tuple((index, *entry) for index, entry in sorted(entries.items())),
                    configs[-1][1],
                )
                for group, (term, vote, last, entries, configs) in self.groups.items()
            }
        )  # fmt: skip


class Workload:
    """Runs a seeded mix of everything against a log, and keeps a copy of the disk around every operation."""

    def __init__(self, seed: int, batches: int) -> None:
        self.rng = random.Random(seed)
        self.disk = SimDisk()
        self.model = Model()
        self.points: list[tuple[dict[str, SimFile], int, int]] = []
        log = self.log = SharedLog(self.disk, CONFIG_, lambda: self.rng.getrandbits(32))
        log.open()
        for _ in range(batches):
            for _ in range(self.rng.randrange(1, 5)):
                self._act()
            self._commit()

    def _copy(self) -> None:
        files = {}
        for name, file in self.disk.files.items():
            twin = copy.copy(file)
            twin.durable = bytearray(file.durable)
            twin.view = bytearray(file.view)
            twin.unsynced = list(file.unsynced)
            files[name] = twin
        self.points.append((files, self.model.durable, len(self.model.history) - 1))

    def _commit(self) -> None:
        log = self.log
        while log.pool.wants_more():
            log.pool.prepare()
        if log.stalled:
            self._release()
            log.resume()
        batch = log.take_batch()
        if batch is None:
            return
        self._copy()
        for file, offset, buffers in batch.parts:
            file.write(offset, buffers)
            self._copy()
            file.sync()
            self._copy()
        log.finish(batch)
        if not log.stalled:
            self.model.durable = len(self.model.history) - 1
        self._copy()
        if self.rng.random() < 0.3:
            self._release()

    def _release(self) -> None:
        for group, log in self.log.groups.items():
            log.released = max(log.released, min(log.last_index, self.model.groups[group][2]))
        files, _ = self.log.collect()
        for file in files:
            file.write(0, [NO_HEADER])
            self._copy()
            file.sync()
            self.log.pool.add_free(file)
            self._copy()

    def _act(self) -> None:
        rng, model = self.rng, self.model
        if len(model.groups) < 3:
            group = next(number for number in (11, 12, 13) if number not in model.groups)
            self.log.create_group(group, MEMBERS)
            model.groups[group] = (0, 0, 0, {}, [(0, MEMBERS)])
            model.note()
            return
        group = rng.choice(sorted(model.groups))
        log = self.log.groups[group]
        term, vote, last, _, configs = model.groups[group]
        action = rng.random()
        if action < 0.03 and log.released == last:
            self.log.remove_group(group)
            del model.groups[group]
            model.note()
            self._commit()  # as hosts do: durable before the group may come back
        elif action < 0.08:
            index, membership = (
                last + rng.randrange(1, 50),
                Membership(voters=(1, 2, 4), epoch=configs[-1][1].epoch + 1),
            )
            self.log.begin_restore(log, index, term, membership, None)
            model.note()
            self._commit()
            self.log.restore(log, index, term, membership, None)
            model.groups[group] = (term, vote, index, {}, [(index, membership)])
            model.note()
            self._commit()
        else:
            self._save(group)

    def _save(self, group: int) -> None:
        rng, model = self.rng, self.model
        log = self.log.groups[group]
        term, vote, last, entries, configs = model.groups[group]
        hard = None
        if rng.random() < 0.3:
            term, vote = term + 1, rng.randrange(4)
            hard = HardState(term, vote)
            model.groups[group] = (term, vote, last, entries, configs)
            model.note()
        first = last + 1
        if rng.random() < 0.15 and last > log.released:
            first = rng.randrange(log.released + 1, last + 1)
            entries = {index: entry for index, entry in entries.items() if index < first}
            configs = [configs[0], *[pair for pair in configs[1:] if pair[0] < first]]
            model.groups[group] = (term, vote, first - 1, entries, configs)
            model.note()
        new: list[Entry] = []
        for index in range(first, first + rng.randrange(1, 6)):
            kind, header = COMMAND, rng.randbytes(rng.randrange(1, 60))
            if rng.random() < 0.05:
                membership = Membership(voters=(1, 2, 3), epoch=configs[-1][1].epoch + 1)
                kind, header = CONFIG, pack_membership(membership)
                configs = [*configs, (index, membership)]
            new.append(Entry(index, max(term, 1), kind, header, rng.randbytes(rng.choice((0, 8, 700, 4096)))))
            entries = {**entries, index: (max(term, 1), header)}
            model.groups[group] = (term, vote, index, entries, configs)
            model.note()
        self.log.save(log, hard, new, None)


def observe(log: SharedLog) -> State:
    found: State = {}
    for group, state in log.groups.items():
        entries = (
            state.read(state.base_index + 1, state.last_index, 1 << 30) if state.last_index > state.base_index else []
        )
        found[group] = (
            state.term, state.vote, state.last_index,
            tuple((entry.index, entry.term, entry.header) for entry in entries),
            state.configs[-1][1],
        )  # fmt: skip
    return found


def matches(found: State, expected: State) -> bool:
    if found.keys() != expected.keys():
        return False
    for group, (term, vote, last, entries, membership) in found.items():
        want = expected[group]
        if (term, vote, last, membership) != (want[0], want[1], want[2], want[4]):
            return False
        known = {index: (index, entry_term, header) for index, entry_term, header in want[3]}
        if any(known.get(entry[0]) != entry for entry in entries):
            return False
        if len(entries) != last - (entries[0][0] - 1 if entries else last):
            return False
    return True


def keep(file: SimFile, rng: random.Random) -> None:
    file.sync()


def lose(file: SimFile, rng: random.Random) -> None:
    file.unsynced.clear()
    file.view[:] = file.durable


def tear(file: SimFile, rng: random.Random) -> None:
    file.crash(rng)


def cut(file: SimFile, rng: random.Random) -> None:
    for offset, data in file.unsynced:
        length = rng.randrange(len(data) + 1)
        file.durable[offset : offset + length] = data[:length]
    lose(file, rng)


def tail_first(file: SimFile, rng: random.Random) -> None:
    """The end of the write reached the disk, its beginning did not."""
    for offset, data in file.unsynced:
        start = rng.randrange(len(data) + 1)
        file.durable[offset + start : offset + len(data)] = data[start:]
    lose(file, rng)


FATES: tuple[Callable[[SimFile, random.Random], None], ...] = (keep, lose, tear, cut, tail_first)


def recover(files: dict[str, SimFile], rng: random.Random) -> SharedLog:
    disk = SimDisk()
    disk.files = files
    log = SharedLog(disk, CONFIG_, lambda: rng.getrandbits(32))
    log.open()
    assert not log.damage
    assert not [state.corrupt for state in log.groups.values() if state.corrupt]
    return log


def sweep(seed: int, batches: int) -> int:
    workload = Workload(seed, batches)
    history = workload.model.history
    recoveries = 0
    for number, (files, durable, written) in enumerate(workload.points):
        pending = any(file.unsynced for file in files.values())
        for variant, fate in enumerate(FATES if pending else FATES[:1]):
            rng = random.Random(seed * 100_000 + number * 10 + variant)
            twins = {}
            for name, file in files.items():
                twin = twins[name] = copy.copy(file)
                twin.durable, twin.view = bytearray(file.durable), bytearray(file.view)
                twin.unsynced = list(file.unsynced)
                fate(twin, rng)
            where = f"seed {seed}, operation {number}, {fate.__name__}"
            log = recover(twins, rng)
            found = observe(log)
            assert any(matches(found, history[at]) for at in range(written, durable - 1, -1)), where
            recoveries += 1
            if not log.groups:
                continue
            # And on: what is appended now must be there after the next start, and nothing else.
            group = sorted(log.groups)[0]
            state = log.groups[group]
            entry = Entry(state.last_index + 1, state.term + 1, COMMAND, b"after the crash", rng.randbytes(300))
            log.save(state, HardState(state.term + 1, 1), [entry], None)
            expected = dict(found)
            batch = log.take_batch()
            if batch is None or log.stalled:
                continue
            batch.write()
            log.finish(batch)
            old = found[group]
            expected[group] = (
                old[0] + 1, 1, old[2] + 1, (*old[3], (entry.index, entry.term, entry.header)), old[4]
            )  # fmt: skip
            again = observe(recover(twins, rng))
            assert matches(again, expected), f"{where}: after the next start"
            recoveries += 1
    return recoveries


def test_every_write_boundary_and_torn_tails() -> None:
    assert sum(sweep(seed, 25) for seed in (2, 5, 6)) >= 1500


def test_the_sweep_notices_a_log_that_trusts_torn_records(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Without the check of the data's checksum the sweep must fail."""
    from curve_storage.consensus import log_scan

    monkeypatch.setattr(log_scan._Reader, "intact", lambda self, offset, record: True)
    try:
        sweep(2, 25)
    except Exception:
        return
    raise AssertionError("torn records were taken for good ones, and the sweep did not notice")
