"""Losses of power of one chunkserver, at every operation on its disk: log, copyset, chunks, pool, snapshots.

The member under test follows a leader played by this module, on a disk in memory (cluster_disk). Before each write,
sync and change of a name the disk is copied; each copy then loses its power in several ways and is started by the
product's own code. What must be there: every entry whose durability the member had reported, the state after the last
one as the model has it, and nothing hollow, bad or corrupt. Then bits are flipped: no read may return other bytes.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from cluster_disk import MOUNTS, Disk, File, SimOs, SimPath
from cluster_loop import Process
from cluster_patches import SimHandle
from copyset_model import CHUNKS, SPAN, Clients, State, content

from curve_storage.chunkserver import atomic_file, chunk_directory, chunk_file, copyset, copysets, pool, snapshot
from curve_storage.chunkserver.chunk_directory import OpenFiles, chunk_file_name
from curve_storage.chunkserver.chunk_file import DATA_START
from curve_storage.chunkserver.config import PoolConfig
from curve_storage.chunkserver.copyset import Copyset, Surroundings
from curve_storage.chunkserver.copysets import Copysets
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.consensus import disk as log_disk
from curve_storage.consensus.api import Membership, Piece
from curve_storage.consensus.config import LogConfig, RaftConfig
from curve_storage.consensus.disk import RealDisk
from curve_storage.consensus.engine import Engine
from curve_storage.consensus.entry import COMMAND, Entry
from curve_storage.consensus.log import SharedLog
from curve_storage.consensus.raft_messages import APPEND, APPEND_REPLY, Message
from curve_storage.errors import Fenced
from curve_storage.units import BLOCK_SIZE, KiB, MiB

GROUP = (1 << 32) | 7
MEMBERS = Membership(voters=(1, 2, 3))
NODE = 2
FILES = 2 * CHUNKS * 3
LOG = LogConfig(segment_size=64 * KiB, max_size=64 * KiB * 8)
FATES = 3
_LIVES = itertools.count(1)
_PATCHED = (atomic_file, chunk_directory, chunk_file, copyset, copysets, log_disk, pool, snapshot)


class Loss(AssertionError):
    """What was promised is not there."""


class SweepOs(SimOs):
    """Calls `before` ahead of everything that changes the disk."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        self.before()
        return super().pwrite(fd, data, offset)

    def write(self, fd: int, data: Any) -> int:
        self.before()
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        self.before()
        super().fsync(fd)

    fdatasync = fsync

    def rename(self, source: Any, target: Any) -> None:
        self.before()
        super().rename(source, target)


