"""The envelope of what is kept in etcd, the tables built from it, ids, locks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curve_storage.errors import Corruption
from curve_storage.mds.locks import KeyedLocks
from curve_storage.mds.records import (
    ChunkServerRecord,
    ClusterRecord,
    CopysetRecord,
    Counter,
    Entry,
    Freed,
    PoolRecord,
    Record,
    SchedulerRecord,
    Segment,
    Session,
    decode,
    encode,
    pack_ids,
)
from curve_storage.mds.state import ClusterState, Tables
from curve_storage.mds.store import MemoryStore

RECORDS: list[Record] = [
    Entry(id=16, parent=1, name="ä", size=1 << 40, labels={"a": "b"}, epoch=7, attached_node="n"),
    Entry(id=17, parent=1, name="d", directory=True),
    Segment(volume=16, index=3, pool=1, first_chunk=65, copysets=pack_ids([1, 2] * 32)),
    Freed(volume=16, first_chunk=1, pool=1, copysets=pack_ids([1] * 64)),
    Session(id="w.1.1.0123456789abcdef", volume=16, write=True, epoch=1, generation=1),
    ChunkServerRecord(
        id=3, uuid="u", secret="s", address="h:1", server="s1", zone="z", physical_pool="p", poolset="default"
    ),
    PoolRecord(id=1, name="p", physical_pool="p", poolset="default", replicas=3, copysets=2, scatter_width=2, zones=3),
    CopysetRecord(pool=1, id=2, members=(1, 2, 3), epoch=4, established=True),
    Counter(name="entry", reserved=1000),
    ClusterRecord(cluster_id="c"),
    SchedulerRecord(name="leader", enabled=False),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_round_trip(record: Record) -> None:
    assert decode(record.key, encode(record)) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_every_flipped_byte_is_found_and_named(record: Record) -> None:
    good = encode(record)
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x10
        with pytest.raises(Corruption) as caught:
            decode(record.key, bytes(bad))
        assert caught.value.where == record.key


@given(st.binary(max_size=200))
def test_garbage_is_corruption(value: bytes) -> None:
    with pytest.raises(Corruption):
        decode(RECORDS[0].key, value)


def test_a_value_under_another_key_is_found() -> None:
    with pytest.raises(Corruption, match="checksum"):
        decode(RECORDS[1].key, encode(RECORDS[0]))
    with pytest.raises(Corruption, match="no table"):
        decode("state/newer/1", encode(RECORDS[0]))


async def test_a_damaged_record_stops_the_load_and_is_named() -> None:
    pairs = {record.key: encode(record) for record in RECORDS}
    key = RECORDS[3].key
    pairs[key] = pairs[key][:-1]
    state = ClusterState(MemoryStore(pairs), lambda error: None)
    with pytest.raises(Corruption) as caught:
        await state.load()
    assert key in str(caught.value) and "backup" in caught.value.todo


def index_of(tables: Tables) -> dict[str, Any]:
    return {
        "children": tables.children,
        "allocated": {v: tables.allocated(v) for v in tables.segments},
        "chunks": dict(tables.chunks_in),
        "live": {k: v for k, v in tables.live_bytes.items() if v},
        "copysets_of": {k: v for k, v in tables.copysets_of.items() if v},
        "pools": {k: v for k, v in tables.pool_segments.items() if v},
    }


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(16, 20), st.integers(1, 3), st.booleans(), st.integers(1, 3)),
        max_size=40,
    )
)
def test_indices_equal_those_of_a_fresh_load(changes: list[tuple[int, int, int, bool, int]]) -> None:
    """Whatever is put and removed in whatever order, the indices are what loading the result gives."""
    tables = Tables()
    for kind, number, other, removed, size in changes:
        record: Record
        if kind == 0:
            record = Entry(id=number, parent=other, name=str(number), size=size, poolset="p")
        elif kind == 1:
            record = Segment(volume=number, index=size, pool=1, first_chunk=number, copysets=pack_ids([other] * 3))
        elif kind == 2:
            record = CopysetRecord(pool=1, id=number, members=(other, other + 1, size + 10))
        elif kind == 3:
            record = Session(id=str(other), volume=number, write=True, epoch=1, generation=size)
        elif kind == 4:
            record = Freed(volume=number, first_chunk=other, pool=1, copysets=b"")
        else:
            record = Counter(name=str(other), reserved=size)
        present = tables.find(record)
        if removed and present is not None:
            tables.remove(present)
        elif not removed:
            tables.put(record)
    fresh = Tables()
    for record in [
        *tables.entries.values(),
        *(s for mine in tables.segments.values() for s in mine.values()),
        *(s for mine in tables.sessions.values() for s in mine.values()),
        *tables.freed.values(),
        *tables.copysets.values(),
    ]:
        fresh.put(record)
    assert index_of(tables) == index_of(fresh)


async def test_ids_are_never_given_twice() -> None:
    store = MemoryStore()
    given_out: set[int] = set()
    for _ in range(3):
        state = ClusterState(MemoryStore(store.pairs), lambda error: None)
        await state.load()
        firsts = await asyncio.gather(*(state.reserve("chunk", 64, batch=640) for _ in range(30)))
        ids = {first + i for first in firsts for i in range(64)}
        assert len(ids) == 30 * 64 and not ids & given_out
        given_out |= ids


async def test_a_cancelled_commit_ends_the_term() -> None:
    class Slow(MemoryStore):
        async def commit(self, puts: Any, deletes: Any) -> None:
            await asyncio.sleep(60)

    ended: list[Any] = []
    state = ClusterState(Slow(), ended.append)
    task = asyncio.create_task(state.commit(RECORDS[0]))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended and not state.tables.entries


async def test_locks_are_exclusive_fair_and_leave_nothing() -> None:
    locks = KeyedLocks()
    inside: dict[int, int] = {}

    async def work(*keys: int) -> None:
        async with locks.hold(*keys):
            for key in set(keys):
                assert inside.get(key, 0) == 0
                inside[key] = 1
            await asyncio.sleep(0)
            for key in set(keys):
                inside[key] = 0

    await asyncio.gather(*(work(n % 3, (n + 1) % 3, n % 5) for n in range(60)))
    blocked = asyncio.create_task(work(1))
    async with locks.hold(1, 2):
        await asyncio.sleep(0)
        blocked.cancel()
        await asyncio.gather(blocked, return_exceptions=True)
    assert len(locks) == 0
