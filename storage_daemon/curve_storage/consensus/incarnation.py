"""A number that grows with every start of this node, durable before the process speaks: peers that see a new one know
for certain that the old process, and any lease it held, is gone."""

from __future__ import annotations

import os
from pathlib import Path

from curve_storage.errors import Corruption, DiskFailed


def next_incarnation(path: Path) -> int:
    """Raises DiskFailed, Corruption."""
    try:
        present = int(path.read_text()) if path.exists() else 0
    except ValueError as error:
        raise Corruption(
            "not a number", where=str(path), todo="Write a number larger than any before, or rebuild this node"
        ) from error
    except OSError as error:
        raise DiskFailed(f"cannot read: {error.strerror}", where=str(path), todo="Check the disk") from error
    fresh = path.with_suffix(".new")
    try:
        with fresh.open("w") as file:
            file.write(str(present + 1))
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