class Machine:
    """Stands for the process of cluster_disk: never dies by itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = self
        self.on_kill: list[Callable[[], None]] = []

    def step(self) -> None:
        pass


def mounted(machine: Machine) -> Disk:
    disk = Disk(machine)  # type: ignore[arg-type]
    disk._next += next(_LIVES) << 20  # handles of earlier lives, closed late, are none of this one's
    return disk


class Inline(Executor):
    """`ahead` runs once, before the next piece of work: what the event loop does while a thread waits for the disk."""

    ahead: Callable[[], None] | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        ahead, self.ahead = self.ahead, None
        try:
            if ahead is not None:
                ahead()
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Member:
    """One life of a chunkserver on a machine's disk."""

    def __init__(self, name: str, seed: int) -> None:
        self.acknowledged = (0, 0)
        self.answers: dict[int, Any] = {}
        self.now = 1.0
        self.io = Inline()
        data = SimPath(f"/{name}/data")
        data.mkdir(parents=True, exist_ok=True)
        self.pool = ChunkPool(
            data / "pool", PoolConfig(size=FILES * 17 * MiB, first_batch=FILES, ready=2, reserve=0), self.failed
        )
        around = Surroundings(self.pool, OpenFiles(6), self.io, self, self.failed)  # type: ignore[arg-type]
        self.copysets = Copysets(data, around, trash_retention=300)
        self.pool.scan(self.copysets.count_chunk_files())
        while self.pool.step():
            pass
        salts = random.Random(seed)
        self.log = SharedLog(RealDisk(data / "log"), LOG, lambda: salts.getrandbits(32))
        self.log.open()
        config = RaftConfig(hibernate_after=0.0)
        self.engine = Engine(NODE, self.log, config, random.Random(seed), self)  # type: ignore[arg-type]

    async def begin(self) -> None:
        if self.log.damage:
            raise Loss(f"the log is damaged: {self.log.damage}")
        await self.copysets.load(self)  # type: ignore[arg-type]
        if self.copysets.damaged:
            raise Loss(f"the replica is damaged: {self.copysets.damaged}")

    # --- what Copysets asks of the consensus host; Waiter; DiskSpace ------------------------------

    def known_groups(self) -> list[int]:
        return sorted(self.log.groups)

    def add_group(self, group: int, machine: Any, membership: Membership | None = None) -> None:
        found = self.engine.add_group(group, machine, membership, self.now)
        if found.raft is None:
            raise Loss(f"the replica's log is corrupt: {found.log.corrupt}")

    async def remove_group(self, group: int) -> None:
        raise Loss(f"group {group} is given up: {self.copysets.damaged}")

    def done(self, *_: Any) -> None: ...

    members_changed = snapshot_needed = done

    def failed(self, *error: Any) -> None:
        raise Loss(f"the disk failed: {error}")

    def exhausted(self, what: str) -> Any:
        raise Loss(what)

    @property
    def machine(self) -> Copyset:
        return self.copysets.by_group[GROUP]

    # --- turns ------------------------------

    def turn(self) -> None:
        """Flush, write and sync what is to be, flush again; notes what the member reports to the leader."""
        while True:
            while not self.engine.flush(self.now):
                pass
            for messages in self.engine.outgoing.values():
                for message in messages:
                    if message.kind == APPEND_REPLY and not message.reject:
                        self.reported(message.index)
            self.engine.outgoing.clear()
            if self.log.pool.wants_more():
                self.log.pool.prepare()
            if self.log.stalled and not self.log.pool.free:  # as the host does where a checkpoint frees nothing
                self.log.pool.prepare(beyond_limit=True)
            if self.log.stalled:
                self.log.resume()
            batch = self.engine.take_batch()
            if batch is None:
                return
            batch.write()
            self.engine.batch_done(batch)

    def reported(self, index: int) -> None:
        raft = self.engine.raft_of(GROUP)
        if (term := raft.log.term(index)) is not None and index > self.acknowledged[0]:
            self.acknowledged = (index, term)


@dataclass
class Point:
    root: Any
    journal: Any
    acknowledged: tuple[int, int]


