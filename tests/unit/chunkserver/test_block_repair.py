"""Bad blocks: fetched from a replica that is recent enough, verified, put back; and what happens when there is none."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curve_storage.chunkserver import reading
from curve_storage.chunkserver.chunk_file import DATA_START
from curve_storage.chunkserver.config import ScrubConfig
from curve_storage.chunkserver.copyset import Copyset
from curve_storage.chunkserver.repair import FetchRequest, Repairer, runs, verified
from curve_storage.chunkserver.scrub import Scrubber
from curve_storage.clock import ManualClock
from curve_storage.consensus.api import Buffer, Membership
from curve_storage.errors import ChunkNotExist, Corruption, Unavailable
from curve_storage.units import BLOCK_SIZE

CRC_BYTES = 4


def block(number: int) -> bytes:
    return number.to_bytes(4, "little") * (BLOCK_SIZE // 4)


class LocalReplicas:
    """The other members are machines in this process; the answers are those the data port would give."""

    def __init__(self) -> None:
        self.machines: dict[int, Copyset] = {}
        self.down: set[int] = set()
        self.asked: list[tuple[int, int, int]] = []
        self.before: Callable[[], None] = lambda: None

    async def fetch(self, node: int, request: FetchRequest) -> tuple[Buffer, Buffer]:
        self.asked.append((node, request.offset, request.length))
        if node in self.down:
            raise Unavailable("connection refused")
        self.before()
        machine = self.machines[node]
        if machine.applied < request.applied:
            raise Unavailable("this replica is behind")
        chunk = machine.chunks.get(request.chunk)
        count = request.length // BLOCK_SIZE
        if chunk is None:
            return bytes(CRC_BYTES * count), b""
        data = chunk.read_blocking(request.offset, request.length)
        if chunk.check(request.offset, data):
            raise Corruption("bad here too")
        return chunk.entries(request.offset // BLOCK_SIZE, count), data


class Group:
    """Three replicas of one copyset; 1 is the one under test."""

    def __init__(self, root: Path, parts: SimpleNamespace, files: int = 6) -> None:
        self.parts = parts
        self.replicas = LocalReplicas()
        self.disks = {node: parts.Disk(root / str(node), files=files if node == 1 else 6) for node in (1, 2, 3)}
        self.machines = {node: disk.create() for node, disk in self.disks.items()}
        for node, machine in self.machines.items():
            machine.on_membership(Membership(voters=(1, 2, 3)))
            self.replicas.machines[node] = machine
        self.repairer = Repairer(1, self.replicas, sleep=self.sleep)
        self.slept = 0
        self.while_sleeping: Callable[[], None] = lambda: None
        self.seq = 0

    async def sleep(self, seconds: float) -> None:
        self.slept += 1
        self.while_sleeping()

    @property
    def mine(self) -> Copyset:
        return self.machines[1]

    def apply(self, command: tuple[bytes, bytes], nodes: tuple[int, ...] = (1, 2, 3)) -> None:
        for node in nodes:
            machine = self.machines[node]
            assert machine.apply(machine.applied + 1, 1, command[0], memoryview(command[1])) is None

    def write(self, chunk: int, first: int, *values: int, nodes: tuple[int, ...] = (1, 2, 3)) -> tuple[bytes, bytes]:
        self.seq += 1
        command = self.parts.write(chunk, first * BLOCK_SIZE, b"".join(map(block, values)), self.seq)
        self.apply(command, nodes)
        return command

    def rot(self, chunk: int, number: int, node: int = 1) -> None:
        opened = self.machines[node].chunks.get(chunk)
        assert opened is not None
        position = DATA_START + number * BLOCK_SIZE + 1000
        (old,) = os.pread(opened.fd, 1, position)
        os.pwrite(opened.fd, bytes([old ^ 4]), position)

    def read(self, chunk: int, first: int, count: int) -> Awaitable[Any]:
        return reading.read(self.mine, chunk, first * BLOCK_SIZE, count * BLOCK_SIZE, self.repairer)

    def scrubber(self, clock: ManualClock, **config: float) -> Scrubber:
        return Scrubber(
            SimpleNamespace(by_group={self.parts.GROUP: self.mine}),  # type: ignore[arg-type]
            self.repairer,
            self.disks[1].monitor,
            ScrubConfig(**config),  # type: ignore[arg-type]
            clock,
            sleep=self.sleep,
        )


@pytest.fixture
def group(tmp_path: Path, parts: SimpleNamespace) -> Group:
    return Group(tmp_path, parts)


async def test_a_flipped_bit_is_answered_from_another_replica_and_healed(group: Group) -> None:
    group.write(1, 0, *range(1, 9))
    group.rot(1, 3)
    group.rot(1, 6)
    assert reading.read_now(group.mine, 1, 0, 8 * BLOCK_SIZE) is None
    assert bytes(await group.read(1, 0, 8)) == b"".join(map(block, range(1, 9)))
    group.replicas.down = {2, 3}
    assert bytes(await group.read(1, 0, 8)) == b"".join(map(block, range(1, 9))), "healed on the disk, nobody asked"
    assert bytes(reading.read_now(group.mine, 1, 3 * BLOCK_SIZE, BLOCK_SIZE) or b"") == block(4)


async def test_each_block_comes_from_whoever_has_it(group: Group) -> None:
    group.write(1, 0, *range(1, 9))
    for number in range(8):
        group.rot(1, number)
        group.rot(1, number, node=2 + number % 2)
    assert bytes(await group.read(1, 0, 8)) == b"".join(map(block, range(1, 9)))


async def test_without_a_good_copy_it_is_corruption_naming_chunk_and_block(group: Group) -> None:
    group.write(17, 0, 1, 2, 3)
    for node in (1, 2, 3):
        group.rot(17, 1, node=node)
    with pytest.raises(Corruption, match=r"chunk 17 block 1"):
        await group.read(17, 0, 3)
    assert bytes(await group.read(17, 2, 1)) == block(3), "the others are still readable"
    group.write(17, 1, 22)
    assert bytes(await group.read(17, 0, 3)) == block(1) + block(22) + block(3), "and writing it anew heals it"


async def test_while_others_are_down_it_is_unavailable_not_lost(group: Group) -> None:
    group.write(1, 0, 1)
    group.rot(1, 0)
    group.rot(1, 0, node=2)
    group.replicas.down = {3}
    with pytest.raises(Unavailable, match="connection refused"):
        await group.read(1, 0, 1)
    group.replicas.down = set()
    assert bytes(await group.read(1, 0, 1)) == block(1)


async def test_an_older_replica_is_not_believed(group: Group) -> None:
    group.write(1, 0, 1)
    newer = group.write(1, 0, 2, nodes=(1,))
    group.rot(1, 0)
    caught_up = False

    def catch_up() -> None:
        nonlocal caught_up
        if group.slept == 2 and not caught_up:
            group.apply(newer, (3,))
            caught_up = True

    group.while_sleeping = catch_up
    assert bytes(await group.read(1, 0, 1)) == block(2), "waited for a replica that has the newer write"
    assert caught_up


async def test_a_write_during_the_repair_wins(group: Group) -> None:
    group.write(1, 0, 1)
    group.rot(1, 0)
    done = False

    def overwrite() -> None:
        nonlocal done
        if not done:
            done = True
            group.write(1, 0, 2, nodes=(1,))

    group.replicas.before = overwrite
    # The replica asked has applied less than it is asked for only from now on: it answers with the old block.
    assert bytes(await group.read(1, 0, 1)) == block(2)
    assert done


async def test_a_hollow_chunk_is_read_from_others_and_filled_when_there_is_space(
    tmp_path: Path, parts: SimpleNamespace
) -> None:
    group = Group(tmp_path, parts, files=2)
    for chunk in (1, 2, 3):
        group.write(chunk, 0, chunk, chunk + 10)
    assert group.mine.chunks.hollow == {3}
    assert bytes(await group.read(3, 0, 3)) == block(3) + block(13) + bytes(BLOCK_SIZE)
    assert group.mine.chunks.hollow == {3}
    group.seq += 1
    group.apply(parts.delete(1, group.seq))
    group.disks[1].settle()
    clock = ManualClock()
    scrubber = group.scrubber(clock)
    await scrubber.copyset(group.mine)
    assert group.mine.chunks.hollow == set()
    group.replicas.down = {2, 3}
    assert bytes(await group.read(3, 0, 3)) == block(3) + block(13) + bytes(BLOCK_SIZE)


async def test_known_bad_blocks_are_fetched_without_being_read(tmp_path: Path, parts: SimpleNamespace) -> None:
    group = Group(tmp_path, parts, files=2)
    for chunk in (1, 2, 3):
        group.write(chunk, 0, chunk, chunk + 10)
    group.seq += 1
    group.apply(parts.delete(1, group.seq))
    group.write(3, 1, 77)  # gives the hollow chunk a file, block 0 is still missing
    group.replicas.down = {2, 3}
    clock = ManualClock()
    scrubber = group.scrubber(clock)
    assert group.mine.chunks.suspect() == [3]
    await scrubber.copyset(group.mine)
    asked = len(group.replicas.asked)
    assert asked > 0
    await scrubber.copyset(group.mine)
    assert len(group.replicas.asked) == asked, "not again at once"
    group.replicas.down = set()
    clock.advance(61)
    await scrubber.copyset(group.mine)
    assert group.mine.chunks.suspect() == []
    group.replicas.down = {2, 3}
    assert bytes(await group.read(3, 0, 3)) == block(3) + block(77) + bytes(BLOCK_SIZE)


async def test_the_scrub_heals_cold_chunks_when_they_are_due(group: Group) -> None:
    for chunk in (1, 2):
        group.write(chunk, 0, *range(1, 300))
    await group.mine.checkpoint()
    group.rot(1, 250)
    group.rot(2, 7)
    clock = ManualClock()
    scrubber = group.scrubber(clock, interval=1000.0)
    await scrubber.copyset(group.mine)
    assert group.replicas.asked == []
    clock.advance(1001)
    await scrubber.copyset(group.mine)
    assert {(offset // BLOCK_SIZE) for _, offset, _ in group.replicas.asked} == {250, 7}
    group.replicas.down = {2, 3}
    assert bytes(await group.read(1, 250, 1)) == block(251)
    assert bytes(await group.read(2, 7, 1)) == block(8)


@pytest.mark.parametrize("wrong_at_start", [False, True])
async def test_the_scrub_goes_on_after_a_clock_that_was_ahead(group: Group, wrong_at_start: bool) -> None:
    """Within an interval of the right time, not when that has come as far as the wrong one was."""
    group.write(1, 0, *range(1, 30))
    await group.mine.checkpoint()

    class Ahead(ManualClock):
        ahead = 1e8 if wrong_at_start else 0.0

        def wall(self) -> float:
            return super().wall() + self.ahead

    clock = Ahead()
    scrubber = group.scrubber(clock, interval=1000.0)
    await scrubber.copyset(group.mine)
    clock.ahead = 1e8
    await scrubber.copyset(group.mine)
    clock.ahead = 0.0
    await scrubber.copyset(group.mine)
    group.rot(1, 7)
    await scrubber.copyset(group.mine)
    assert group.replicas.asked == [], "not due twice for one correction"
    clock.advance(1000)
    await scrubber.copyset(group.mine)
    assert [offset // BLOCK_SIZE for _, offset, _ in group.replicas.asked] == [7]


async def test_the_scrub_finds_rot_in_header_table_and_meta_of_what_nobody_opens(group: Group) -> None:
    group.write(1, 0, *range(1, 30))
    await group.mine.checkpoint()
    chunk = group.mine.chunks.get(1)
    assert chunk is not None
    good = os.pread(chunk.fd, DATA_START, 0)
    meta = group.mine.path / "meta"
    clock = ManualClock()
    scrubber = group.scrubber(clock, interval=1000.0)
    await scrubber.copyset(group.mine)
    for position in (3, 30, 100, 4096 + 5, 4096 + 4000):
        os.pwrite(chunk.fd, bytes([good[position] ^ 0x20]), position)
        rotten = bytearray(meta.read_bytes())
        rotten[position % len(rotten)] ^= 1
        meta.write_bytes(rotten)
        clock.advance(1000)
        await scrubber.copyset(group.mine)
        await group.mine.checkpoint()
        assert os.pread(chunk.fd, DATA_START, 0) == good, f"byte {position} is still rotten"
        assert group.disks[1].load().applied == group.mine.applied
    assert group.replicas.asked == [], "what this process knows needs no other replica"


async def test_every_chunk_has_its_moment_whatever_is_restarted(group: Group) -> None:
    for chunk in (1, 2, 3):
        group.write(chunk, 0, 5)
    await group.mine.checkpoint()
    clock = ManualClock()
    healed: list[float] = []
    for chunk in (1, 2, 3):
        group.rot(chunk, 0)
    for _ in range(40):  # a process that never lives for a whole interval
        scrubber = group.scrubber(clock, interval=1000.0)
        for _ in range(3):
            asked = len(group.replicas.asked)
            await scrubber.copyset(group.mine)
            healed += [clock.monotonic()] * (len(group.replicas.asked) - asked)
            clock.advance(10)
    assert len(healed) == 3


async def test_reading_what_was_never_written(group: Group) -> None:
    with pytest.raises(ChunkNotExist):
        await group.read(5, 0, 1)
    with pytest.raises(ChunkNotExist):
        reading.read_now(group.mine, 5, 0, BLOCK_SIZE)


@given(st.lists(st.integers(0, 4095), max_size=400))
def test_runs_cover_exactly_the_blocks(blocks: list[int]) -> None:
    found = runs(blocks)
    assert [first + n for first, count in found for n in range(count)] == sorted(set(blocks))
    assert all(0 < count <= 256 for _, count in found)


def test_a_copy_damaged_on_the_way_is_refused() -> None:
    with pytest.raises(Corruption):
        verified(b"\x01\0\0\0", block(1), 1, "here")
    with pytest.raises(Corruption):
        verified(b"\x01\0\0\0", b"", 1, "here")
    assert verified(bytes(4), b"", 1, "here")[1] == bytes(BLOCK_SIZE)
