"""A disk in memory that loses and tears what was not synced."""

from __future__ import annotations

import random
from collections.abc import Sequence

from curve_storage.consensus.api import Buffer
from curve_storage.errors import DiskFailed

_SECTOR = 512


class SimFile:
    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.durable = bytearray(size)
        self.view = bytearray(size)
        self.unsynced: list[tuple[int, bytes]] = []
        self.broken = False

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.view[offset : offset + length])

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        assert offset + len(data) <= len(self.view), "write beyond the segment"
        self.view[offset : offset + len(data)] = data
        self.unsynced.append((offset, data))

    def sync(self) -> None:
        if self.broken:
            raise DiskFailed("simulated EIO", where=self.name)
        for offset, data in self.unsynced:
            self.durable[offset : offset + len(data)] = data
        self.unsynced.clear()

    def close(self) -> None:
        pass

    def crash(self, rng: random.Random) -> None:
        """Every unsynced write survives, is lost, is cut short, or survives in some of its sectors."""
        for offset, data in self.unsynced:
            fate = rng.random()
            if fate < 0.25:
                kept = data
            elif fate < 0.5:
                continue
            elif fate < 0.75:
                kept = data[: rng.randrange(len(data) + 1)]
            else:
                for start in range(0, len(data), _SECTOR):
                    if rng.random() < 0.5:
                        part = data[start : start + _SECTOR]
                        self.durable[offset + start : offset + start + len(part)] = part
                continue
            self.durable[offset : offset + len(kept)] = kept
        self.unsynced.clear()
        self.view[:] = self.durable


class SimDisk:
    def __init__(self) -> None:
        self.files: dict[str, SimFile] = {}

    def names(self) -> list[str]:
        return sorted(self.files)

    def open(self, name: str) -> SimFile:
        return self.files[name]

    def create(self, name: str, size: int) -> SimFile:
        file = self.files[name] = SimFile(name, size)
        return file

    def remove(self, name: str) -> None:
        del self.files[name]

    def crash(self, rng: random.Random) -> None:
        for file in self.files.values():
            if file.unsynced:
                file.crash(rng)