class Workload:
    """Runs a seeded mix against a member, and keeps a copy of its disk ahead of each operation."""

    def __init__(self, rng: random.Random, os: SweepOs) -> None:
        self.rng = rng
        self.os = os
        self.points: list[Point] = []
        self.states: dict[tuple[int, int], State] = {(0, 0): State()}
        self.verdicts: dict[tuple[int, int], str] = {}
        self.entries: list[Entry] = []  # of the leader's log, from index 1
        self.commit = 0
        self.sent = 0
        self.term = 1
        self.clients = Clients(rng, GROUP)
        self.machine = Machine("m")
        self.disk = mounted(self.machine)
        self.peer = Machine("peer")
        mounted(self.peer)

    def _copy(self) -> None:
        if Process.running is self.machine:
            root, journal = copy.deepcopy((self.disk.root, self.disk._journal))
            self.points.append(Point(root, journal, self.member.acknowledged))

    @contextmanager
    def at(self, machine: Machine) -> Iterator[None]:
        before, Process.running = Process.running, machine  # type: ignore[assignment]
        try:
            yield
        finally:
            Process.running = before

    async def run(self, steps: int) -> None:
        with self.at(self.peer):
            self.source = Member("peer", 1)
            await self.source.begin()
            self.source.copysets.create(GROUP, MEMBERS, self.source)  # type: ignore[arg-type]
        with self.at(self.machine):
            self.member = Member("m", 2)
            await self.member.begin()
            self.member.copysets.create(GROUP, MEMBERS, self.member)  # type: ignore[arg-type]
            self.member.turn()
            self._watch()
            self.os.before = self._copy  # type: ignore[method-assign]
            for _ in range(steps):
                action = self.rng.random()
                if action < 0.66:
                    self.append()
                elif action < 0.82:
                    await self.checkpoint()
                elif action < 0.9:
                    self.member.pool.step()
                elif action < 0.95:
                    self.another_leader()
                else:
                    await self.install()
            self._copy()
            self.os.before = lambda: None  # type: ignore[method-assign]

    def _watch(self) -> None:
        """Results of `apply` are compared as they come."""
        machine = self.member.machine
        original = machine.apply

        def apply(index: int, term: int, header: bytes, payload: memoryview) -> Any:
            result = original(index, term, header, payload)
            expect(self.verdicts.get((index, term), "apply"), result, index)
            return result

        machine.apply = apply  # type: ignore[method-assign]

    # --- the leader ------------------------------

    def more(self, count: int) -> None:
        for _ in range(count):
            index = len(self.entries) + 1
            before = self.states[self.position(index - 1)]
            command = self.clients.command()
            state, verdict = before.after(command)
            self.entries.append(Entry(index, self.term, COMMAND, command.header, command.payload))
            self.states[index, self.term], self.verdicts[index, self.term] = state, verdict

    def position(self, index: int) -> tuple[int, int]:
        return (index, self.entries[index - 1].term if index else 0)

    def send(self, first: int, last: int) -> None:
        previous = self.position(first - 1)
        self.member.now += 0.01
        message = Message(
            APPEND, GROUP, 1 if self.term % 2 else 3, NODE, self.term, *previous, self.commit,
            int(self.member.now * 1e9), entries=self.entries[first - 1 : last],
        )  # fmt: skip
        self.member.engine.step(message, self.member.now)
        self.member.turn()
        self.sent = last

    def append(self) -> None:
        if self.member.engine.groups[GROUP].installing:
            return
        self.more(self.rng.randrange(1, 4))
        self.commit = self.rng.randrange(self.commit, min(self.sent, self.member.acknowledged[0]) + 1)
        self.send(self.sent + 1, len(self.entries))
        if self.rng.random() < 0.2:
            self.release()

    def another_leader(self) -> None:
        """It lacks some of what is not committed, and writes something else there."""
        self.term += 1
        keep = self.rng.randrange(self.commit, len(self.entries) + 1)
        del self.entries[keep:]
        self.sent = keep
        if self.member.acknowledged[0] > keep:
            self.member.acknowledged = self.position(keep)
        self.more(self.rng.randrange(1, 3))
        self.send(keep + 1, len(self.entries))

    async def checkpoint(self) -> None:
        member = self.member
        if self.rng.random() < 0.7:
            member.io.ahead = self.append
        index = await member.machine.checkpoint()
        member.io.ahead = None
        member.engine.checkpointed(member.engine.groups[GROUP], index)
        self.release()

    def release(self) -> None:
        """As the host does after every checkpoint of any group."""
        for file in self.member.engine.collect():
            self.member.log.pool.recycle(file)

    async def install(self) -> None:
        """The leader's log begins after what the member has: a snapshot, from a replica that applied everything."""
        self.more(self.rng.randrange(2, 8))
        index, term = self.position(len(self.entries))
        self.commit = index
        with self.at(self.peer):
            source = self.source.machine
            for entry in self.entries[source.applied :]:
                source.apply(entry.index, entry.term, entry.header, memoryview(entry.payload))
            snapshot_ = await source.snapshot()
            pieces = [Piece(each.name, each.offset, bytes(each.data)) async for each in snapshot_.pieces()]
        member = self.member
        engine, group = member.engine, member.engine.groups[GROUP]
        sink = await member.machine.restore()
        for piece in pieces:
            await sink.piece(piece)
        ends: list[str] = []
        if not engine.begin_install(group, index, term, MEMBERS, lambda: ends.append("begun")):
            raise Loss("the snapshot is not wanted")
        member.turn()
        await sink.commit(index)
        engine.finish_install(group, index, term, MEMBERS, member.now, lambda: ends.append("finished"))
        member.turn()
        if ends != ["begun", "finished"]:
            raise Loss(f"the installation did not end: {ends}")
        self.sent = index
        member.acknowledged = (index, term)


def expect(verdict: str, result: Any, index: int) -> None:
    refused = result is not None
    if refused != (verdict in ("fenced", "stale")) or (verdict == "fenced") != isinstance(result, Fenced):
        raise Loss(f"command {index} must be {verdict}, its answer is {result!r}")


# --- recovery --------------------------------------------------------------------------------------------------------


