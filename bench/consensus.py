"""Costs of the raft core on this machine: a proposal through three members in one process, and ticking idle groups.

Run: python bench/consensus.py
"""

from __future__ import annotations

import random
import sys
import time

from curve_storage.consensus.api import Membership, Role
from curve_storage.consensus.config import RaftConfig
from curve_storage.consensus.entry import Entry
from curve_storage.consensus.raft import Raft
from curve_storage.consensus.raft_messages import Restored

TARGETS = {"batch 1": 30.0, "batch 64": 3.0, "tick": 0.5}


class NoStorage:
    """Everything stays in the members' windows here."""

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        raise AssertionError(f"entries {low}…{high} left the window")


def group(config: RaftConfig, number: int = 1) -> list[Raft]:
    membership = Membership(voters=(1, 2, 3))
    return [
        Raft(node, number, config, random.Random(node), NoStorage(), Restored(configs=[(0, membership)]), 0.0)
        for node in (1, 2, 3)
    ]


def settle(members: list[Raft], now: float) -> None:
    """Delivers and persists until nobody has anything left to do."""
    busy = True
    while busy:
        busy = False
        for member in members:
            ready = member.ready()
            if ready is None:
                continue
            busy = True
            if ready.must_persist:
                member.persisted(ready.number)
            for message in ready.messages:
                members[message.dst - 1].step(message, now)
            if ready.committed:
                member.applied_to(ready.committed[-1].index)


def elect(members: list[Raft]) -> tuple[Raft, float]:
    now = 0.0
    while True:
        now += 0.01
        for member in members:
            member.tick(now)
        settle(members, now)
        for member in members:
            if member.role is Role.LEADER:
                return member, now


def proposals(batch: int, total: int) -> float:
    """µs of CPU per proposal for all three members together."""
    members = group(RaftConfig())
    leader, now = elect(members)
    commands = [(b"x" * 72, b"y" * 4096)] * batch
    started = time.process_time()
    for turn in range(total // batch):
        leader.propose(commands, now)
        settle(members, now)
        if turn % 64 == 0:
            for member in members:
                member.compact(member.applied - 1)
    elapsed = time.process_time() - started
    assert leader.applied >= total
    return elapsed / total * 1e6


def ticking(count: int, rounds: int, interval: float) -> tuple[float, float]:
    """Share of a core in percent: groups that are idle but awake, and asleep (host skips those)."""
    groups = [group(RaftConfig(), number)[0] for number in range(count)]
    now = 0.0
    started = time.process_time()
    for _ in range(rounds):
        now += interval / 1000
        for member in groups:
            member.tick(now)
    awake = (time.process_time() - started) / rounds
    started = time.process_time()
    for _ in range(rounds):
        for member in groups:
            if not member.hibernating:
                pass
    asleep = (time.process_time() - started) / rounds
    return awake / interval * 100, asleep / interval * 100


def main() -> int:
    print("raft core, three members in one process (target)")
    for batch, total in ((1, 20_000), (8, 80_000), (64, 320_000)):
        best = min(proposals(batch, total) for _ in range(3))
        target = TARGETS.get(f"batch {batch}")
        print(f"  proposal, batch {batch:<3} {best:7.2f} µs" + (f"  (≤ {target:g} µs)" if target else ""))
    awake, asleep = ticking(1000, 200, 0.04)
    print(
        f"  ticking 1,000 idle groups every 40 ms: {awake:.2f} % of a core awake (≤ {TARGETS['tick']} %), "
        f"{asleep:.2f} % asleep"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
