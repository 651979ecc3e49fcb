"""Exactly once and fencing: the table's decisions against a model that remembers everything."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from curve_storage.chunkserver.writers import DELETED, Verdict, WriterTable

APPLY, AGAIN, FENCED, STALE = Verdict.APPLY, Verdict.ALREADY_APPLIED, Verdict.FENCED, Verdict.STALE


def test_a_repeated_number_is_applied_once() -> None:
    table = WriterTable()
    assert table.admit(1, 1, 1, 1, 1) is APPLY
    assert table.admit(1, 1, 1, 3, 1) is APPLY
    assert table.admit(1, 1, 1, 1, 1) is AGAIN
    assert table.admit(1, 1, 1, 2, 2) is APPLY
    assert table.admit(1, 1, 1, 1, 1) is STALE
    assert table.admit(1, 1, 1, 3, 1) is AGAIN


def test_a_newer_generation_or_epoch_replaces_the_writer() -> None:
    table = WriterTable()
    assert table.admit(1, 1, 1, 10, 1) is APPLY
    assert table.admit(1, 1, 2, 1, 1) is APPLY
    assert table.admit(1, 1, 1, 11, 1) is FENCED
    assert table.admit(1, 2, 1, 1, 1) is APPLY
    assert table.admit(1, 1, 9, 1, 1) is FENCED
    assert table.epoch(1) == 2


def test_a_fence_refuses_older_epochs_before_the_new_writer_comes() -> None:
    table = WriterTable()
    assert table.admit(1, 1, 1, 1, 1) is APPLY
    table.fence(1, 2)
    table.fence(1, 1)
    assert table.fenced(1, 1, 1)
    assert table.admit(1, 1, 1, 2, 1) is FENCED
    assert table.admit(2, 1, 1, 1, 1) is APPLY
    assert table.admit(1, 2, 1, 1, 1) is APPLY


def test_a_deleted_volume_stays_deleted_also_after_restoring() -> None:
    table = WriterTable()
    table.admit(1, 1, 1, 1, 1)
    table.forget(1)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(table.dump()), strict=False)
    again = WriterTable()
    again.restore(state)
    assert again.epoch(1) == DELETED
    assert again.admit(1, 1 << 60, 1, 1, 1) is FENCED


request = st.tuples(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 400), st.integers(1, 300), st.booleans()
)


@settings(max_examples=80, deadline=None)
@given(st.lists(request, max_size=300), st.randoms(use_true_random=False))
def test_decisions_equal_the_model(requests: list, random: object) -> None:
    table = WriterTable()
    applied: set[tuple[int, int, int, int]] = set()
    newest: dict[int, tuple[int, int]] = {}
    low: dict[int, int] = {}
    fence: dict[int, int] = {}
    for volume, epoch, generation, seq, floor, is_fence in requests:
        if is_fence and seq % 7 == 0:
            table.fence(volume, epoch)
            fence[volume] = max(fence.get(volume, 0), epoch)
            continue
        verdict = table.admit(volume, epoch, generation, seq, floor)
        writer = (epoch, generation)
        if epoch < fence.get(volume, 0) or writer < newest.get(volume, (0, 0)):
            assert verdict is FENCED
            continue
        if writer > newest.get(volume, (0, 0)):
            newest[volume], low[volume] = writer, 0
            fence[volume] = max(fence.get(volume, 0), epoch)
        low[volume] = max(low[volume], floor)
        if seq < low[volume]:
            assert verdict is STALE
        elif (volume, *writer, seq) in applied:
            assert verdict is AGAIN
        else:
            assert verdict is APPLY
            applied.add((volume, *writer, seq))
        if random.random() < 0.02:  # type: ignore[attr-defined]
            again = WriterTable()
            again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(table.dump()), strict=False))
            table = again


def test_the_window_stays_small() -> None:
    table = WriterTable()
    for seq in range(1, 20_000):
        assert table.admit(1, 1, 1, seq, max(1, seq - 32)) is APPLY
    assert len(table.dump()["writers"][1][3]) <= 33
    assert len(table._writers[1].applied) <= 300
