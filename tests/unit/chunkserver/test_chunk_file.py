"""Format of a chunk file: what is read back, and that no single fault turns data into zeros."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curve_storage.chunkserver.chunk_file import BLOCKS, DATA_START, FILE_SIZE, HEADER_SIZE, ChunkFile
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE

ZEROS = bytes(BLOCK_SIZE)


def fresh(path: Path, old: bytes = b"") -> ChunkFile:
    """A blank file as the pool hands it out, with a former owner's data behind the blank table."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.ftruncate(descriptor, FILE_SIZE)
    if old:
        os.pwrite(descriptor, old, DATA_START)
    os.close(descriptor)
    return ChunkFile.create(path, 1, 2, 3, 0)


def content(chunk: ChunkFile, offset: int, length: int) -> tuple[bytes, list[int]]:
    data = chunk.read_now(offset, length)
    if data is None:
        data = chunk.read_blocking(offset, length)
    bad = chunk.check(offset, data)
    return bytes(data), bad


def block(number: int) -> bytes:
    return bytes([number % 251 + 1]) * BLOCK_SIZE


def test_reopened_file_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "chunk"
    chunk = fresh(path)
    chunk.write(0, block(1))
    chunk.write(5 * BLOCK_SIZE, block(2) + block(3) + block(4))
    chunk.write(CHUNK_SIZE - BLOCK_SIZE, block(5))
    chunk.discard(6 * BLOCK_SIZE, BLOCK_SIZE)
    chunk.sn = 9
    chunk.flush()
    again = ChunkFile.open(path, 1, 2)
    assert (again.volume, again.sn, again.bad, again.written_blocks) == (3, 9, set(), 4)
    data, bad = content(again, 0, 9 * BLOCK_SIZE)
    assert bad == []
    assert data == block(1) + ZEROS * 4 + block(2) + ZEROS + block(4) + ZEROS
    assert content(again, CHUNK_SIZE - BLOCK_SIZE, BLOCK_SIZE) == (block(5), [])


def test_former_content_is_never_shown(tmp_path: Path) -> None:
    chunk = fresh(tmp_path / "chunk", old=b"secret" * 4096)
    assert content(chunk, 0, 4 * BLOCK_SIZE) == (ZEROS * 4, [])
    chunk.write(BLOCK_SIZE, block(7))
    assert content(chunk, 0, 3 * BLOCK_SIZE) == (ZEROS + block(7) + ZEROS, [])
    chunk.discard(BLOCK_SIZE, BLOCK_SIZE)
    assert content(chunk, BLOCK_SIZE, BLOCK_SIZE) == (ZEROS, [])
    assert chunk.blank


@settings(max_examples=60, deadline=None)
@given(
    operations=st.lists(
        st.tuples(st.booleans(), st.integers(0, 80), st.integers(1, 24)),
        min_size=1,
        max_size=25,
    )
)
def test_any_mixture_equals_the_model(tmp_path_factory: pytest.TempPathFactory, operations: list) -> None:
    path = tmp_path_factory.mktemp("model") / "chunk"
    chunk = fresh(path, old=b"x" * (120 * BLOCK_SIZE))
    model: dict[int, bytes] = {}
    for number, (write, first, count) in enumerate(operations):
        if write:
            data = b"".join(block(number * 31 + position) for position in range(count))
            chunk.write(first * BLOCK_SIZE, data)
            for position in range(count):
                model[first + position] = block(number * 31 + position)
        else:
            chunk.discard(first * BLOCK_SIZE, count * BLOCK_SIZE)
            for position in range(count):
                model.pop(first + position, None)
    expected = b"".join(model.get(number, ZEROS) for number in range(110))
    assert content(chunk, 0, 110 * BLOCK_SIZE) == (expected, [])
    chunk.flush()
    again = ChunkFile.open(path, 1, 2)
    assert content(again, 0, 110 * BLOCK_SIZE) == (expected, [])
    assert again.written_blocks == len(model)
    assert sum(count for _, count in again.written_runs(7)) == len(model)
    assert all(count <= 7 for _, count in again.written_runs(7))


def spoil(path: Path, position: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, data, position)
    os.close(descriptor)


def flushed(path: Path) -> None:
    chunk = fresh(path)
    chunk.write(0, b"".join(block(n) for n in range(2048)))
    chunk.flush()


@pytest.mark.parametrize("flipped", range(0, HEADER_SIZE + 4 * BLOCKS, 2039))
def test_a_flipped_byte_in_header_or_table_loses_nothing(tmp_path: Path, flipped: int) -> None:
    path = tmp_path / "chunk"
    flushed(path)
    raw = path.read_bytes()[: HEADER_SIZE + 4 * BLOCKS]
    spoil(path, flipped, bytes([raw[flipped] ^ 0x41]))
    chunk = ChunkFile.open(path, 1, 2)
    for number in range(0, 2048, 64):
        data, bad = content(chunk, number * BLOCK_SIZE, 64 * BLOCK_SIZE)
        for position in range(64):
            at = data[position * BLOCK_SIZE : (position + 1) * BLOCK_SIZE]
            assert number + position in bad or at == block(number + position)


@pytest.mark.parametrize("sector", range(0, (HEADER_SIZE + 4 * BLOCKS) // 512, 3))
def test_a_zeroed_sector_in_header_or_table_loses_nothing(tmp_path: Path, sector: int) -> None:
    path = tmp_path / "chunk"
    flushed(path)
    spoil(path, sector * 512, bytes(512))
    chunk = ChunkFile.open(path, 1, 2)
    data, bad = content(chunk, 0, 2048 * BLOCK_SIZE)
    for number in range(2048):
        assert number in bad or data[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE] == block(number)


def test_a_flipped_bit_of_data_is_found_and_a_good_copy_heals_it(tmp_path: Path) -> None:
    path = tmp_path / "chunk"
    flushed(path)
    spoil(path, DATA_START + 70 * BLOCK_SIZE + 17, b"\xff")
    chunk = ChunkFile.open(path, 1, 2)
    assert content(chunk, 64 * BLOCK_SIZE, 32 * BLOCK_SIZE)[1] == [70]
    assert content(chunk, 70 * BLOCK_SIZE, BLOCK_SIZE)[1] == [70]
    chunk.install(70, 1, block(70))
    assert content(chunk, 70 * BLOCK_SIZE, BLOCK_SIZE) == (block(70), [])


def test_a_file_to_be_fetched_is_bad_throughout_also_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "chunk"
    chunk = fresh(path)
    chunk.mark_all_bad()
    chunk.write(3 * BLOCK_SIZE, block(3))
    chunk.flush()
    again = ChunkFile.open(path, 1, 2)
    assert again.bad == set(range(BLOCKS)) - {3}
    _, bad = content(again, 2 * BLOCK_SIZE, 3 * BLOCK_SIZE)
    assert bad == [2, 4]
    again.install(2, 0, b"")
    assert content(again, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE) == (ZEROS + block(3), [])
    assert not again.blank


def test_a_file_of_another_chunk_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "chunk"
    flushed(path)
    stranger = ChunkFile.open(path, 1, 99)
    assert stranger.bad >= set(range(2048, BLOCKS))
