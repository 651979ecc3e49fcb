"""`meta` of a copyset: what a checkpoint says beside the chunk files. Sealed msgpack, replaced atomically.

Written after the chunk files are on the disk, so everything up to `index` is there when it says so. The chunk files may
hold later effects: replay of the log from index + 1 repeats them.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from curve_storage.chunkserver.atomic_file import seal, unseal
from curve_storage.errors import Corruption

FILE = "meta"
MAGIC = b"CURVECPM"
VERSION = 1


@dataclass(slots=True)
class CopysetMeta:
    """index, term: of the last applied entry. chunks: those that existed. hollow: those whose content is still to be
    fetched from another replica. writers: WriterTable.dump()."""

    group: int
    index: int = 0
    term: int = 0
    chunks: list[int] = field(default_factory=list)
    hollow: list[int] = field(default_factory=list)
    writers: dict[str, Any] = field(default_factory=lambda: {"fences": {}, "writers": {}})


def encode(meta: CopysetMeta) -> bytes:
    body = {
        "version": VERSION,
        "group": meta.group,
        "index": meta.index,
        "term": meta.term,
        "chunks": array("Q", meta.chunks).tobytes(),
        "hollow": meta.hollow,
        "writers": meta.writers,
    }
    return seal(MAGIC, msgspec.msgpack.encode(body))


def decode(data: bytes, *, where: str) -> CopysetMeta:
    """Raises Corruption."""
    body = unseal(MAGIC, data, where=where)
    try:
        state = msgspec.msgpack.decode(body, strict=False)
        if state["version"] != VERSION:
            raise Corruption(f"format {state['version']} is not known", where=where, todo="Run a newer chunkserver")
        chunks = array("Q")
        chunks.frombytes(state["chunks"])
        return CopysetMeta(
            group=state["group"],
            index=state["index"],
            term=state["term"],
            chunks=list(chunks),
            hollow=list(state["hollow"]),
            writers=state["writers"],
        )
    except (KeyError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise Corruption(f"not readable: {error}", where=where, todo="The replica must be rebuilt") from error


def load(directory: Path) -> CopysetMeta:
    """Raises Corruption, also when the file is absent."""
    path = directory / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise Corruption("the file is missing", where=str(path), todo="The replica must be rebuilt") from error
    return decode(data, where=str(path))
