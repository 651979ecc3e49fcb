"""The shadow copy of one target: what each 4 KiB block may hold, given what was acknowledged. No I/O.

A block's content names target, block and version, so a torn block, one of another place or another time is recognised.
While a write is under way, the old and the new version are both possible; once one was read, that is the state.
"""

from __future__ import annotations

import random
import struct
import threading
from dataclasses import dataclass

from curve_storage.errors import Corruption
from curve_storage.units import BLOCK_SIZE

_HEAD = struct.Struct("<QQQQ")
_REPEAT = BLOCK_SIZE // _HEAD.size
_MASK = 2**64 - 1


def content(salt: int, block: int, version: int) -> bytes:
    """Version 0 is a block never written: zeros."""
    if version == 0:
        return bytes(BLOCK_SIZE)
    return _HEAD.pack(salt, block, version, (block * 2654435761 ^ version * 40503 ^ salt) & _MASK) * _REPEAT


@dataclass(frozen=True)
class Span:
    """Adjacent blocks, with the version that is written to them, or None for a read."""

    first: int
    count: int
    version: int | None

    @property
    def blocks(self) -> range:
        return range(self.first, self.first + self.count)


class Shadow:
    """areas: (first block, number of blocks) each. Safe to use from several threads; a block is in use by one."""

    def __init__(self, areas: list[tuple[int, int]], seed: int, where: str) -> None:
        self.areas = areas
        self.salt = seed & _MASK
        self.where = where
        self.writes = 0  # acknowledged
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._acknowledged: dict[int, int] = {}
        self._possible: dict[int, set[int]] = {}
        self._busy: set[int] = set()
        self._next = 1

    def take(self) -> Span:
        """The next thing to do; its blocks are this caller's until `acknowledge`, or `check` with done."""
        with self._lock:
            while True:
                first, count = self._rng.choice(self.areas)
                length = min(self._rng.choice((1, 1, 1, 1, 2, 4, 16)), count)
                start = first + self._rng.randrange(count - length + 1)
                blocks = range(start, start + length)
                if self._busy.isdisjoint(blocks):
                    break
            self._busy.update(blocks)
            if self._rng.random() < 0.25:
                return Span(start, length, None)
            version = self._next
            self._next += 1
            for block in blocks:
                self._possible.setdefault(block, set()).add(version)
            return Span(start, length, version)

    def data(self, span: Span) -> bytes:
        assert span.version is not None
        return b"".join(content(self.salt, block, span.version) for block in span.blocks)

    def acknowledge(self, span: Span) -> None:
        assert span.version is not None
        with self._lock:
            self.writes += 1
            for block in span.blocks:
                self._acknowledged[block] = span.version
                self._possible.pop(block, None)
            self._busy.difference_update(span.blocks)

    def check(self, span: Span, data: bytes | memoryview) -> None:
        """Raises Corruption naming the block when a block holds what it cannot. Releases the span."""
        with self._lock:
            try:
                for index, block in enumerate(span.blocks):
                    found = bytes(data[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
                    self._check(block, found)
            finally:
                self._busy.difference_update(span.blocks)

    def _check(self, block: int, found: bytes) -> None:
        allowed = {self._acknowledged.get(block, 0)} | self._possible.get(block, set())
        for version in allowed:
            if found == content(self.salt, block, version):
                self._acknowledged[block] = version
                self._possible.pop(block, None)
                return
        salt, place, version, _ = _HEAD.unpack_from(found)
        whole = found == content(salt, place, version)
        what = f"version {version} of block {place}" if whole and any(found) else f"a torn block ({found[:32].hex()})"
        if not any(found):
            what = "zeros"
        raise Corruption(
            f"block {block} holds {what}, not version {' or '.join(map(str, sorted(allowed)))}", where=self.where
        )
