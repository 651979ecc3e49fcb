"""Are all replicas of every chunk the same? Compared by the checksums each keeps of its blocks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import msgspec

from curve_storage.chunkserver.cluster_token import ClusterToken
from curve_storage.clock import SystemClock
from curve_storage.errors import ChunkNotExist, CurveError
from curve_storage.proto import mds_pb2
from curve_storage.rpc.leader import MdsClient
from curve_storage.units import SEGMENT_SIZE
from curve_storage.wire.channel import ChannelPool
from curve_storage.wire.messages import MessageType, group_id
from curve_storage.wire.token import Keyring

_CALL = 10.0


@dataclass
class Comparison:
    """chunks: compared; different: a sentence for each whose replicas differ."""

    chunks: int
    different: list[str]


async def compare(mds: MdsClient, keyring: Path, volumes: list[str], *, patience: float) -> Comparison:
    """All chunks of the volumes, on all chunkservers. Followers apply what the leader did a moment later: a chunk may
    differ for `patience` seconds. No load may run."""
    pool = ChannelPool(token=ClusterToken(Keyring.load(keyring), SystemClock()), client="chaos")
    try:
        reply = await mds.topology.ListChunkServers(mds_pb2.ListChunkServersRequest(), timeout=_CALL)
        addresses = {one.server: one.address for one in reply.chunkservers}
        chunks = [chunk for path in volumes for chunk in await _chunks(mds, path)]
        deadline = asyncio.get_running_loop().time() + patience
        open_ones, reasons = chunks, dict[tuple[int, int], str]()
        while True:
            reasons = {}
            for group, chunk in open_ones:
                difference = await _difference(pool, addresses, group, chunk)
                if difference:
                    reasons[(group, chunk)] = difference
            open_ones = list(reasons)
            if not open_ones or asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.5)
        return Comparison(
            len(chunks), [f"chunk {chunk} of group {group:#x}: {why}" for (group, chunk), why in reasons.items()]
        )
    finally:
        await pool.close()


async def _chunks(mds: MdsClient, path: str) -> list[tuple[int, int]]:
    reference = mds_pb2.VolumeRef(path=path)
    volume = (await mds.namespace.GetVolume(mds_pb2.GetVolumeRequest(volume=reference), timeout=_CALL)).volume
    found = []
    for offset in range(0, volume.size, SEGMENT_SIZE):
        reply = await mds.namespace.GetSegment(
            mds_pb2.GetSegmentRequest(volume_id=volume.id, offset=offset), timeout=_CALL
        )
        if reply.allocated:
            pool = reply.segment.pool_id
            found += [(group_id(pool, chunk.copyset_id), chunk.id) for chunk in reply.segment.chunks]
    return found


async def _difference(pool: ChannelPool, addresses: dict[str, str], group: int, chunk: int) -> str:
    """Empty when all have the same, or all nothing."""
    tables: dict[str, bytes] = {}
    meta = msgspec.msgpack.encode({"group": group, "chunk": chunk})
    for server, address in addresses.items():
        try:
            reply = await pool.channel(address).call(MessageType.CHUNK_CHECKSUMS, meta, timeout=_CALL)
            tables[server] = bytes(reply.payload)
        except ChunkNotExist:
            tables[server] = b""
        except CurveError as error:
            return f"{server}: {error}"
    if len(set(tables.values())) == 1:
        return ""
    first = next(iter(tables.values()))
    parts = []
    for server, table in tables.items():
        blocks = sum(1 for n in range(0, len(table), 4) if table[n : n + 4] != first[n : n + 4])
        parts.append(f"{server} {len(table) // 4} blocks, {blocks} unlike the first")
    return "; ".join(parts)
