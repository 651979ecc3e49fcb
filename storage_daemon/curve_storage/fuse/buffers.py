"""Where requests land: page-aligned slabs, allocated once.

A request of unknown size needs `request_size` contiguous bytes to be read into, yet most are small. So a slab is
filled from its start: each write keeps just its own bytes (rounded up to a page), and the next request is read
behind it. A slab is used again when all of its leases are released. Nothing is allocated while I/O runs: a process that
serves a block device must not need memory in order to free memory. All pages are present from the start, which also
keeps a kill in the middle of a system call from turning into a failed copy in the kernel.
"""

from __future__ import annotations

import mmap

_PAGE = mmap.PAGESIZE


class _Slab:
    __slots__ = ("end", "leases", "start", "view")

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self.view = memoryview(mmap.mmap(-1, size, flags))
        self.start = 0  # first free byte
        self.end = size
        self.leases = 0


class Lease:
    """`data` is valid until `release`, which must be called exactly once."""

    __slots__ = ("_pool", "_slab", "data")

    def __init__(self, pool: SlabPool, slab: _Slab, data: memoryview) -> None:
        self._pool = pool
        self._slab = slab
        self.data = data

    def release(self) -> None:
        self._pool._released(self._slab)


class SlabPool:
    """request_size: bytes the largest request may take; slabs: how many to allocate, each of twice that size."""

    def __init__(self, request_size: int, slabs: int) -> None:
        self._request_size = -(-request_size // _PAGE) * _PAGE
        self._free = [_Slab(2 * self._request_size) for _ in range(slabs)]
        self._current = self._free.pop()
        self._space: memoryview | None = self._current.view[: self._request_size]

    def space(self) -> memoryview | None:
        """Room for the next request, the same until `take`; None while every slab is in use."""
        if self._space is None:
            self._space = self._find()
        return self._space

    def take(self, size: int) -> Lease:
        """Keep the first `size` bytes of the present space."""
        space = self._space
        if space is None or size > len(space):
            raise ValueError(f"no space for {size} bytes")
        slab = self._current
        slab.leases += 1
        slab.start += -(-size // _PAGE) * _PAGE
        self._space = None
        return Lease(self, slab, space[:size])

    def _find(self) -> memoryview | None:
        slab = self._current
        if slab.end - slab.start < self._request_size:
            if not self._free:
                return None
            slab = self._current = self._free.pop()
        return slab.view[slab.start : slab.start + self._request_size]

    def _released(self, slab: _Slab) -> None:
        slab.leases -= 1
        if slab.leases == 0:
            if slab is not self._current:
                slab.start = 0
                self._free.append(slab)
            elif self._space is None:
                slab.start = 0
