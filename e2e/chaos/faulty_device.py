"""A disk that obeys: healthy, slow, or failing a share of its reads, writes or syncs, as it is told at run time."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from curve_storage.attach.device import BlockDevice, Buffer
from curve_storage.errors import InvalidArgument

OPERATIONS = ("read", "write", "sync")


@dataclass(frozen=True)
class Mode:
    """delay: seconds added to each operation in `on`; fraction: share of them that fails with EIO, 0 to 1."""

    delay: float = 0.0
    fraction: float = 0.0
    on: frozenset[str] = field(default=frozenset(OPERATIONS))

    @classmethod
    def parse(cls, words: list[str]) -> Mode:
        """`ok` | `slow <milliseconds>` | `eio <fraction> <operation>[,<operation>…]`. Raises InvalidArgument."""
        try:
            match words:
                case ["ok"]:
                    return cls()
                case ["slow", milliseconds]:
                    return cls(delay=float(milliseconds) / 1000)
                case ["eio", fraction, operations]:
                    on = frozenset(operations.split(","))
                    if on <= set(OPERATIONS) and 0 < float(fraction) <= 1:
                        return cls(fraction=float(fraction), on=on)
        except ValueError:
            pass
        raise InvalidArgument(f"no mode: {' '.join(words)}", todo=f"ok | slow MS | eio FRACTION {','.join(OPERATIONS)}")


class FaultyDevice:
    """Implements BlockDevice over another one. failed: operations that got EIO, by kind."""

    fenced = False
    read_only = False

    def __init__(self, device: BlockDevice, rng: random.Random) -> None:
        self.mode = Mode()
        self.failed = dict.fromkeys(OPERATIONS, 0)
        self._device = device
        self._rng = rng

    @property
    def size(self) -> int:
        return self._device.size

    async def _obey(self, operation: str) -> None:
        mode = self.mode
        if operation not in mode.on:
            return
        if mode.delay:
            await asyncio.sleep(mode.delay)
        if mode.fraction and self._rng.random() < mode.fraction:
            self.failed[operation] += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def read(self, offset: int, length: int) -> Buffer:
        await self._obey("read")
        return await self._device.read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        await self._obey("write")
        await self._device.write(offset, data)

    async def discard(self, offset: int, length: int) -> None:
        await self._obey("write")
        await self._device.discard(offset, length)

    async def flush(self) -> None:
        await self._obey("sync")
        await self._device.flush()

    async def refresh(self) -> int:
        return await self._device.refresh()

    async def close(self) -> None:
        await self._device.close()

    def stalled(self) -> str | None:
        return None

    def on_fenced(self, callback: Callable[[], None]) -> None:
        """Never happens."""
