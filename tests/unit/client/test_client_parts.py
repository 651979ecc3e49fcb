"""The client's pure parts: sequence numbers, ordering, throttle, health, backoff, splitting, configuration."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curve_storage import errors
from curve_storage.client.config import find_config_file, load_client_config
from curve_storage.client.health import SHUN_SECONDS, TIMEOUTS_TO_SHUN, PeerHealth
from curve_storage.client.ordering import RangeOrder
from curve_storage.client.retry import Backoff, Verdict, judge
from curve_storage.client.sequence import Sequence
from curve_storage.client.stall import StallMonitor
from curve_storage.client.throttle import Bucket, VolumeThrottle
from curve_storage.client.volume import pieces
from curve_storage.clock import ManualClock
from curve_storage.units import CHUNK_SIZE, MiB


@given(st.lists(st.booleans(), max_size=200), st.randoms())
def test_low_is_the_lowest_open_number(steps: list[bool], rng: random.Random) -> None:
    sequence, open_numbers, last = Sequence(), set[int](), 0
    for begin in steps:
        if begin or not open_numbers:
            seq = sequence.begin()
            assert seq == last + 1
            last = seq
            open_numbers.add(seq)
        else:
            seq = rng.choice(sorted(open_numbers))
            open_numbers.remove(seq)
            sequence.end(seq)
        assert sequence.low == min(open_numbers, default=last + 1)
        assert len(sequence) == len(open_numbers)


@given(st.integers(0, 4 * CHUNK_SIZE), st.integers(0, 3 * CHUNK_SIZE), st.sampled_from([4096, MiB, CHUNK_SIZE]))
def test_pieces_cover_the_range_and_cross_no_chunk(offset: int, length: int, limit: int) -> None:
    at = offset
    for start, size in pieces(offset, length, limit):
        assert start == at and 0 < size <= limit
        assert start // CHUNK_SIZE == (start + size - 1) // CHUNK_SIZE
        at += size
    assert at == offset + length


async def test_whole_block_mutations_do_not_wait_for_each_other() -> None:
    order = RangeOrder()
    _, first = order.shared(0, 8192)
    _, second = order.shared(4096, 8192)
    assert first == [] and second == []


async def test_partial_writes_wait_for_earlier_ones_and_hold_later_ones() -> None:
    order = RangeOrder()
    whole, _ = order.shared(0, 4096)
    partial, waits = order.exclusive(0, 4096)
    assert len(waits) == 1
    later, later_waits = order.shared(0, 8192)
    assert len(later_waits) == 1
    elsewhere, none = order.shared(8192, 12288)
    assert none == []
    order.leave(whole)
    await asyncio.wait_for(asyncio.wait(waits), 5)
    assert not later_waits[0].done()
    order.leave(partial)
    await asyncio.wait_for(asyncio.wait(later_waits), 5)
    order.leave(later)
    order.leave(elsewhere)
    assert len(order) == 0
    _, free = order.exclusive(0, 4096)
    assert free == []


def test_throttle_lets_the_rate_through_and_no_more() -> None:
    bucket, now, served = Bucket(100, 0.0), 0.0, 0
    while now < 10:
        delay = bucket.take(1, now)
        served += 1
        now += max(delay, 0.0001)
    assert 1000 <= served <= 1110  # ten seconds of rate and one second of burst


def test_unlimited_throttle_never_delays() -> None:
    throttle = VolumeThrottle()
    assert not throttle.active
    throttle.configure(0, MiB, 0.0)
    assert throttle.active
    assert throttle.take(MiB, 0.0) == 0
    assert throttle.take(MiB, 0.0) == pytest.approx(1.0)
    throttle.configure(0, 0, 1.0)
    assert not throttle.active and throttle.take(MiB, 1.0) == 0


def test_silent_peer_is_shunned_for_a_while() -> None:
    clock = ManualClock()
    health = PeerHealth(clock)
    for _ in range(100):
        health.timed_out("a")  # together they count once
    assert not health.shunned("a")
    for _ in range(TIMEOUTS_TO_SHUN - 1):
        clock.advance(1)
        health.timed_out("a")
    assert health.shunned("a") and not health.shunned("b")
    clock.advance(SHUN_SECONDS + 0.1)
    assert not health.shunned("a")
    health.refused("a")
    assert health.shunned("a")
    health.answered("a")
    assert not health.shunned("a")


def test_backoff_grows_to_its_cap_with_jitter() -> None:
    backoff = Backoff(0.01, 1.0, rng=random.Random(1))
    delays = [backoff.next() for _ in range(40)]
    assert 0.008 <= delays[0] <= 0.012
    assert all(0.8 <= delay <= 1.2 for delay in delays[10:])
    assert len(set(delays)) == len(delays)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (errors.NotLeader("x"), Verdict.REDIRECT),
        (errors.StoreReadOnly("x"), Verdict.WAIT),
        (errors.NoSpace("x"), Verdict.WAIT),
        (errors.Overloaded("x"), Verdict.WAIT),
        (errors.Aborted("x"), Verdict.WAIT),
        (errors.Internal("x"), Verdict.WAIT),
        (errors.Unavailable("x"), Verdict.SEARCH),
        (errors.DeadlineExceeded("x"), Verdict.SEARCH),
        (errors.NotFound("x"), Verdict.SEARCH),
        (errors.DiskFailed("x"), Verdict.SEARCH),
        (errors.ChunkNotExist("x"), Verdict.FAIL),
        (errors.OutOfRange("x"), Verdict.FAIL),
        (errors.PermissionDenied("x"), Verdict.FAIL),
        (errors.Unauthenticated("x"), Verdict.AUTHENTICATE),
        (errors.Fenced("x"), Verdict.FENCED),
    ],
)
def test_verdicts(error: errors.CurveError, verdict: Verdict) -> None:
    assert judge(error) is verdict


def test_stall_begins_after_a_second_and_ends_with_the_last_waiter() -> None:
    clock = ManualClock()
    stall = StallMonitor(clock, "/v")
    stall.waiting(1, "a leader")
    assert stall.reason() is None
    clock.advance(2)
    stall.waiting(1, "a leader")
    stall.waiting(2, "room on the disk")
    assert stall.reason() == "room on the disk" and stall.count == 1
    stall.done(1)
    clock.advance(1)
    stall.waiting(2, "room on the disk")
    assert stall.reason() is not None and stall.count == 1
    stall.done(2)
    stall.done(2)
    assert stall.reason() is None and stall.seconds == pytest.approx(3)


def test_configuration_is_found_in_order(tmp_path: Path) -> None:
    explicit, by_environment = tmp_path / "a.yaml", tmp_path / "b.yaml"
    environ = {"HOME": str(tmp_path), "CURVE_CLIENT_CONFIG": str(by_environment)}
    assert find_config_file(explicit, environ) == explicit
    assert find_config_file(None, environ) == by_environment
    playground = tmp_path / ".local/share/curve/playground"
    playground.mkdir(parents=True)
    (playground / "client.yaml").write_text("mds: ['127.0.0.1:1']\n")
    if not Path("/etc/curve/client.yaml").exists():
        assert find_config_file(None, {"HOME": str(tmp_path)}) == playground / "client.yaml"
    assert load_client_config(playground / "client.yaml").mds == ["127.0.0.1:1"]


def test_missing_or_wrong_configuration_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="curve playground up"):
        find_config_file(None, {"HOME": str(tmp_path)})
    wrong = tmp_path / "client.yaml"
    wrong.write_text("mds: []\n")
    with pytest.raises(errors.ConfigError, match="mds"):
        load_client_config(wrong)
    wrong.write_text("mds: ['a:1']\nextra: 1\n")
    with pytest.raises(errors.ConfigError, match="extra"):
        load_client_config(wrong)
