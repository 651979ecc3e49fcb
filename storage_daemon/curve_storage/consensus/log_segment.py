"""Segment files: live ones in order of their sequence numbers, and a pool of files ready to be written.

A file in the pool is written out, so that a sync has no metadata to store, and has zeros in place of the first record's
header, so that it is never taken for a live segment. Recycling writes those durably before the file returns; only
those: torn, they leave either the whole old segment or none.
"""

from __future__ import annotations

import re
import threading

from curve_storage.consensus.config import LogConfig
from curve_storage.consensus.disk import Disk, DiskFile
from curve_storage.consensus.log_record import MAGIC_BYTES

_NAME = re.compile(r"^segment-(\d{4,})\.log$")
PAGE = 4096
ZERO_PAGE = bytes(PAGE)
NO_HEADER = bytes(len(MAGIC_BYTES))
"""Over a header's magic: the file is free. However such a write is torn, more than one bit of the magic is wrong then,
so that it is not taken for a header of which one bit has rotted."""


class Segment:
    """`last`: the highest index of each group with entries in it; `tail`: where the next record goes."""

    __slots__ = ("file", "last", "salt", "sequence", "tail")

    def __init__(self, sequence: int, salt: int, file: DiskFile) -> None:
        self.sequence = sequence
        self.salt = salt
        self.file = file
        self.tail = 0
        self.last: dict[int, int] = {}


class SegmentPool:
    """Files by number. `prepare` and `recycle` do I/O and may run in another thread; the rest never blocks."""

    def __init__(self, disk: Disk, config: LogConfig) -> None:
        self._disk = disk
        self._config = config
        self._lock = threading.Lock()
        self._free: list[DiskFile] = []
        self._numbers: set[int] = set()
        self.max_files = config.max_size // config.segment_size

    def existing(self) -> list[DiskFile]:
        """Opens every segment file found; the caller says which of them are free."""
        files = []
        for name in self._disk.names():
            match = _NAME.match(name)
            if match is not None:
                self._numbers.add(int(match.group(1)))
                files.append(self._disk.open(name))
        return files

    def add_free(self, file: DiskFile) -> None:
        with self._lock:
            self._free.append(file)

    def take(self) -> DiskFile | None:
        with self._lock:
            return self._free.pop() if self._free else None

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def files(self) -> int:
        return len(self._numbers)

    def wants_more(self) -> bool:
        return len(self._free) < self._config.ready_segments and len(self._numbers) < self.max_files

    def prepare(self, beyond_limit: bool = False) -> bool:
        """Writes one more file out; False when the limit is reached. Raises DiskFailed."""
        with self._lock:
            if len(self._numbers) >= self.max_files and not beyond_limit:
                return False
            number = next(n for n in range(1, len(self._numbers) + 2) if n not in self._numbers)
            self._numbers.add(number)
        try:
            file = self._disk.create(f"segment-{number:04d}.log", self._config.segment_size)
        except BaseException:
            with self._lock:
                self._numbers.discard(number)
            raise
        self.add_free(file)
        return True

    def recycle(self, file: DiskFile) -> None:
        """Makes the file ready again, or removes it when there are more than the limit. Raises DiskFailed."""
        match = _NAME.match(file.name)
        with self._lock:
            surplus = match is not None and len(self._numbers) > self.max_files
            if match is not None and surplus:
                self._numbers.discard(int(match.group(1)))
        if surplus:
            file.close()
            self._disk.remove(file.name)
            return
        file.write(0, [NO_HEADER])
        file.sync()
        self.add_free(file)

    def close(self) -> None:
        with self._lock:
            for file in self._free:
                file.close()
            self._free.clear()
