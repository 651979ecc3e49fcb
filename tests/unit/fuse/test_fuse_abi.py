"""Layouts against the sizes of the kernel's structures, and the parts that decide without I/O."""

from __future__ import annotations

import errno
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curve_storage.errors import Corruption, Fenced, NoSpace, NotFound
from curve_storage.fuse import abi
from curve_storage.fuse.buffers import Lease, SlabPool
from curve_storage.fuse.dispatch import encode_attributes, encode_entries, error_number
from curve_storage.fuse.handshake import MAX_WRITE, SessionFacts, negotiate
from curve_storage.fuse.ops import Attributes, DirectoryEntry


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (abi.IN_HEADER, 40), (abi.OUT_HEADER, 16), (abi.ATTR, 88), (abi.ATTR_OUT_HEAD, 16), (abi.ENTRY_OUT_HEAD, 40),
        (abi.INIT_OUT, 64), (abi.IO_IN, 40), (abi.WRITE_REPLY, 24), (abi.SETATTR_IN, 88), (abi.OPEN_OUT, 16),
        (abi.FALLOCATE_IN, 32), (abi.STATFS_OUT, 80), (abi.DIRENT, 24), (abi.NOTIFY_INVAL_INODE, 24),
        (abi.FSYNC_IN, 16), (abi.FLUSH_IN, 24), (abi.RELEASE_IN, 24),
    ],
)  # fmt: skip
def test_layouts_have_the_kernels_sizes(layout: object, size: int) -> None:
    assert layout.size == size  # type: ignore[attr-defined]


def init_request(minor: int, flags: int) -> bytes:
    return abi.INIT_IN.pack(7, minor, 131072, flags & 0xFFFFFFFF) + abi.INIT_IN_FLAGS2.pack(flags >> 32) + bytes(44)


def test_init_grants_what_both_sides_have() -> None:
    offered = (
        abi.Init.ASYNC_DIO | abi.Init.MAX_PAGES | abi.Init.INIT_EXT | abi.Init.HAS_RESEND | abi.Init.WRITEBACK_CACHE
    )
    facts, reply = negotiate(init_request(40, offered))
    assert facts.resend and facts.minor == 40
    fields = abi.INIT_OUT.unpack(reply)
    granted = fields[3] | fields[10] << 32
    assert granted == facts.flags == int(offered & ~abi.Init.WRITEBACK_CACHE)
    assert fields[6] == MAX_WRITE and fields[8] == MAX_WRITE // 4096


def test_init_of_an_older_kernel() -> None:
    facts, _ = negotiate(init_request(36, int(abi.Init.INIT_EXT | abi.Init.ASYNC_DIO)))
    assert not facts.resend
    without_extension, _ = negotiate(init_request(34, int(abi.Init.ASYNC_DIO) | int(abi.Init.HAS_RESEND)))
    assert not without_extension.resend, "flags2 means nothing without INIT_EXT"
    with pytest.raises(OSError, match=r"7\.27"):
        negotiate(init_request(27, 0))


def test_facts_survive_the_keeper() -> None:
    facts = SessionFacts(minor=41, flags=int(abi.Init.HAS_RESEND), max_write=MAX_WRITE)
    assert SessionFacts.from_dict(facts.as_dict()) == facts


def test_attributes() -> None:
    fields = abi.ATTR.unpack(encode_attributes(Attributes(inode=2, mode=stat.S_IFREG | 0o600, size=4097, time=1.5)))
    assert fields[:6] == (2, 4097, 9, 1, 1, 1)
    assert fields[6] == 500_000_000 and fields[9] == stat.S_IFREG | 0o600


def test_directory_entries_are_whole_and_padded() -> None:
    entries = [DirectoryEntry(name, 2, stat.S_IFREG) for name in (b"a", b"12345678", b"longer-name")]
    everything = encode_entries(entries, 5, 4096)
    assert len(everything) == (24 + 8) + (24 + 8) + (24 + 16)
    assert abi.DIRENT.unpack_from(everything) == (2, 6, 1, 8)
    assert encode_entries(entries, 5, 70) == everything[:64]
    assert encode_entries(entries, 0, 10) == b""


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EROFS, ""), errno.EROFS), (NoSpace("full"), errno.ENOSPC), (NotFound("x"), errno.ENOENT),
        (Fenced("x"), errno.EIO), (Corruption("x"), errno.EIO), (ValueError("x"), errno.EIO),
    ],
)  # fmt: skip
def test_error_numbers(error: Exception, number: int) -> None:
    assert error_number(error) == number


class TestSlabPool:
    def test_small_requests_share_a_slab(self) -> None:
        pool = SlabPool(MAX_WRITE, 2)
        leases = []
        for _ in range(300):
            assert pool.space() is not None
            leases.append(pool.take(4096))
        addresses = {id(lease.data.obj) for lease in leases}
        assert len(addresses) == 2, "256 pages fit behind one another before the space left is too small"

    def test_exhausted_and_back(self) -> None:
        pool = SlabPool(MAX_WRITE, 2)
        leases = []
        while pool.space() is not None:
            leases.append(pool.take(MAX_WRITE))
        assert len(leases) == 4
        leases.pop().release()
        assert pool.space() is None, "the slab is shared with another request"
        leases.pop().release()
        assert pool.space() is not None

    @given(st.lists(st.tuples(st.integers(1, MAX_WRITE), st.booleans(), st.randoms()), max_size=120))
    def test_no_two_live_leases_overlap(self, steps: list[tuple[int, bool, object]]) -> None:
        pool = SlabPool(MAX_WRITE, 3)
        live: list[tuple[Lease, bytes]] = []
        for number, (size, release, chooser) in enumerate(steps):
            if pool.space() is not None:
                lease = pool.take(size)
                assert len(lease.data) == size
                mark = number.to_bytes(4, "little")
                lease.data[: min(4, size)] = mark[: min(4, size)]
                lease.data[-1] = number & 0xFF
                live.append((lease, mark))
            if release and live:
                lease, mark = live.pop(chooser.randrange(len(live)))  # type: ignore[attr-defined]
                head = bytes(lease.data[: min(4, len(lease.data) - 1)])
                assert head == mark[: len(head)] and lease.data[-1] == mark[0]
                lease.release()
        for lease, _ in live:
            lease.release()
        for _ in range(6):
            assert pool.space() is not None
            pool.take(MAX_WRITE)
