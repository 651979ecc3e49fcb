"""Reading verified bytes of a chunk: page cache first, a thread when that would block, another replica when bad."""

from __future__ import annotations

import asyncio

from curve_storage.chunkserver.chunk_file import ChunkFile
from curve_storage.chunkserver.copyset import Copyset
from curve_storage.chunkserver.repair import Repairer
from curve_storage.consensus.api import Buffer
from curve_storage.errors import ChunkNotExist, Corruption, Unavailable
from curve_storage.units import BLOCK_SIZE

_ATTEMPTS = 5


def read_now(copyset: Copyset, chunk_id: int, offset: int, length: int) -> Buffer | None:
    """Verified bytes if they are at hand; None: use `read`. Raises ChunkNotExist, DiskFailed."""
    chunk = copyset.chunks.get(chunk_id)
    if chunk is None:
        if chunk_id in copyset.chunks.hollow:
            return None
        raise ChunkNotExist("the chunk was never written", where=f"chunk {chunk_id}")
    data = chunk.read_now(offset, length)
    if data is None or chunk.check(offset, data):
        return None
    return data


async def read(copyset: Copyset, chunk_id: int, offset: int, length: int, repairer: Repairer) -> Buffer:
    """Verified bytes, whatever it takes. Raises ChunkNotExist, Corruption, Unavailable, DiskFailed."""
    for _ in range(_ATTEMPTS):
        chunk = await present(copyset, chunk_id, repairer, offset, length)
        if not isinstance(chunk, ChunkFile):
            return chunk
        data, bad = await read_checked(copyset, chunk, offset, length)
        if data is None:
            continue
        if not bad:
            return data
        await repairer.repair(copyset, chunk_id, bad)
    raise Corruption(
        "the bytes still do not match their checksums after repair",
        where=f"chunk {chunk_id} offset {offset}",
        todo="Check the disk and the memory of this node",
    )


async def present(copyset: Copyset, chunk_id: int, repairer: Repairer, offset: int, length: int) -> ChunkFile | Buffer:
    """The chunk's file, or for a hollow chunk that cannot have one now, the bytes from another replica."""
    chunk = copyset.chunks.get(chunk_id)
    if chunk is not None:
        return chunk
    if chunk_id not in copyset.chunks.hollow:
        raise ChunkNotExist("the chunk was never written", where=f"chunk {chunk_id}")
    if copyset.chunks.materialize(chunk_id):
        chunk = copyset.chunks.get(chunk_id)
        if chunk is not None:
            return chunk
    parts = bytearray()
    first, count = offset // BLOCK_SIZE, length // BLOCK_SIZE
    for block in range(first, first + count, 256):
        _, data = await repairer.fetch(copyset, chunk_id, block, min(256, first + count - block))
        parts += data
    if not copyset.chunks.exists(chunk_id):
        raise Unavailable("the chunk was deleted while it was read", where=f"chunk {chunk_id}", todo="Retry")
    return parts


async def read_checked(copyset: Copyset, chunk: ChunkFile, offset: int, length: int) -> tuple[Buffer | None, list[int]]:
    """(bytes, bad blocks); no bytes: the chunk was closed or deleted meanwhile."""
    data = chunk.read_now(offset, length)
    if data is None:
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(copyset.around.io, chunk.read_blocking, offset, length)
        if chunk.stale:
            return None, []
    bad = chunk.check(offset, data)
    # A write may have run beside the thread's read: what is really bad is so when read again alone.
    if bad and not any(copyset.is_bad(chunk, block) for block in bad):
        data = chunk.read_blocking(offset, length)
        bad = chunk.check(offset, data)
    return data, bad
