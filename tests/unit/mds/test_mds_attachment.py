"""Attach, epochs, fencing order, sessions, segments."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from curve_storage.errors import (
    Fenced,
    InUse,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Unavailable,
)
from curve_storage.units import CHUNKS_PER_SEGMENT, GiB
from curve_storage.wire.messages import MessageType

Cluster = Any


async def attach(cluster: Cluster, path: str, node: str, *, force: bool = False, read_only: bool = False) -> Any:
    return await cluster.term.attachments.attach(path, 0, node=node, read_only=read_only, force=force, timeout=3)


async def open_(cluster: Cluster, path: str, *, epoch: int = 0, write: bool = True) -> Any:
    return await cluster.term.attachments.open(path, 0, epoch=epoch, write=write, client="c", timeout=3)


async def allocate(cluster: Cluster, opened: Any, offset: int = 0) -> Any:
    return await cluster.term.segments.allocate(
        opened.entry.id, offset, session=opened.session.id, epoch=opened.session.epoch, timeout=3
    )


async def test_attach_is_idempotent_and_exclusive(pooled: Cluster) -> None:
    await pooled.term.namespace.create_volume("/a", GiB)
    first = await attach(pooled, "/a", "n1")
    assert (first.epoch, first.attached_node) == (1, "n1")
    assert (await attach(pooled, "/a", "n1")).epoch == 1
    with pytest.raises(InUse, match="node n1") as caught:
        await attach(pooled, "/a", "n2")
    assert "force" in caught.value.todo
    taken = await attach(pooled, "/a", "n2", force=True)
    assert (taken.epoch, taken.attached_node) == (2, "n2")
    released = await pooled.term.attachments.release("/a", 0, node="n1")  # not the holder: no change
    assert released.attached_node == "n2"
    assert (await pooled.term.attachments.release("/a", 0, node="")).attached_node == ""


async def test_fencing_reaches_every_copyset_before_the_answer(pooled: Cluster) -> None:
    made = await pooled.term.namespace.create_volume("/a", 3 * GiB)
    await attach(pooled, "/a", "n1")
    opened = await open_(pooled, "/a")
    await allocate(pooled, opened)
    used = set(pooled.term.core.tables.volume_copysets[made.id])
    assert len(used) == 6 and not pooled.fences()  # epoch 1 needs no fence

    stored: list[int] = []
    pooled.before_frame = lambda kind, key: stored.append(pooled.term.core.tables.entries[made.id].epoch)
    taken = await attach(pooled, "/a", "n2", force=True)
    assert set(pooled.fences()) == {(made.id, 2, key) for key in used}
    assert set(stored) == {2}  # the epoch was durable before the first frame left
    assert taken.fenced_epoch == 2

    with pytest.raises(Fenced):
        await open_(pooled, "/a", epoch=1)
    with pytest.raises(Fenced):
        await allocate(pooled, opened, GiB)
    with pytest.raises(Fenced):
        await pooled.term.attachments.refresh(made.id, opened.session.id)
    with pytest.raises(InvalidArgument, match="never had epoch 9"):
        await open_(pooled, "/a", epoch=9)


async def test_no_quorum_is_named_and_the_fencing_is_made_good_later(pooled: Cluster) -> None:
    made = await pooled.term.namespace.create_volume("/a", GiB)
    await attach(pooled, "/a", "n1")
    opened = await open_(pooled, "/a")
    await allocate(pooled, opened)
    for disk in pooled.disks[:2]:
        disk.up = False
    with pytest.raises(Unavailable, match=r"copyset 1/\d") as caught:
        await attach(pooled, "/a", "n2", force=True)
    assert caught.value.todo
    # The epoch has grown, and nobody gets in before the fence is complete, not even after a change of leader.
    await pooled.lead()
    assert pooled.term.core.tables.entries[made.id].epoch == 2
    with pytest.raises(Unavailable):
        await open_(pooled, "/a")
    with pytest.raises(Fenced):
        await pooled.term.attachments.refresh(made.id, opened.session.id)
    for disk in pooled.disks:
        disk.up = True
    await pooled.beats(2)
    pooled.frames.clear()
    assert (await attach(pooled, "/a", "n2")).epoch == 2
    assert len(pooled.fences()) == 6
    assert (await open_(pooled, "/a")).session.epoch == 2


async def test_a_new_copyset_is_fenced_before_its_first_segment(pooled: Cluster) -> None:
    made = await pooled.term.namespace.create_volume("/a", 3 * GiB)
    await attach(pooled, "/a", "n1")
    await open_(pooled, "/a")
    await pooled.term.attachments.release("/a", 0, node="n1")
    assert (await attach(pooled, "/a", "n1")).epoch == 2  # the volume was open for writing in epoch 1
    opened = await open_(pooled, "/a")
    assert not pooled.fences()
    present: list[int] = []
    pooled.before_frame = lambda kind, key: present.append(len(pooled.term.core.tables.segments.get(made.id, ())))
    await allocate(pooled, opened)
    assert len(pooled.fences()) == 6 and set(present) == {0}
    await allocate(pooled, opened, GiB)
    assert len(pooled.fences()) == 6  # these copysets know the epoch already
    for disk in pooled.disks[:2]:
        disk.up = False


async def test_the_fence_follows_the_leader(pooled: Cluster) -> None:
    await pooled.term.namespace.create_volume("/a", GiB)
    await attach(pooled, "/a", "n1")
    await allocate(pooled, await open_(pooled, "/a"))
    for key, (epoch, members, leader) in list(pooled.groups.items()):
        other = next(m for m in members if m != leader)
        pooled.groups[key] = (epoch, members, other)  # the MDS has not heard of it yet
    await attach(pooled, "/a", "n2", force=True)
    assert len(pooled.fences()) == 6


async def test_generations(pooled: Cluster) -> None:
    made = await pooled.term.namespace.create_volume("/a", GiB)
    await attach(pooled, "/a", "n1")
    first = await open_(pooled, "/a")
    second = await open_(pooled, "/a")
    assert (first.session.generation, second.session.generation) == (1, 2)
    with pytest.raises(Fenced, match="newer writer"):
        await pooled.term.attachments.refresh(made.id, first.session.id)
    reader = await open_(pooled, "/a", write=False)
    assert reader.session.generation == 2
    assert reader.token.startswith(f"volume:{made.id}|1|r|".encode())
    assert second.token.startswith(f"volume:{made.id}|1|rw|".encode())
    with pytest.raises(PermissionDenied):
        await allocate(pooled, reader)
    await pooled.lead()  # the generation is durable
    assert (await open_(pooled, "/a")).session.generation == 3


async def test_read_only_attach(pooled: Cluster) -> None:
    await pooled.term.namespace.create_volume("/a", GiB)
    await attach(pooled, "/a", "n1", read_only=True)
    with pytest.raises(PermissionDenied, match="read-only"):
        await open_(pooled, "/a")
    await open_(pooled, "/a", write=False)


async def test_sessions_expire_and_come_back(pooled: Cluster) -> None:
    made = await pooled.term.namespace.create_volume("/a", GiB)
    opened = await open_(pooled, "/a")
    pooled.clock.advance(20)
    await pooled.term.attachments.refresh(made.id, opened.session.id)
    pooled.clock.advance(20)
    assert not await pooled.term.sessions.expire()
    pooled.clock.advance(11)
    assert [s.id for s in await pooled.term.sessions.expire()] == [opened.session.id]
    assert not pooled.term.sessions.live_writers(made.id)
    # The client was only paused: nobody else opened the volume, so it may go on.
    await pooled.term.attachments.refresh(made.id, opened.session.id)
    assert len(pooled.term.sessions.live_writers(made.id)) == 1
    with pytest.raises(InvalidArgument):
        await pooled.term.attachments.refresh(made.id, "nonsense")
    with pytest.raises(NotFound):
        await pooled.term.attachments.refresh(12345, opened.session.id)


async def test_sessions_survive_a_change_of_leader(pooled: Cluster) -> None:
    made = await pooled.term.namespace.create_volume("/a", 2 * GiB)
    opened = await open_(pooled, "/a")
    pooled.clock.advance(29)
    await pooled.lead()
    await pooled.beats(3)
    await pooled.term.attachments.refresh(made.id, opened.session.id)
    assert (await allocate(pooled, opened, GiB)).index == 1


async def test_allocation(pooled: Cluster) -> None:
    made = await pooled.term.namespace.create_volume("/a", 3 * GiB)
    opened = await open_(pooled, "/a")
    assert pooled.term.segments.get(made.id, 5) is None
    both = await asyncio.gather(allocate(pooled, opened), allocate(pooled, opened))
    assert both[0] == both[1]
    second = await allocate(pooled, opened, 2 * GiB)
    ids = [chunk for segment in (both[0], second) for chunk, _ in segment.chunks()]
    assert len(set(ids)) == 2 * CHUNKS_PER_SEGMENT
    tally = pooled.term.core.tables.chunks_in
    assert sum(tally.values()) == 2 * CHUNKS_PER_SEGMENT
    assert max(tally.values()) - min(tally.values()) <= 2
    with pytest.raises(OutOfRange):
        await allocate(pooled, opened, 3 * GiB)
    entry = pooled.term.namespace.find_volume("/a", 0)
    assert pooled.term.core.tables.allocated(entry.id) == 2 * GiB


async def test_chunk_ids_are_never_given_twice_over_changes_of_leader(pooled: Cluster) -> None:
    await pooled.term.namespace.create_volume("/a", 20 * GiB)
    opened = await open_(pooled, "/a")
    ids: list[int] = []
    for index in range(8):
        segment = await allocate(pooled, opened, index * GiB)
        ids += [chunk for chunk, _ in segment.chunks()]
        await pooled.lead()
        await pooled.beats(1)
    assert len(ids) == len(set(ids)) == 8 * CHUNKS_PER_SEGMENT


async def test_allocation_without_leaders_says_so(pooled: Cluster) -> None:
    await pooled.term.namespace.create_volume("/a", GiB)
    opened = await open_(pooled, "/a")
    for disk in pooled.disks:
        disk.up = False
    pooled.clock.advance(20)
    with pytest.raises(Unavailable, match="no copyset of pool default has a leader"):
        await allocate(pooled, opened)


async def test_segments_given_back_go_with_the_volume(pooled: Cluster) -> None:
    term = pooled.term
    made = await term.namespace.create_volume("/a", 2 * GiB)
    opened = await open_(pooled, "/a")
    first = await allocate(pooled, opened)
    for _ in range(2):  # repeated
        await term.segments.deallocate(made.id, 0, session=opened.session.id, epoch=1)
    assert term.segments.get(made.id, 0) is None and term.core.tables.allocated(made.id) == 0
    again = await allocate(pooled, opened)
    ids = [{chunk for chunk, _ in segment.chunks()} for segment in (first, again)]
    assert not ids[0] & ids[1]
    assert await term.cleaner.round() == 0 and not pooled.frames  # the volume lives: its writers must not be ended
    await term.attachments.close(made.id, opened.session.id)
    await term.namespace.delete("/a", 0, force=True)
    assert await term.cleaner.round() == 1
    deleted = {c for kind, _, body in pooled.frames if kind == MessageType.DELETE_VOLUME for c in body["chunks"]}
    assert deleted == ids[0] | ids[1]
    assert not term.core.tables.freed


async def test_removal_waits_for_the_copysets_and_then_frees(pooled: Cluster) -> None:
    term = pooled.term
    made = await term.namespace.create_volume("/a", 2 * GiB)
    opened = await open_(pooled, "/a")
    segments = [await allocate(pooled, opened, i * GiB) for i in range(2)]
    await term.attachments.close(made.id, opened.session.id)
    for disk in pooled.disks:
        disk.up = False
    await term.namespace.delete("/a", 0, force=True)
    assert await term.cleaner.round() == 0
    assert term.core.tables.allocated(made.id) == 2 * GiB
    assert made.id in term.cleaner.waiting
    for disk in pooled.disks:
        disk.up = True
    await pooled.lead()  # the removal is taken up by the next leader
    await pooled.beats(1)
    assert await pooled.term.cleaner.round() == 1
    deleted = {c for kind, _, body in pooled.frames if kind == MessageType.DELETE_VOLUME for c in body["chunks"]}
    assert deleted == {chunk for s in segments for chunk, _ in s.chunks()}
    assert made.id not in pooled.term.core.tables.entries
    assert not pooled.term.core.tables.chunks_in
    assert not [key for key in pooled.pairs if f"{made.id:016x}" in key]
