from __future__ import annotations

import ctypes
import mmap

from curve_storage.units import KiB, MiB
from curve_storage.wire.buffers import BufferPool


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_reuses_only_what_nobody_looks_at() -> None:
    pool = BufferPool(limit=4 * MiB)
    first = pool.take(MiB)
    first[:] = b"a" * MiB
    where = address(first)
    assert where % mmap.PAGESIZE == 0 and len(first) == MiB
    part = first[100:200]
    del first
    second = pool.take(MiB)  # `part` still looks at the first one
    assert address(second) != where
    second[:] = b"b" * MiB
    assert bytes(part) == b"a" * 100
    del part, second
    taken = [pool.take(MiB - 5) for _ in range(2)]
    assert where in {address(view) for view in taken}
    assert all(len(view) == MiB - 5 for view in taken)


def test_limit() -> None:
    pool = BufferPool(limit=MiB)
    views = [pool.take(200 * KiB) for _ in range(10)]
    assert pool.held == MiB  # 4 × 256 KiB kept
    assert len({address(view) for view in views}) == 10
    del views
    assert pool.held == MiB
    assert len(pool.take(10 * MiB)) == 10 * MiB
    assert pool.held == MiB
