"""Page-aligned receive buffers that are recycled once nobody looks at them any more.

A fresh mapping of 1 MiB costs hundreds of microseconds of page faults, a recycled one nothing, so large payloads are
received into pooled anonymous mappings. A buffer is free again when the pool holds the only reference to it: every
memoryview (and every system call under way) keeps its mapping referenced, so a caller just drops its views.
"""

from __future__ import annotations

import mmap
from sys import getrefcount

from curve_storage.units import KiB, MiB

_SMALLEST = 64 * KiB
_LARGEST = 4 * MiB
_FREE = 2  # references to an unused buffer: the list's and getrefcount's argument


def _allocate(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class BufferPool:
    """Keeps up to `limit` bytes of buffers, in power-of-two classes of 64 KiB to 4 MiB."""

    def __init__(self, limit: int = 32 * MiB) -> None:
        self._limit = limit
        self._held = 0
        self._classes: dict[int, list[mmap.mmap]] = {}

    @property
    def held(self) -> int:
        return self._held

    def take(self, size: int) -> memoryview:
        """A writable view of exactly `size` bytes, page-aligned, of unspecified content."""
        if size > _LARGEST:
            return memoryview(_allocate(size))[:size]
        capacity = _SMALLEST if size <= _SMALLEST else 1 << (size - 1).bit_length()
        pool = self._classes.setdefault(capacity, [])
        for position in range(len(pool)):
            if getrefcount(pool[position]) == _FREE:
                # Move it to the end, so that the scan meets the longest unused buffers first.
                buffer = pool.pop(position)
                pool.append(buffer)
                return memoryview(buffer)[:size]
        buffer = _allocate(capacity)
        if self._held + capacity <= self._limit:
            self._held += capacity
            pool.append(buffer)
        return memoryview(buffer)[:size]
