"""Which copysets get the chunks of a new segment: weighted fair queueing, round robin when all weights are equal.

Every copyset has a virtual time; the one with the least is next and moves on by 1/weight. Over many picks each gets
its share of chunks in proportion to its weight (free space), and a single segment is spread over as many copysets as
there are.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping

from curve_storage.mds.state import CopysetKey


class SegmentAllocator:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._time: dict[CopysetKey, float] = {}
        self._now: dict[int, float] = {}  # pool → virtual time of the last pick

    def choose(self, weights: Mapping[CopysetKey, float], count: int) -> list[CopysetKey]:
        """`count` copysets of one pool, in the order of the chunks; every weight must be above 0, and there must be one
        at least."""
        pool = next(iter(weights))[0]
        mean = sum(weights.values()) / len(weights)
        now = self._now.get(pool, 0.0)
        heap: list[tuple[float, CopysetKey]] = []
        for key, weight in weights.items():
            known = self._time.get(key)
            # New ones start at a random point of their period, so that segments do not all begin at the same copyset;
            # one that was unavailable for a while does not make up for it.
            heap.append((now + self._rng.random() * mean / weight if known is None else max(known, now), key))
        heapq.heapify(heap)
        chosen: list[CopysetKey] = []
        for _ in range(count):
            now, key = heap[0]
            chosen.append(key)
            heapq.heapreplace(heap, (now + mean / weights[key], key))
        self._now[pool] = now
        for at, key in heap:
            self._time[key] = at
        return chosen


def copyset_weight(free: Mapping[int, int], members: tuple[int, ...]) -> float:
    """Free space of the fullest member decides; a little is always left, so that thin volumes can still be spread when
    everything is promised."""
    return max(1.0, float(min((free.get(member, 0) for member in members), default=0)))