async def recover(point: Point, workload: Workload, rng: random.Random, all_kept: bool) -> None:
    machine = Machine("m")
    disk = mounted(machine)
    disk.root, disk._journal = copy.deepcopy((point.root, point.journal))
    if not all_kept:
        disk.lose_power(rng)
    with workload.at(machine):
        member = Member("m", rng.getrandbits(32))
        await member.begin()
        log = member.log.groups[GROUP]
        index, term = point.acknowledged
        if log.last_index < index or (index > log.base_index and log.term_at(index) != term):
            raise Loss(f"entry {index}@{term} was reported durable; the log ends at {log.last_index}@{log.last_term}")
        copyset_ = member.machine
        first = copyset_.applied + 1
        if first <= log.last_index:
            for entry in log.read(first, log.last_index, 1 << 40):
                result = copyset_.apply(entry.index, entry.term, entry.header, memoryview(entry.payload))
                expect(workload.verdicts[entry.index, entry.term], result, entry.index)
        state = workload.states[log.last_index, log.last_term]
        compare(copyset_, state)
        await copyset_.checkpoint()
        compare(copyset_, state)
        rot(disk, copyset_, state, rng)


def compare(copyset_: Copyset, state: State) -> None:
    if copyset_.chunks.hollow:
        raise Loss(f"chunks {sorted(copyset_.chunks.hollow)} have no file")
    for chunk in sorted({*copyset_.chunks.ids(), *(chunk for chunk, _ in state.blocks)}):
        bad = differing(copyset_, state, chunk)
        if bad:
            raise Loss(f"chunk {chunk}: {bad}")
    table = copyset_.writers.dump()
    for number, volume in state.volumes.items():
        epoch, generation, low, applied = table["writers"].get(number, [0, 0, 0, []])
        found = (table["fences"].get(number, 0), (epoch, generation), low, frozenset(applied))
        if found != (volume.fence, volume.writer, volume.low, volume.applied):
            raise Loss(f"the writer of volume {number} is {found}, expected {volume}")


def differing(copyset_: Copyset, state: State, chunk: int, *, may_be_bad: bool = False) -> str:
    file = copyset_.chunks.get(chunk)
    data, bad = bytearray(SPAN * BLOCK_SIZE), []
    if file is not None:
        data = file.read_blocking(0, SPAN * BLOCK_SIZE)
        bad = file.check(0, data)
    # A torn header proves nothing about blocks that were never written: those may have to be fetched from a peer.
    lost = [block for block in bad if (chunk, block) in state.blocks]
    if lost and not may_be_bad:
        return f"blocks {lost} are bad"
    for block in range(SPAN):
        expected = content(state.blocks.get((chunk, block), 0))
        if block not in bad and data[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] != expected:
            return f"block {block} holds something else"
    return ""


def rot(disk: Disk, copyset_: Copyset, state: State, rng: random.Random) -> None:
    """A bit of a chunk, or a sector of its table, changes: what is read is right, or known to be bad."""
    if not state.blocks:
        return
    chunk, block = rng.choice(sorted(state.blocks))
    copyset_.chunks.close_all()
    file = disk.get(copyset_.path / chunk_file_name(chunk))
    assert isinstance(file, File)
    place = DATA_START + block * BLOCK_SIZE if rng.random() < 0.5 else 0
    if rng.random() < 0.3:
        for pages in (file.pages, file.durable):
            table = pages.get(1, bytes(4096))
            pages[1] = bytes(512) + table[512:]
    else:
        file.flip(place + rng.randrange(BLOCK_SIZE if place else 4096 + 4 * SPAN), rng.randrange(8))
    wrong = differing(copyset_, state, chunk, may_be_bad=True)
    if wrong:
        raise Loss(f"after a bit or a sector has changed, chunk {chunk}: {wrong}, and nothing noticed")


@contextmanager
def on_simulated_disks(os: SweepOs) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in _PATCHED:
            patch.setattr(module, "os", os)
        for module in (chunk_file, snapshot):
            patch.setattr(module, "Handle", SimHandle)
        try:
            yield
        finally:
            Process.running = None
            MOUNTS.pop("m", None)
            MOUNTS.pop("peer", None)


def sweep(seed: int, steps: int = 60, every: int = 1) -> int:
    """Every `every`-th operation of a workload, FATES losses of power each. Raises Loss; returns the recoveries."""
    rng = random.Random(seed)
    os = SweepOs(random.Random(seed))
    done = 0

    async def main() -> None:
        nonlocal done
        workload = Workload(rng, os)
        await workload.run(steps)
        for number, point in itertools.islice(enumerate(workload.points), seed % every, None, every):
            for fate in range(FATES):
                try:
                    await recover(point, workload, random.Random(seed << 32 | number << 4 | fate), fate == 0)
                except Exception as error:
                    raise Loss(
                        f"seed {seed}, operation {number} of {len(workload.points)}, fate {fate}: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                done += 1

    with on_simulated_disks(os):
        asyncio.run(main())
    return done
