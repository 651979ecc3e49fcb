"""A number that grows with every start of this node, durable before the process speaks: peers that see a new one know
for certain that the old process, and any lease it held, is gone.

The file holds the number and the CRC32C of its digits. A damaged one is replaced by the microseconds since 1970: no
count of starts comes near, so the number still grows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from crc32c import crc32c

from curve_storage.errors import DiskFailed
from curve_storage.telemetry import logs

log = logs.get("incarnation")


def encode(number: int) -> bytes:
    return b"%d %08x\n" % (number, crc32c(b"%d" % number))


def decode(data: bytes) -> int:
    """Raises ValueError."""
    number = int(data.split()[0]) if data.strip() else -1
    if number < 0 or encode(number) != data:
        raise ValueError("the checksum does not match")
    return number


def next_incarnation(path: Path, wall: Callable[[], float] = time.time) -> int:
    """wall: seconds since 1970. Raises DiskFailed."""
    try:
        present = decode(path.read_bytes()) if path.exists() else 0
    except ValueError as error:
        present = int(wall() * 1_000_000)
        log.warning("incarnation file damaged, a larger number is taken", path=str(path), error=str(error))
    except OSError as error:
        raise DiskFailed(f"cannot read: {error.strerror}", where=str(path), todo="Check the disk") from error
    fresh = path.with_suffix(".new")
    try:
        with fresh.open("wb") as file:
            file.write(encode(present + 1))
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise DiskFailed(f"cannot write: {error.strerror}", where=str(path), todo="Check the disk") from error
    return present + 1
