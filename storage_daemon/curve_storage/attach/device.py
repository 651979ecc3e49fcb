"""What the backends serve: the client's BlockVolume, or anything of this shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from curve_storage.errors import Fenced

Buffer = bytes | bytearray | memoryview


class BlockDevice(Protocol):
    """Offsets and lengths in bytes, any alignment, within `size`. Operations may overlap; order among them is free."""

    @property
    def size(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    @property
    def fenced(self) -> bool:
        """Another node has the volume: every operation raises Fenced, for good."""
        ...

    async def read(self, offset: int, length: int) -> Buffer: ...

    async def write(self, offset: int, data: memoryview) -> None:
        """Durable when it returns; `data` is not used afterwards."""
        ...

    async def discard(self, offset: int, length: int) -> None:
        """The range reads as zeros afterwards; its space is freed where possible."""
        ...

    async def flush(self) -> None: ...

    async def refresh(self) -> int:
        """Ask for the present size."""
        ...

    async def close(self) -> None: ...

    def stalled(self) -> str | None:
        """What operations wait for; None while they flow."""
        ...

    def on_fenced(self, callback: Callable[[], None]) -> None: ...


class FencedDevice:
    """Stands in for a volume that another node has taken: every operation fails, nothing hangs."""

    fenced = True
    read_only = True

    def __init__(self, size: int, reason: Fenced) -> None:
        self.size = size
        self._reason = reason

    async def read(self, offset: int, length: int) -> Buffer:
        raise self._reason

    async def write(self, offset: int, data: memoryview) -> None:
        raise self._reason

    async def discard(self, offset: int, length: int) -> None:
        raise self._reason

    async def flush(self) -> None:
        raise self._reason

    async def refresh(self) -> int:
        raise self._reason

    async def close(self) -> None:
        """Nothing is held."""

    def stalled(self) -> str | None:
        return None

    def on_fenced(self, callback: Callable[[], None]) -> None:
        callback()
