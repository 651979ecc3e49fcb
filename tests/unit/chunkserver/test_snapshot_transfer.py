"""Moving a replica while it is written to; installing is atomic at every step."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curve_storage.chunkserver import snapshot
from curve_storage.consensus.api import Membership, Piece
from curve_storage.errors import Corruption, InvalidArgument, NoSpace
from curve_storage.units import BLOCK_SIZE, MiB

ZEROS = bytes(BLOCK_SIZE)


def block(number: int) -> bytes:
    return number.to_bytes(4, "little") * (BLOCK_SIZE // 4)


class Replica:
    def __init__(self, parts: SimpleNamespace, root: Path, files: int = 12) -> None:
        self.parts = parts
        self.disk = parts.Disk(root, files=files)
        self.machine = self.disk.create()
        self.seq = 0

    def write(self, chunk: int, number: int, value: int) -> tuple[bytes, bytes]:
        self.seq += 1
        return self.apply(self.parts.write(chunk, number * BLOCK_SIZE, block(value), self.seq))

    def delete(self, chunk: int) -> tuple[bytes, bytes]:
        self.seq += 1
        return self.apply(self.parts.delete(chunk, self.seq))

    def apply(self, command: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        assert self.machine.apply(self.machine.applied + 1, 1, command[0], memoryview(command[1])) is None
        return command

    def content(self, chunk: int, blocks: int) -> bytes:
        opened = self.machine.chunks.get(chunk)
        assert opened is not None
        data = opened.read_blocking(0, blocks * BLOCK_SIZE)
        assert opened.check(0, data) == []
        return bytes(data)


async def test_a_replica_moves_while_it_is_written_to(tmp_path: Path, parts: SimpleNamespace) -> None:
    source, target = Replica(parts, tmp_path / "a"), Replica(parts, tmp_path / "b")
    for number in range(600):
        source.write(1, number, number + 1)
    for chunk in range(2, 6):
        source.write(chunk, chunk, chunk)
    target.write(9, 0, 99)  # what it held before goes away
    taken = await source.machine.snapshot()
    assert taken.index == source.machine.applied
    sink = await target.machine.restore()
    later = []
    count = 0
    async for piece in taken.pieces():
        assert len(piece.data) <= MiB
        await sink.piece(Piece(piece.name, piece.offset, bytes(piece.data)))
        count += 1
        if count == 3:
            later.append(source.write(1, 5, 1005))
            later.append(source.write(1, 4000, 4000))
            later.append(source.delete(3))
            later.append(source.write(3, 1, 31))
            later.append(source.delete(4))
            later.append(source.write(7, 0, 7))
    taken.close()
    await sink.commit(taken.index)
    assert target.machine.durable_index() == taken.index
    target.seq = source.seq
    for command in later:
        target.apply(command)
    assert target.machine.chunks.ids() == source.machine.chunks.ids() == [1, 2, 3, 5, 7]
    for chunk in target.machine.chunks.ids():
        assert target.content(chunk, 4096) == source.content(chunk, 4096)
    # The writers' table came along: a repeated request has no second effect.
    assert target.machine.writers.dump() == source.machine.writers.dump()
    target.disk.settle()
    assert target.disk.pool.free == 12 - 5
    target.disk.open()
    assert target.disk.load().durable_index() == taken.index


async def test_what_is_emptied_before_its_turn_is_no_riddle_to_the_receiver(
    tmp_path: Path, parts: SimpleNamespace
) -> None:
    source, target = Replica(parts, tmp_path / "a"), Replica(parts, tmp_path / "b")
    for chunk in (1, 2, 3):
        source.write(chunk, 7, chunk)
    taken = await source.machine.snapshot()
    later = []
    for chunk in (2, 3):
        source.seq += 1
        later.append(source.apply(parts.discard(chunk, 0, 64 * BLOCK_SIZE, source.seq)))
    await source.machine.checkpoint()  # frees both
    later.append(source.write(3, 8, 38))
    sink = await target.machine.restore()
    async for piece in taken.pieces():
        await sink.piece(Piece(piece.name, piece.offset, bytes(piece.data)))
    await sink.commit(taken.index)
    for command in later:
        target.apply(command)
    await target.machine.checkpoint()
    assert target.machine.chunks.ids() == source.machine.chunks.ids() == [1, 3]
    assert target.content(3, 64) == source.content(3, 64)


async def pieces_of(replica: Replica) -> tuple[int, list[Piece]]:
    taken = await replica.machine.snapshot()
    return taken.index, [Piece(p.name, p.offset, bytes(p.data)) async for p in taken.pieces()]


async def test_an_aborted_transfer_leaves_the_old_state_and_no_files(tmp_path: Path, parts: SimpleNamespace) -> None:
    source, target = Replica(parts, tmp_path / "a"), Replica(parts, tmp_path / "b")
    source.write(1, 0, 1)
    source.write(2, 0, 2)
    target.write(9, 0, 99)
    _, pieces = await pieces_of(source)
    sink = await target.machine.restore()
    for piece in pieces[:-1]:
        await sink.piece(piece)
    sink.abort()
    assert target.content(9, 1) == block(99)
    target.disk.settle()
    assert target.disk.pool.free == 11
    sink = await target.machine.restore()
    await sink.piece(pieces[0])
    # A crash instead of an abort: the next start cleans up.
    await target.machine.checkpoint()
    target.disk.open()
    host = parts.FakeHost()
    host.memberships[parts.GROUP] = Membership(voters=(1,))
    host.logs[parts.GROUP] = [(b"", b"")]
    await target.disk.copysets.load(host)
    assert not list(target.disk.copysets.root.glob("*.*"))
    target.machine = target.disk.copysets.by_group[parts.GROUP]
    assert target.content(9, 1) == block(99)


@pytest.mark.parametrize("renames", [0, 1, 2])
async def test_a_crash_while_installing_gives_the_old_or_the_new_state(
    tmp_path: Path, parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    source, target = Replica(parts, tmp_path / "a"), Replica(parts, tmp_path / "b")
    source.write(1, 0, 1)
    source.write(1, 1, 2)
    target.write(9, 0, 99)
    await target.machine.checkpoint()
    index, pieces = await pieces_of(source)
    sink = await target.machine.restore()
    for piece in pieces:
        await sink.piece(piece)

    class Crash(Exception):
        pass

    done = 0

    def rename(old: Any, new: Any) -> None:
        nonlocal done
        if done == renames:
            raise Crash
        done += 1
        os.rename(old, new)

    monkeypatch.setattr(snapshot, "os", SimpleNamespace(**{**vars(os), "rename": rename}))
    with pytest.raises(Crash):
        await sink.commit(index)
    monkeypatch.setattr(snapshot, "os", os)
    target.disk.open()
    host = parts.FakeHost()
    host.memberships[parts.GROUP] = Membership(voters=(1,))
    host.logs[parts.GROUP] = []
    await target.disk.copysets.load(host)
    assert target.disk.copysets.damaged == {}
    target.machine = target.disk.copysets.by_group[parts.GROUP]
    if renames == 0:
        assert target.machine.durable_index() == 1
        assert target.content(9, 1) == block(99)
    else:
        assert target.machine.durable_index() == index
        assert target.machine.chunks.ids() == [1]
        assert target.content(1, 2) == block(1) + block(2)
    target.disk.settle()
    assert target.disk.pool.status().total == 12
    assert target.disk.pool.free == 11


async def test_impossible_pieces_are_refused(tmp_path: Path, parts: SimpleNamespace) -> None:
    source, target = Replica(parts, tmp_path / "a"), Replica(parts, tmp_path / "b", files=2)
    for chunk in range(1, 4):
        source.write(chunk, 0, 1)
    index, pieces = await pieces_of(source)
    sink = await target.machine.restore()
    for wrong in (Piece("../meta", 0, b"x"), Piece("chunk_1", 1 << 40, b"x"), Piece("meta", 7, b"x")):
        with pytest.raises(InvalidArgument):
            await sink.piece(wrong)
    with pytest.raises(NoSpace):
        for piece in pieces:
            await sink.piece(piece)
    sink.abort()
    sink = await target.machine.restore()
    await sink.piece(Piece("meta", 0, pieces[0].data[:-3]))
    with pytest.raises(Corruption):
        await sink.commit(index)
    sink.abort()
    sink = await target.machine.restore()
    await sink.piece(pieces[0])
    with pytest.raises(InvalidArgument):
        await sink.commit(index + 1)
    sink.abort()


async def test_a_block_rotten_at_the_source_is_known_as_bad_at_the_receiver(
    tmp_path: Path, parts: SimpleNamespace
) -> None:
    source, target = Replica(parts, tmp_path / "a"), Replica(parts, tmp_path / "b")
    source.write(1, 0, 1)
    source.write(1, 1, 2)
    opened = source.machine.chunks.get(1)
    assert opened is not None
    os.pwrite(opened.fd, b"rot", 4096 * 5 + 4096 + 100)
    index, pieces = await pieces_of(source)
    sink = await target.machine.restore()
    for piece in pieces:
        await sink.piece(piece)
    await sink.commit(index)
    received = target.machine.chunks.get(1)
    assert received is not None
    assert received.check(0, received.read_blocking(0, 2 * BLOCK_SIZE)) == [1]
