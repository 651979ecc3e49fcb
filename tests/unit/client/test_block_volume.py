"""BlockVolume against a scripted cluster: what is read is what a shadow copy says, and each mutation counts once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable

import pytest
from client_fake_cluster import FakeCluster, Fault

from curve_storage import errors
from curve_storage.client import BlockVolume
from curve_storage.client import volume as volume_module
from curve_storage.units import CHUNK_SIZE, SEGMENT_SIZE, GiB, KiB, MiB
from curve_storage.wire.messages import ChunkMeta, MessageType


async def opened(fake: FakeCluster, **options: object) -> BlockVolume:
    return await BlockVolume.open(fake.cluster, path="/v", **options)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not reached"
        await asyncio.sleep(0.01)


def once_per_seq(fake: FakeCluster) -> bool:
    return all(count == 1 for count in fake.applications.values())


def fail_first(count: int, fault: Fault | errors.CurveError, kind: int = MessageType.CHUNK_WRITE) -> Callable:
    left = [count]

    def script(_node: int, seen: int, _meta: ChunkMeta) -> Fault | errors.CurveError | None:
        if seen == kind and left[0] > 0:
            left[0] -= 1
            return fault
        return None

    return script


async def test_data_comes_back_and_requests_stay_inside_chunks(fake: FakeCluster) -> None:
    volume = await opened(fake)
    data = random.Random(1).randbytes(3 * MiB + 12 * KiB)
    offset = CHUNK_SIZE - 2 * MiB + 4 * KiB
    await volume.write(offset, data)
    assert bytes(await volume.read(offset, len(data))) == data
    assert fake.content(offset, len(data)) == data
    target = bytearray(MiB)
    await volume.read_into(offset + 5, memoryview(target))
    assert target == data[5 : MiB + 5]
    assert all(m.length <= MiB and m.offset + m.length <= CHUNK_SIZE for _n, _k, m in fake.seen)
    assert {m.chunk for _n, _k, m in fake.seen} == {1, 2}
    assert volume.size == 4 * GiB and volume.epoch == 1 and volume.generation == 1 and volume.volume_id == 7
    await volume.close()
    assert fake.mds_calls["CloseVolume"] == 1


async def test_unallocated_space_reads_as_zeros_without_a_message(fake: FakeCluster) -> None:
    volume = await opened(fake)
    assert bytes(await volume.read(SEGMENT_SIZE + 100, 5000)) == bytes(5000)
    assert bytes(await volume.read(SEGMENT_SIZE, 3 * MiB)) == bytes(3 * MiB)
    assert fake.mds_calls["GetSegment"] == 1 and fake.mds_calls["allocated"] == 0 and not fake.seen
    await volume.write(SEGMENT_SIZE, b"x" * 4096)
    assert bytes(await volume.read(SEGMENT_SIZE, 4097)) == b"x" * 4096 + b"\0"
    # A chunk of an allocated segment that was never written.
    assert bytes(await volume.read(SEGMENT_SIZE + CHUNK_SIZE, 8192)) == bytes(8192)
    assert fake.mds_calls["allocated"] == 1
    await volume.close()


async def test_many_first_writes_allocate_once(fake: FakeCluster) -> None:
    volume = await opened(fake)
    await asyncio.gather(*(volume.write(n * 4096, bytes([n]) * 4096) for n in range(64)))
    assert fake.mds_calls["allocated"] == 1 and fake.mds_calls["GetSegment"] == 1
    assert bytes(await volume.read(0, 64 * 4096)) == b"".join(bytes([n]) * 4096 for n in range(64))
    await volume.close()


async def test_out_of_range_and_read_only_are_refused(fake: FakeCluster) -> None:
    volume = await opened(fake)
    with pytest.raises(errors.OutOfRange):
        await volume.write(4 * GiB - 100, bytes(101))
    with pytest.raises(errors.OutOfRange):
        await volume.read(-1, 10)
    await volume.close()
    reader = await opened(fake, read_only=True)
    with pytest.raises(errors.PermissionDenied):
        await reader.write(0, b"x")
    with pytest.raises(errors.PermissionDenied):
        await reader.discard(0, 4096)
    await reader.close()


async def test_concurrent_partial_writes_of_one_block_lose_nothing(fake: FakeCluster) -> None:
    volume = await opened(fake)
    rng = random.Random(5)
    area = 64 * KiB
    shadow = bytearray(rng.randbytes(area))
    await volume.write(0, bytes(shadow))
    delays = random.Random(6)

    def script(_node: int, _kind: int, _meta: ChunkMeta) -> Fault | None:
        return Fault.NOT_LEADER if delays.random() < 0.2 else None

    fake.script = script
    for _ in range(8):
        cuts = sorted({0, area, *(rng.randrange(area) for _ in range(40))})
        parts = list(itertools.pairwise(cuts))
        rng.shuffle(parts)
        jobs = []
        for start, end in parts:
            data = rng.randbytes(end - start)
            shadow[start:end] = data
            jobs.append(volume.write(start, data))
        await asyncio.gather(*jobs)
        assert bytes(await volume.read(0, area)) == bytes(shadow)
    assert once_per_seq(fake)
    await volume.close()


async def test_whole_block_write_beside_a_partial_one_is_one_before_the_other(fake: FakeCluster) -> None:
    volume = await opened(fake)
    for n in range(20):
        await volume.write(0, b"o" * 4096)
        first, second = (volume.write(0, b"W" * 4096), volume.write(10, b"pp"))
        await asyncio.gather(*((first, second) if n % 2 else (second, first)))
        data = bytes(await volume.read(0, 4096))
        assert data in (b"W" * 4096, b"W" * 10 + b"pp" + b"W" * 4084), data[:20]
    await volume.close()


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.BREAK])
async def test_lost_replies_apply_once(fake: FakeCluster, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curve_storage.client.datapath.ATTEMPT_TIMEOUT", 0.3)
    volume = await opened(fake)
    fake.script = fail_first(3, fault)
    await asyncio.gather(*(volume.write(n * 4096, bytes([n + 1]) * 4096) for n in range(6)))
    writes = [m for _n, kind, m in fake.seen if kind == MessageType.CHUNK_WRITE]
    assert len(writes) > 6, "something was repeated"
    assert len({(m.group, m.seq) for m in writes}) == 6
    assert once_per_seq(fake) and len(fake.applications) == 6
    assert fake.content(0, 6 * 4096) == b"".join(bytes([n + 1]) * 4096 for n in range(6))
    await volume.close()


async def test_a_late_duplicate_is_stale_after_its_acknowledgement(fake: FakeCluster) -> None:
    volume = await opened(fake)
    await volume.write(0, b"1" * 4096)
    old = fake.seen[-1][2]
    await volume.write(0, b"2" * 4096)
    with pytest.raises(errors.FailedPrecondition, match="stale"):
        fake._apply(fake.groups[old.group], MessageType.CHUNK_WRITE, old, memoryview(b"1" * 4096))
    assert bytes(await volume.read(0, 4096)) == b"2" * 4096
    await volume.close()


async def test_redirects_are_followed(fake: FakeCluster) -> None:
    fake.lead(3)
    volume = await opened(fake)
    await volume.write(0, b"a" * 4096)
    fake.lead(2)
    await volume.write(0, b"b" * 4096)
    assert fake.seen[-1][0] == 2
    before = len(fake.seen)
    await volume.write(0, b"c" * 4096)
    assert len(fake.seen) == before + 1, "the leader is remembered"
    await volume.close()


async def test_an_election_is_waited_out(fake: FakeCluster) -> None:
    volume = await opened(fake)
    fake.script = fail_first(10, Fault.NOT_LEADER)
    await asyncio.wait_for(volume.write(0, b"a" * 4096), 20)
    assert once_per_seq(fake)
    await volume.close()


async def test_a_silent_leader_is_left_when_the_others_have_another(fake: FakeCluster) -> None:
    volume = await opened(fake)
    await volume.write(0, b"a" * 4096)
    fake.mute.add(1)
    started = time.monotonic()
    jobs = [asyncio.ensure_future(volume.write(n * 4096, b"b" * 4096)) for n in range(8)]
    await asyncio.sleep(0.3)
    fake.lead(2)
    await asyncio.wait_for(asyncio.gather(*jobs), 20)
    print(f"moved after {time.monotonic() - started:.2f} s")
    assert once_per_seq(fake)
    # What the stopped process does later changes nothing.
    fake.mute.clear()
    fake.lead(1)
    for request in fake.held:
        with contextlib.suppress(errors.CurveError):
            fake._serve(1, request)
    await volume.write(0, b"c" * 4096)
    assert once_per_seq(fake)
    assert fake.content(0, 8192) == b"c" * 4096 + b"b" * 4096
    await volume.close()


async def test_a_dead_leader_is_replaced(fake: FakeCluster) -> None:
    volume = await opened(fake)
    await volume.write(0, b"a" * 4096)
    await fake.stop_node(1)
    job = asyncio.ensure_future(volume.write(0, b"b" * 4096))
    await asyncio.sleep(0.2)
    assert not job.done()
    fake.lead(3)
    await asyncio.wait_for(job, 20)
    assert fake.content(0, 4096) == b"b" * 4096
    await volume.close()


async def test_a_moved_copyset_is_found_through_the_mds(fake: FakeCluster) -> None:
    volume = await opened(fake)
    await volume.write(0, b"a" * 4096)
    fake.members = (2, 3, 4)
    fake.lead(4)
    await asyncio.wait_for(volume.write(0, b"b" * 4096), 20)
    assert fake.seen[-1][0] == 4
    await volume.close()


async def test_a_chunkserver_that_comes_back_elsewhere_is_found(fake: FakeCluster) -> None:
    volume = await opened(fake)
    await volume.write(0, b"a" * 4096)
    await fake.stop_node(1)
    await fake.start_node(1)  # another port
    await asyncio.wait_for(volume.write(0, b"b" * 4096), 20)
    assert fake.seen[-1][0] == 1
    await volume.close()


async def test_no_mds_does_not_disturb_known_segments(fake: FakeCluster) -> None:
    fake.session_ttl = 0.3
    volume = await opened(fake)
    await volume.write(0, b"a" * 4096)
    fake.mds_error = errors.Unavailable("no MDS")
    refreshes = fake.mds_calls["RefreshSession"]
    for n in range(50):
        await asyncio.wait_for(volume.write(n * 4096, bytes([n]) * 4096), 5)
        await asyncio.sleep(0.01)
    await until(lambda: fake.mds_calls["RefreshSession"] > refreshes)
    assert volume.stalled() is None
    # A new segment needs the MDS: it waits, and says for what.
    job = asyncio.ensure_future(volume.write(SEGMENT_SIZE, b"n" * 4096))
    await until(lambda: volume.stalled() is not None)
    assert "allocate a segment" in (volume.stalled() or "")
    fake.mds_error = None
    await asyncio.wait_for(job, 20)
    assert volume.stalled() is None
    await volume.close()


async def test_full_disk_waits_and_goes_on(fake: FakeCluster) -> None:
    volume = await opened(fake)
    full = [True]
    fake.script = lambda _n, kind, _m: (
        errors.StoreReadOnly("the disk is full", where="chunkserver 1") if full[0] and kind == 16 else None
    )
    job = asyncio.ensure_future(volume.write(0, b"a" * 4096))
    await until(lambda: volume.stalled() is not None)
    assert "the disk is full" in (volume.stalled() or "")
    assert bytes(await volume.read(4096, 4096)) == bytes(4096), "reads go on"
    full[0] = False
    await asyncio.wait_for(job, 20)
    assert volume.stalled() is None
    await volume.close()


async def test_patience_ends(fake: FakeCluster) -> None:
    volume = await opened(fake, patience=0.5)
    await volume.write(0, b"a" * 4096)
    for node in (1, 2, 3):
        await fake.stop_node(node)
    with pytest.raises(errors.DeadlineExceeded, match="curve status"):
        await asyncio.wait_for(volume.write(0, b"b" * 4096), 20)
    fake.mds_error = errors.Unavailable("no MDS")
    with pytest.raises(errors.DeadlineExceeded):
        await asyncio.wait_for(volume.read(SEGMENT_SIZE, 1), 20)
    with pytest.raises(errors.Unavailable):
        await asyncio.wait_for(opened(fake, patience=0.3), 20)
    await volume.close()


async def test_fencing_is_final(fake: FakeCluster) -> None:
    volume = await opened(fake)
    called: list[int] = []
    volume.on_fenced(lambda: called.append(1))
    await volume.write(0, b"a" * 4096)
    fake.epoch = 2
    for group in fake.groups.values():
        group.fence = 2
    with pytest.raises(errors.Fenced):
        await volume.write(0, b"b" * 4096)
    assert volume.fenced and called == [1]
    volume.on_fenced(lambda: called.append(2))
    assert called == [1, 2]
    for operation in (volume.read(0, 1), volume.write(0, b"x"), volume.discard(0, 4096), volume.flush()):
        with pytest.raises(errors.Fenced):
            await operation
    assert fake.content(0, 4096) == b"a" * 4096
    with pytest.raises(errors.Fenced):
        await opened(fake, epoch=1)
    await volume.close()


async def test_a_second_writer_fences_the_first(fake: FakeCluster) -> None:
    first = await opened(fake)
    await first.write(0, b"1" * 4096)
    second = await opened(fake)
    await second.write(0, b"2" * 4096)
    with pytest.raises(errors.Fenced):
        await first.write(0, b"1" * 4096)
    assert bytes(await second.read(0, 4096)) == b"2" * 4096
    await first.close()
    await second.close()


async def test_an_expired_token_is_renewed(fake: FakeCluster) -> None:
    fake.token_seconds = 0.6
    volume = await opened(fake)
    deadline = time.monotonic() + 3
    count = 0
    while time.monotonic() < deadline:
        await asyncio.wait_for(volume.write(0, count.to_bytes(4, "little") * 1024), 20)
        count += 1
        await asyncio.sleep(0.05)
    assert fake.mds_calls["RefreshSession"] >= 2 and fake.mds_calls["OpenVolume"] == 1
    assert once_per_seq(fake)
    await volume.close()


async def test_a_forgotten_session_is_opened_anew(fake: FakeCluster) -> None:
    fake.session_ttl = 0.3
    volume = await opened(fake)
    await volume.write(0, b"a" * 4096)
    fake.session = "forgotten"
    await until(lambda: volume.generation == 2)
    await asyncio.wait_for(volume.write(0, b"b" * 4096), 20)
    assert not volume.fenced and fake.groups[fake.seen[-1][2].group].writer == (1, 2)
    # The same while something new is allocated.
    fake.session = "forgotten again"
    await asyncio.wait_for(volume.write(2 * SEGMENT_SIZE, b"c" * 4096), 20)
    assert fake.content(2 * SEGMENT_SIZE, 4096) == b"c" * 4096
    await volume.close()


async def test_a_session_lost_to_another_epoch_kills_the_volume(fake: FakeCluster) -> None:
    fake.session_ttl = 0.3
    volume = await opened(fake)
    fake.session, fake.epoch = "taken", 2
    await until(lambda: volume.fenced)
    with pytest.raises(errors.Fenced):
        await volume.read(0, 4096)
    await volume.close()


async def test_size_and_throttle_follow_the_mds(fake: FakeCluster) -> None:
    volume = await opened(fake)
    fake.size, fake.throttle = 6 * GiB, (20, 0)
    assert await volume.refresh() == 6 * GiB
    await volume.write(5 * GiB, b"x" * 4096)
    started = time.monotonic()
    for _ in range(30):
        await volume.read(5 * GiB, 4096)
    assert time.monotonic() - started >= 0.4, "30 requests at 20 a second after a burst of 20"
    assert volume.throttled_seconds > 0
    await volume.close()


async def test_discard_frees_chunks_and_zeroes_edges(fake: FakeCluster) -> None:
    volume = await opened(fake)
    await volume.write(0, b"d" * (3 * CHUNK_SIZE))
    assert sum(len(group.chunks) for group in fake.groups.values()) == 3
    fake.seen.clear()
    await volume.discard(CHUNK_SIZE - 4096 - 100, CHUNK_SIZE + 4096 + 200)
    assert sum(len(group.chunks) for group in fake.groups.values()) == 2
    whole = [m for _n, kind, m in fake.seen if kind == MessageType.CHUNK_DISCARD and m.length == CHUNK_SIZE]
    assert len(whole) == 1
    around = bytes(await volume.read(CHUNK_SIZE - 8192, CHUNK_SIZE + 16384))
    start, end = 8192 - 4096 - 100, 8192 + CHUNK_SIZE + 100
    assert around == b"d" * start + bytes(end - start) + b"d" * (len(around) - end)
    # Space that was never allocated stays so.
    allocated = fake.mds_calls["allocated"]
    await volume.discard(SEGMENT_SIZE - 100, 2 * SEGMENT_SIZE)
    assert fake.mds_calls["allocated"] == allocated
    await volume.discard(100, 50)
    assert bytes(await volume.read(90, 70)) == b"d" * 10 + bytes(50) + b"d" * 10
    await volume.close()


async def test_close_waits_for_what_is_in_flight(fake: FakeCluster) -> None:
    volume = await opened(fake)
    jobs = [asyncio.ensure_future(volume.write(n * MiB, b"x" * MiB)) for n in range(8)]
    await asyncio.sleep(0)
    await volume.close()
    await asyncio.gather(*jobs)
    with pytest.raises(errors.Cancelled):
        await volume.read(0, 1)
    await volume.close()


async def test_corruption_is_reported_after_chances_of_repair(fake: FakeCluster) -> None:
    volume = await opened(fake)
    await volume.write(0, b"a" * 4096)
    fake.script = fail_first(2, errors.Corruption("bad block"), MessageType.CHUNK_READ)
    assert bytes(await volume.read(0, 4096)) == b"a" * 4096
    fake.script = fail_first(1000, errors.Corruption("bad block"), MessageType.CHUNK_READ)
    with pytest.raises(errors.Corruption):
        await volume.read(0, 4096)
    await volume.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_random_operations_under_random_faults(
    fake: FakeCluster, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curve_storage.client.datapath.ATTEMPT_TIMEOUT", 0.2)
    monkeypatch.setattr("curve_storage.client.datapath.MAX_ATTEMPT_TIMEOUT", 0.4)
    monkeypatch.setattr(volume_module, "MAX_REQUEST", 64 * KiB)
    rng = random.Random(seed)
    faults = [Fault.LOSE_REPLY, Fault.BREAK, Fault.NOT_LEADER, Fault.SILENCE, errors.Overloaded("busy"), None]

    def script(_node: int, _kind: int, _meta: ChunkMeta) -> Fault | errors.CurveError | None:
        if rng.random() < 0.02:
            fake.lead(rng.choice((1, 2, 3)))
        return rng.choice(faults) if rng.random() < 0.15 else None

    volume = await opened(fake)
    fake.script = script
    area, base = 512 * KiB, CHUNK_SIZE - 256 * KiB
    shadow = bytearray(area)
    slots = 8  # concurrent operations work on disjoint byte ranges with shared blocks between them
    width = area // slots

    async def work(slot: int) -> None:
        start, stop = slot * width + rng.randrange(4096), (slot + 1) * width
        for _ in range(12):
            begin = rng.randrange(start, stop)
            end = min(stop, begin + rng.choice((1, 512, 4096, 10000, width)))
            if rng.random() < 0.5:
                begin, end = (begin + 4095) // 4096 * 4096, end // 4096 * 4096
            if end <= begin:
                continue
            action = rng.random()
            if action < 0.6:
                data = rng.randbytes(end - begin)
                await volume.write(base + begin, data)
                shadow[begin:end] = data
            elif action < 0.75:
                await volume.discard(base + begin, end - begin)
                shadow[begin:end] = bytes(end - begin)
            else:
                assert bytes(await volume.read(base + begin, end - begin)) == bytes(shadow[begin:end])

    await asyncio.wait_for(asyncio.gather(*(work(slot) for slot in range(slots))), 60)
    fake.script = lambda _n, _k, _m: None
    assert bytes(await volume.read(base, area)) == bytes(shadow)
    assert fake.content(base, area) == bytes(shadow)
    assert once_per_seq(fake)
    await volume.close()
