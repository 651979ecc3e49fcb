"""Which fault hits what, when and for how long: everything follows from the seed. No I/O, no clock.

The processes fall into three domains: replicas (chunkservers and their disks), metadata (etcd and MDS), node (volume
host, keeper, data processes). Faults of different domains overlap; within a domain the next begins when the last is
healed. So at most one replica of a copyset is out at a time and a majority can serve, except in the total outages,
during which I/O waits.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Domain(StrEnum):
    REPLICAS = "replicas"
    METADATA = "metadata"
    NODE = "node"


class Action(StrEnum):
    KILL = "kill -9"
    STOP = "SIGSTOP"
    CUT = "partition"
    CUT_INCOMING = "partition, incoming only"
    CUT_OUTGOING = "partition, outgoing only"
    LOSE_PACKETS = "packets lost"
    SLOW_CABLE = "slow network"
    DISK_FULL = "disk full"
    DISK_SLOW = "disk slow"
    DISK_EIO_WRITE = "disk EIO on write"
    DISK_EIO_SYNC = "disk EIO on sync"
    DISK_EIO_READ = "disk EIO on read"
    KILL_ALL = "kill -9 of all"
    KILL_DATA_PROCESS = "kill -9 of data process"
    STOP_DATA_PROCESS = "SIGSTOP of data process"
    KILL_HOST_AND_DATA = "kill -9 of host and data process"
    UPGRADE = "live upgrade"
    EXTEND = "volume extend"


_R, _M, _N = frozenset({Domain.REPLICAS}), frozenset({Domain.METADATA}), frozenset({Domain.NODE})


@dataclass(frozen=True)
class Kind:
    """targets: name of the group of which one member is hit; shortest, longest: seconds between fault and cure;
    settle: seconds the plan grants for recovery; share: how many of them a bag of all kinds holds."""

    action: Action
    domains: frozenset[Domain]
    targets: str
    shortest: float
    longest: float
    settle: float = 3.0
    share: int = 1

    @property
    def name(self) -> str:
        return f"{self.action.value}, {self.targets}"


KINDS = (
    Kind(Action.KILL, _R, "chunkserver", 0.2, 5, share=4),
    Kind(Action.STOP, _R, "chunkserver", 1, 30, share=2),
    Kind(Action.CUT, _R, "chunkserver", 1, 20, share=2),
    Kind(Action.CUT_INCOMING, _R, "chunkserver", 1, 15),
    Kind(Action.CUT_OUTGOING, _R, "chunkserver", 1, 15),
    Kind(Action.LOSE_PACKETS, _R, "chunkserver", 2, 15),
    Kind(Action.SLOW_CABLE, _R, "chunkserver", 2, 15),
    Kind(Action.DISK_FULL, _R, "chunkserver", 2, 15, share=2),
    Kind(Action.DISK_FULL, _R, "chunkservers", 2, 10),
    Kind(Action.DISK_SLOW, _R, "chunkserver", 2, 15, share=2),
    Kind(Action.DISK_EIO_WRITE, _R, "chunkserver", 1, 5, settle=10, share=2),
    Kind(Action.DISK_EIO_SYNC, _R, "chunkserver", 1, 5, settle=10, share=2),
    Kind(Action.DISK_EIO_READ, _R, "chunkserver", 1, 5, settle=10),
    Kind(Action.KILL_ALL, _R, "chunkservers", 0.2, 3, settle=6),
    Kind(Action.KILL, _M, "mds", 0.2, 5, share=3),
    Kind(Action.STOP, _M, "mds", 1, 30, share=2),
    Kind(Action.CUT, _M, "mds", 1, 20),
    Kind(Action.CUT_INCOMING, _M, "mds", 1, 15),
    Kind(Action.CUT_OUTGOING, _M, "mds", 1, 15),
    Kind(Action.KILL, _M, "etcd", 0.2, 5, share=2),
    Kind(Action.STOP, _M, "etcd", 1, 15),
    Kind(Action.CUT, _M, "etcd", 1, 15),
    Kind(Action.KILL_ALL, _M, "metadata", 0.2, 5),
    Kind(Action.KILL_ALL, _R | _M, "cluster", 0.2, 3, settle=10),
    Kind(Action.KILL_DATA_PROCESS, _N, "volume", 0, 0, share=3),
    Kind(Action.STOP_DATA_PROCESS, _N, "volume", 1, 30, share=2),
    Kind(Action.KILL, _N, "volumehost", 0.2, 5, share=2),
    Kind(Action.STOP, _N, "volumehost", 1, 30),
    Kind(Action.KILL_HOST_AND_DATA, _N, "volume", 0.2, 3),
    Kind(Action.KILL, _N, "keeper", 0.2, 3, share=2),
    Kind(Action.CUT, _N, "node", 1, 15),
    Kind(Action.LOSE_PACKETS, _N, "node", 2, 15),
    Kind(Action.UPGRADE, _N, "volume", 0, 0, share=3),
    Kind(Action.EXTEND, _N, "any volume", 0, 0),
)


@dataclass(frozen=True)
class Fault:
    """number: from 1; at: seconds after the start of the faults; seconds: until the cure; strength: 0 to 1, what it
    means depends on the action."""

    number: int
    at: float
    kind: Kind
    target: str
    seconds: float
    strength: float

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind.action.value} {self.target}{lasting}"


def make(
    seed: int, seconds: float, interval: float, targets: Mapping[str, Sequence[str]], *, extends: int = 10
) -> list[Fault]:
    """A schedule of `seconds`, one fault every `interval` seconds on average; the last is cured within it.

    Kinds are drawn from a bag that holds each as often as its share, so every kind comes up before one comes again.
    extends: at most so many extensions of volumes.
    """
    rng = random.Random(seed)
    free_at = dict.fromkeys(Domain, 0.0)
    bag: list[Kind] = []
    faults: list[Fault] = []
    at = rng.uniform(0.3, 1.0) * interval
    while at < seconds:
        found = next((kind for kind in bag if all(free_at[domain] <= at for domain in kind.domains)), None)
        if found is None:
            if min(free_at.values()) <= at:  # what is left hits other domains; it is not dropped
                more = [kind for kind in KINDS for _ in range(kind.share)]
                rng.shuffle(more)
                bag += more
            else:
                at = min(free_at.values())
            continue
        bag.remove(found)
        if found.action == Action.EXTEND:
            if not extends:
                continue
            extends -= 1
        # Short ones are more frequent than long ones.
        lasting = found.shortest + (found.longest - found.shortest) * rng.random() ** 2
        lasting = round(min(lasting, max(found.shortest, seconds - at)), 1)
        fault = Fault(
            len(faults) + 1, round(at, 1), found, rng.choice(targets[found.targets]), lasting, round(rng.random(), 3)
        )
        faults.append(fault)
        for domain in found.domains:
            free_at[domain] = at + lasting + found.settle
        at += rng.uniform(0.5, 1.5) * interval
    return faults
