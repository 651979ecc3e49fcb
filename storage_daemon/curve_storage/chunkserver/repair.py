"""Blocks that this replica cannot vouch for are fetched from another one, verified, and put in their place.

A copy counts only when its replica has applied at least what this one had when the block was found bad: an older
replica could hold an older block with a perfectly good checksum.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
from crc32c import crc32c

from curve_storage.chunkserver.copyset import Copyset
from curve_storage.consensus.api import Addresses, Buffer
from curve_storage.errors import Corruption, CurveError, Unavailable
from curve_storage.telemetry import logs, metrics
from curve_storage.units import BLOCK_SIZE, MiB
from curve_storage.wire.channel import ChannelPool
from curve_storage.wire.messages import MessageType

LONGEST = MiB // BLOCK_SIZE
_TIMEOUT = 5.0
_ROUNDS = 4
_PAUSE = 0.25

log = logs.get("repair")
_encode = msgspec.msgpack.Encoder().encode
_repaired = metrics.counter("curve_chunkserver_blocks_repaired", "Bad blocks replaced from another replica")
_lost = metrics.counter("curve_chunkserver_blocks_unrepairable", "Bad blocks of which no replica had a good copy")


class FetchRequest(msgspec.Struct):
    """Meta of CHUNK_FETCH. applied: the log index the answering replica must have reached. Reply: meta = one u32 per
    block, its checksum or 0 for an unwritten one; payload = the data, empty when all are unwritten."""

    group: int
    chunk: int
    offset: int
    length: int
    applied: int = 0


class Replicas(Protocol):
    """Where copies come from."""

    async def fetch(self, node: int, request: FetchRequest) -> tuple[Buffer, Buffer]:
        """(entries, data) as in CHUNK_FETCH's reply. Raises CurveError."""
        ...


class RemoteReplicas:
    def __init__(self, channels: ChannelPool, addresses: Addresses) -> None:
        self._channels = channels
        self._addresses = addresses

    async def fetch(self, node: int, request: FetchRequest) -> tuple[Buffer, Buffer]:
        address = self._addresses.address(node)
        if address is None:
            raise Unavailable("its address is not known", where=f"chunkserver {node}")
        reply = await self._channels.channel(address).call(MessageType.CHUNK_FETCH, _encode(request), timeout=_TIMEOUT)
        return reply.meta, reply.payload


class Repairer:
    def __init__(
        self, node: int, replicas: Replicas, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._node = node
        self._replicas = replicas
        self._sleep = sleep
        self._locks: dict[tuple[int, int], asyncio.Lock] = {}

    async def repair(self, copyset: Copyset, chunk: int, blocks: Sequence[int]) -> None:
        """Replaces these blocks of the local replica. Raises Corruption (no good copy anywhere), Unavailable."""
        key = (copyset.group, chunk)
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                for first, count in runs(blocks):
                    await self._run(copyset, chunk, first, count)
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    async def _run(self, copyset: Copyset, chunk: int, first: int, count: int) -> None:
        open_chunk = copyset.chunks.get(chunk)
        if open_chunk is None and chunk not in copyset.chunks.hollow:
            return  # deleted meanwhile
        if open_chunk is not None and not any(copyset.is_bad(open_chunk, b) for b in range(first, first + count)):
            return  # somebody else repaired or rewrote them
        try:
            entries, data = await self.fetch(copyset, chunk, first, count)
        except Corruption:
            if count == 1:
                raise
            # Some block of the run is bad there too: each by itself, each from whoever has it.
            for block in range(first, first + count):
                await self._run(copyset, chunk, block, 1)
            return
        repaired = copyset.install(chunk, first, entries, data)
        if repaired:
            _repaired.inc(repaired)
            log.warning("blocks repaired", group=copyset.group, chunk=chunk, first=first, blocks=repaired)

    async def fetch(self, copyset: Copyset, chunk: int, first: int, count: int) -> tuple[Sequence[int], Buffer]:
        """A verified copy from any other member: one entry per block, and the data. Raises Corruption, Unavailable."""
        request = FetchRequest(copyset.group, chunk, first * BLOCK_SIZE, count * BLOCK_SIZE, copyset.applied)
        others = sorted(copyset.membership.members - {self._node})
        where = f"copyset {copyset.group >> 32}/{copyset.group & 0xFFFFFFFF} chunk {chunk} block {first}"
        reasons: dict[int, str] = {}
        for attempt in range(_ROUNDS):
            unsure = False
            for node in others:
                try:
                    return verified(*await self._replicas.fetch(node, request), count, where)
                except Corruption as error:
                    reasons[node] = error.what
                except CurveError as error:
                    reasons[node] = error.what
                    unsure = True
            if not unsure:
                break
            if attempt < _ROUNDS - 1:
                await self._sleep(_PAUSE)
        detail = "; ".join(f"chunkserver {node}: {reason}" for node, reason in reasons.items())
        if unsure:
            raise Unavailable(
                f"{count} block(s) are bad here and no other replica could be asked ({detail})",
                where=where,
                todo="Bring the copyset's other chunkservers back",
            )
        _lost.inc(count)
        raise Corruption(
            f"{count} block(s) are bad here and no other replica has a good copy ({detail or 'there is none'})",
            where=where,
            todo="Restore the volume's data from a backup; writing the blocks anew makes them readable again",
        )


def runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of consecutive numbers, each at most 1 MiB long."""
    found: list[tuple[int, int]] = []
    for block in sorted(set(blocks)):
        if found and found[-1][0] + found[-1][1] == block and found[-1][1] < LONGEST:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block, 1))
    return found


def verified(entries: Buffer, data: Buffer, count: int, where: str) -> tuple[Sequence[int], Buffer]:
    """Checks a reply of CHUNK_FETCH. Raises Corruption."""
    numbers = array("I")
    numbers.frombytes(bytes(entries))
    if not len(data) and not any(numbers):
        data = bytes(count * BLOCK_SIZE)
    if len(numbers) != count or len(data) != count * BLOCK_SIZE:
        raise Corruption("the copy has the wrong length", where=where, todo="Upgrade the older chunkserver")
    view = memoryview(data)
    for position, entry in enumerate(numbers):
        block = view[position * BLOCK_SIZE : (position + 1) * BLOCK_SIZE]
        if entry and (crc32c(block) or 1) != entry:
            raise Corruption("the copy was damaged on its way", where=where, todo="Check the network")
    return numbers, data
