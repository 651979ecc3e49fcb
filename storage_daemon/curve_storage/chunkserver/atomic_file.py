"""Small files that are whole or absent: temporary file, fsync, rename, fsync of the directory.

A sealed file is magic (8 bytes), body length and CRC32C of the body (u32 each, little-endian), body.
"""

from __future__ import annotations

import os
from pathlib import Path
from struct import Struct

from crc32c import crc32c

from curve_storage.errors import Corruption

_SEAL = Struct("<8sII")


def fsync_directory(path: Path) -> None:
    """Makes the names in `path` durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replaces `path` by `data`, durably. Raises OSError; the old file is then untouched."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    except OSError:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    os.close(descriptor)
    os.rename(temporary, path)
    fsync_directory(path.parent)


def seal(magic: bytes, body: bytes) -> bytes:
    return _SEAL.pack(magic, len(body), crc32c(body)) + body


def unseal(magic: bytes, data: bytes, *, where: str) -> bytes:
    """The body of a sealed file. Raises Corruption."""
    if len(data) < _SEAL.size:
        raise Corruption("the file is too short", where=where, todo="The replica must be rebuilt")
    found, length, checksum = _SEAL.unpack_from(data)
    body = data[_SEAL.size : _SEAL.size + length]
    if found != magic:
        raise Corruption(f"wrong magic {found!r}, expected {magic!r}", where=where, todo="The replica must be rebuilt")
    if len(body) != length or crc32c(body) != checksum:
        raise Corruption("the checksum does not match", where=where, todo="The replica must be rebuilt")
    return body
