"""What INIT negotiates, and the facts a later process needs to go on with the same connection."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from curve_storage.fuse import abi
from curve_storage.units import KiB, MiB

MAX_WRITE = MiB
_PAGE = 4 * KiB
_WANTED = (
    abi.Init.ASYNC_READ
    | abi.Init.BIG_WRITES
    | abi.Init.ASYNC_DIO
    | abi.Init.PARALLEL_DIROPS
    | abi.Init.MAX_PAGES
    | abi.Init.EXPLICIT_INVAL_DATA
    | abi.Init.INIT_EXT
    | abi.Init.HAS_RESEND
)
_MAX_BACKGROUND = 512  # asynchronous requests in flight; the kernel's default of 12 starves a block device
_CONGESTION = 384


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """Negotiated at mount and true as long as the connection lives. Sizes in bytes."""

    minor: int
    flags: int
    max_write: int

    @property
    def resend(self) -> bool:
        """The kernel repeats unanswered requests to a new reader."""
        return bool(self.flags & abi.Init.HAS_RESEND)

    def as_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SessionFacts:
        return cls(minor=int(data["minor"]), flags=int(data["flags"]), max_write=int(data["max_write"]))


def negotiate(request: bytes | memoryview) -> tuple[SessionFacts, bytes]:
    """The facts and the body of the reply to an INIT request body. OSError(EPROTO) for a kernel too old."""
    major, minor, readahead, flags = abi.INIT_IN.unpack_from(request)
    if major != abi.MAJOR or minor < abi.MINOR_LEAST:
        raise OSError(errno.EPROTO, f"the kernel speaks FUSE {major}.{minor}, {abi.MAJOR}.{abi.MINOR_LEAST} is needed")
    if flags & abi.Init.INIT_EXT and len(request) >= abi.INIT_IN.size + abi.INIT_IN_FLAGS2.size:
        flags |= abi.INIT_IN_FLAGS2.unpack_from(request, abi.INIT_IN.size)[0] << 32
    granted = int(flags & _WANTED)
    facts = SessionFacts(minor=min(minor, abi.MINOR), flags=granted, max_write=MAX_WRITE)
    body = abi.INIT_OUT.pack(
        abi.MAJOR, facts.minor, readahead, granted & 0xFFFFFFFF, _MAX_BACKGROUND, _CONGESTION,
        MAX_WRITE, 1, MAX_WRITE // _PAGE, 0, granted >> 32, 0,
    )  # fmt: skip
    return facts, body
