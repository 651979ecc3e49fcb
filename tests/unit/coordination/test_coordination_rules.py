"""The parts of coordination that need no etcd, and the election's clock against an etcd that is played."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from curve_storage.clock import ManualClock
from curve_storage.config import EtcdConfig, TlsFiles
from curve_storage.coordination.election import Election
from curve_storage.coordination.etcd import EtcdClient, _parse_endpoint, prefix_end
from curve_storage.coordination.model import KeyValue, Lease, TxnResult
from curve_storage.errors import InvalidArgument, NotLeader, Unavailable


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a/", b"a0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0")]
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


def test_endpoints() -> None:
    plain = EtcdConfig(endpoints=["a:1"])
    secure = EtcdConfig(endpoints=["a:1"], tls=TlsFiles(ca="c", cert="c", key="k"))  # type: ignore[arg-type]
    assert _parse_endpoint("a:1", plain) == ("a:1", False)
    assert _parse_endpoint("http://a:1/", plain) == ("a:1", False)
    assert _parse_endpoint("https://a:1", plain) == ("a:1", True)
    assert _parse_endpoint("a:1", secure) == ("a:1", True)
    for bad in ("a", "ftp://a:1", "a:", ":1", "http://a"):
        with pytest.raises(InvalidArgument):
            _parse_endpoint(bad, plain)


class PlayedEtcd:
    """What Election asks of EtcdClient, with one key and a switch that makes it unreachable."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.reachable = True
        self.slow = 0.0  # seconds that pass before an answer
        self.kv: KeyValue | None = None
        self.renewals = 0
        self.ttl = 3.0

    def _answer(self) -> None:
        self.clock.advance(self.slow)
        if not self.reachable:
            raise Unavailable("unplugged")

    async def grant(self, ttl: float) -> Lease:
        self._answer()
        return Lease(77, ttl)

    async def txn(self, compares: Any, puts: dict[bytes, bytes], **_more: Any) -> TxnResult:
        self._answer()
        key, value = next(iter(puts.items()))
        self.kv = KeyValue(key, value, 5, 5, 1, 77)
        return TxnResult(True, 5, [])

    async def get_prefix(self, prefix: bytes) -> tuple[list[KeyValue], int]:
        self._answer()
        return ([self.kv] if self.kv else [], 5)

    async def get(self, key: bytes, *, deadline: float | None = None) -> KeyValue | None:
        self._answer()
        return self.kv

    async def renew(self, lease: int, *, deadline: float, attempt: float) -> float:
        self._answer()
        self.renewals += 1
        return self.ttl

    async def revoke(self, lease: int, *, deadline: float) -> None:
        self.kv = None


def elect(clock: ManualClock, etcd: PlayedEtcd) -> Election:
    return Election(cast(EtcdClient, etcd), b"leader", "a", "a:1", 3.0, clock, margin=0.5)


async def test_leads_from_the_moment_of_sending() -> None:
    clock = ManualClock()
    etcd = PlayedEtcd(clock)
    etcd.slow = 0.2  # each of grant, put, list and look-again takes that long
    election = elect(clock, etcd)
    await election.campaign()
    sent = clock.monotonic() - 4 * 0.2
    assert election.is_leader() and election.term == 5
    assert election.guard.operand == 5
    clock.advance(sent + 2.5 - clock.monotonic() - 0.01)
    assert election.is_leader()
    clock.advance(0.02)  # margin before the lease counted from its sending
    assert not election.is_leader()
    with pytest.raises(NotLeader):
        _ = election.guard
    await election.resign()


async def test_answers_slower_than_the_lease_elect_nobody() -> None:
    clock = ManualClock()
    etcd = PlayedEtcd(clock)
    etcd.slow = 1.0
    election = elect(clock, etcd)
    campaign = asyncio.create_task(election.campaign())
    for _ in range(50):
        await asyncio.sleep(0)
        assert not election.is_leader()
    campaign.cancel()
    await asyncio.gather(campaign, return_exceptions=True)
    assert etcd.kv is None, "a cancelled campaign leaves no candidate behind"


async def test_lost_renewals_end_leadership() -> None:
    clock = ManualClock()
    etcd = PlayedEtcd(clock)
    election = elect(clock, etcd)
    await election.campaign()
    etcd.reachable = False
    clock.advance(2.6)
    assert not election.is_leader()
    async with asyncio.timeout(30):
        assert "could not be renewed" in await election.wait_lost()
    await election.resign()


async def test_an_expired_lease_ends_leadership() -> None:
    clock = ManualClock()
    etcd = PlayedEtcd(clock)
    election = elect(clock, etcd)
    await election.campaign()
    etcd.ttl = 0.0
    async with asyncio.timeout(30):
        assert await election.wait_lost() == "the lease has expired"
    assert not election.is_leader()
    await election.resign()


async def test_abandoned() -> None:
    clock = ManualClock()
    election = elect(clock, PlayedEtcd(clock))
    assert await election.wait_lost() == "not elected"
    await election.campaign()
    election.abandon("for a reason")
    assert not election.is_leader() and await election.wait_lost() == "for a reason"
    await election.campaign()
    assert election.is_leader()
    await election.resign()


def test_margin_must_fit() -> None:
    clock = ManualClock()
    with pytest.raises(InvalidArgument, match="margin"):
        Election(cast(EtcdClient, PlayedEtcd(clock)), b"l", "a", "a", 0.3, clock)
