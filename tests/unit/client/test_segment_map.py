"""The table of a volume's segments: packed and unpacked without loss, small for very large volumes."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from curve_storage.client.segments import UNPACKED, SegmentMap, pack, unpack
from curve_storage.clock import ManualClock
from curve_storage.errors import CurveError
from curve_storage.proto import mds_pb2 as pb
from curve_storage.units import CHUNKS_PER_SEGMENT
from curve_storage.wire.messages import group_id


def reply(index: int, rng: random.Random, chunks: int = CHUNKS_PER_SEGMENT) -> pb.GetSegmentReply:
    first = 64 * (index + 1)
    made = [pb.Chunk(id=first + number, copyset_id=rng.randrange(1, 100_000)) for number in range(chunks)]
    return pb.GetSegmentReply(allocated=True, segment=pb.Segment(volume_id=1, pool_id=3, chunks=made))


@pytest.mark.parametrize("seed", range(100))
def test_any_segment_survives_packing(seed: int) -> None:
    """Also what no MDS makes: several pools, scattered chunk ids, the largest numbers."""
    rng = random.Random(seed)
    pools, step = rng.choice([[3], [0, (1 << 32) - 1]]), rng.choice([1, 2, 0])
    first = rng.choice([0, 1 << 63, rng.getrandbits(60)])
    made = [(group_id(rng.choice(pools), rng.getrandbits(32)), first + step * number) for number in range(64)]
    assert unpack(pack(made)) == made


@pytest.mark.parametrize(("pool", "first"), [(0, 0), (3, 640), ((1 << 32) - 1, 1 << 63)])
def test_an_ordinary_segment_is_small(pool: int, first: int) -> None:
    made = [(group_id(pool, 99_999 - number), first + number) for number in range(64)]
    assert unpack(pack(made)) == made and len(pack(made)) < 300


def test_more_segments_than_are_kept_as_lists() -> None:
    segments, rng = SegmentMap(ManualClock(), exclusive=True), random.Random(1)
    count = UNPACKED + 500
    stored = {}
    for index in range(count):
        stored[index] = segments.store(index, reply(index, rng))
    assert len(segments) == count
    for index in rng.sample(range(count), count):
        assert segments.get(index) == stored[index]
    assert segments.get(count) is None
    first = segments.get(7)
    assert first is segments.get(7), "used lately: no unpacking for each request"


def test_memory_of_a_large_volume() -> None:
    segments, rng = SegmentMap(ManualClock(), exclusive=True), random.Random(1)
    tracemalloc.start()
    try:
        for index in range(UNPACKED):
            segments.store(index, reply(index, rng))
        before = tracemalloc.get_traced_memory()[0]
        for index in range(UNPACKED, UNPACKED + 1000):
            segments.store(index, reply(index, rng))
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used < 1000 * 600


def test_replies_that_are_no_whole_segment_change_nothing() -> None:
    segments, rng = SegmentMap(ManualClock(), exclusive=True), random.Random(1)
    with pytest.raises(CurveError, match="63 chunks"):
        segments.store(1, reply(1, rng, 63))
    assert segments.get(1) is None and not segments.known_absent(1)
    assert segments.store(1, pb.GetSegmentReply()) is None and segments.known_absent(1)
    assert segments.store(1, reply(1, rng)) is not None and not segments.known_absent(1)
    assert segments.store(1, pb.GetSegmentReply()) == segments.get(1), "a late reply takes nothing back"
