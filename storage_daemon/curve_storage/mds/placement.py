"""Where the replicas of copysets go: pure functions over chunkservers and their zones.

Each copyset takes its members from the least loaded zones (load per chunkserver of the zone), inside a zone the
chunkserver with the fewest copysets, and among equals the one that brings its partners the most new neighbours. That
keeps the number of copysets per chunkserver within one of each other wherever zones allow it, and makes the scatter
width (the number of different chunkservers one shares a copyset with) grow as fast as it can.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curve_storage.errors import FailedPrecondition

CONSIDERED = 32
"""Equally loaded chunkservers that are compared by the new neighbours they bring."""


@dataclass(frozen=True, slots=True)
class Candidate:
    id: int
    zone: str
    server: str = ""


@dataclass(slots=True)
class Placement:
    copysets: list[tuple[int, ...]]
    load: dict[int, int]  # chunkserver → copysets
    scatter: dict[int, int]  # chunkserver → scatter width

    @property
    def least_scatter(self) -> int:
        return min(self.scatter.values(), default=0)


def require(candidates: Sequence[Candidate], *, replicas: int, zones: int, where: str) -> None:
    """Raises FailedPrecondition that names what is missing."""
    counts: dict[str, int] = {}
    for candidate in candidates:
        counts[candidate.zone] = counts.get(candidate.zone, 0) + 1
    present = ", ".join(f"{zone}: {count}" for zone, count in sorted(counts.items())) or "none"
    if len(counts) < zones:
        raise FailedPrecondition(
            f"{zones} zones with chunkservers that are online are needed, there are {len(counts)} ({present})",
            where=where,
            todo=f"Start chunkservers in {zones - len(counts)} more zones and repeat the request",
        )
    if len(candidates) < replicas:
        raise FailedPrecondition(
            f"{replicas} chunkservers that are online are needed, there are {len(candidates)} ({present})",
            where=where,
            todo=f"Start {replicas - len(candidates)} more chunkservers and repeat the request",
        )


def copyset_count(chunkservers: int, replicas: int, per_chunkserver: int, scatter_width: int) -> int:
    """The number of copysets when the user gave none: enough for the load per chunkserver and for the scatter width."""
    wanted = max(per_chunkserver, -(-scatter_width // max(1, replicas - 1)))
    return max(1, -(-chunkservers * wanted // replicas))


def generate(
    candidates: Sequence[Candidate], *, replicas: int, zones: int, count: int, rng: random.Random
) -> Placement:
    """`count` copysets of `replicas` different chunkservers in at least `zones` different zones, on different servers
    where that is possible. The caller has checked `require`."""
    members: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda c: c.id):
        members.setdefault(candidate.zone, []).append(candidate)
    load = {candidate.id: 0 for candidate in candidates}
    zone_load = dict.fromkeys(members, 0)
    partners: dict[int, set[int]] = {candidate.id: set() for candidate in candidates}
    copysets: list[tuple[int, ...]] = []
    for _ in range(count):
        chosen: list[Candidate] = []
        taken: dict[str, int] = {}  # zone → members chosen there
        while len(chosen) < replicas:
            open_zones = [
                zone
                for zone, group in members.items()
                if (zone not in taken or len(taken) >= zones) and taken.get(zone, 0) < len(group)
            ]
            # A zone not used yet comes first, then the least loaded per chunkserver.
            zone = min(open_zones, key=lambda z: (z in taken, zone_load[z] / len(members[z]), rng.random()))
            best = _choose(members[zone], chosen, load, partners, rng)
            chosen.append(best)
            taken[zone] = taken.get(zone, 0) + 1
            load[best.id] += 1
            zone_load[zone] += 1
        ids = [c.id for c in chosen]
        for one in ids:
            partners[one].update(other for other in ids if other != one)
        # The first member tends to become the leader: rotate it.
        rng.shuffle(ids)
        copysets.append(tuple(ids))
    return Placement(copysets, load, {one: len(others) for one, others in partners.items()})


def _choose(
    zone: Sequence[Candidate],
    chosen: Sequence[Candidate],
    load: Mapping[int, int],
    partners: Mapping[int, set[int]],
    rng: random.Random,
) -> Candidate:
    """Of a zone: on a server not used yet, with the fewest copysets, bringing the most new neighbours, else any."""
    available = [c for c in zone if c not in chosen] if any(c.zone == zone[0].zone for c in chosen) else zone
    servers = {c.server for c in chosen if c.server}
    if servers:
        available = [c for c in available if c.server not in servers] or available
    least = min(load[c.id] for c in available)
    equal = [c for c in available if load[c.id] == least]
    if len(equal) > CONSIDERED:
        equal = rng.sample(equal, CONSIDERED)
    return min(equal, key=lambda c: (-sum(other.id not in partners[c.id] for other in chosen), rng.random()))


def plan(
    candidates: Sequence[Candidate],
    *,
    replicas: int,
    zones: int,
    count: int,
    scatter_width: int,
    per_chunkserver: int,
    where: str,
    rng: random.Random,
) -> Placement:
    """The copysets of a new pool. count 0: as many as the load and the scatter width need. Raises FailedPrecondition
    when chunkservers or zones are missing, or the scatter width cannot be had."""
    require(candidates, replicas=replicas, zones=zones, where=where)
    zone_sizes: dict[str, int] = {}
    for candidate in candidates:
        zone_sizes[candidate.zone] = zone_sizes.get(candidate.zone, 0) + 1
    reachable = len(candidates) - (max(zone_sizes.values()) if zones >= replicas else 1)
    if scatter_width > reachable:
        raise FailedPrecondition(
            f"scatter width {scatter_width} is out of reach: a chunkserver has at most {reachable} possible neighbours",
            where=where,
            todo=f"Ask for {reachable} or less, or add chunkservers",
        )
    number = count or copyset_count(len(candidates), replicas, per_chunkserver, scatter_width)
    limit = 10 * number
    while True:
        placement = generate(candidates, replicas=replicas, zones=zones, count=number, rng=rng)
        if placement.least_scatter >= scatter_width:
            return placement
        if count or number >= limit:
            raise FailedPrecondition(
                f"{number} copysets give a scatter width of {placement.least_scatter}, not {scatter_width}",
                where=where,
                todo="Ask for more copysets or a smaller scatter width",
            )
        number += max(1, number // 10)
