"""How much is kept per volume and per segment: in etcd, and by a client that has the volume open."""

from __future__ import annotations

import random
import subprocess
import sys
import uuid

from bench.scale_cluster import resident
from curve_storage.client.segments import SegmentMap
from curve_storage.clock import ManualClock
from curve_storage.mds.records import (
    ChunkServerRecord,
    CopysetRecord,
    Entry,
    PoolRecord,
    Record,
    Segment,
    Session,
    encode,
    pack_ids,
)
from curve_storage.proto import mds_pb2 as pb
from curve_storage.units import CHUNK_SIZE, CHUNKS_PER_SEGMENT, SEGMENT_SIZE, GiB, TiB

COPYSETS = 100_000


def stored(record: Record) -> int:
    return len(record.key) + len(encode(record))


def record_bytes() -> dict[str, int]:
    """Bytes of key and value of typical records late in a large cluster's life. etcd adds its own overhead per
    revision and page, and keeps old revisions until it compacts."""
    rng = random.Random(1)
    number = 1_000_000
    copysets = [rng.randrange(1, COPYSETS) for _ in range(CHUNKS_PER_SEGMENT)]
    volume = Entry(
        id=number, parent=40_000, name=f"pvc-{uuid.UUID(int=rng.getrandbits(128))}", owner="csi", size=100 * GiB,
        created_ms=1_800_000_000_000, poolset="default", epoch=3, fenced_epoch=3, generation=2,
        attached_node="worker-0123", labels={"namespace": "production", "claim": "data-postgres-0"},
    )  # fmt: skip
    session = Session(
        id=f"{rng.getrandbits(128):032x}", volume=number, write=True, epoch=3, generation=2,
        client="worker-0123", opened_ms=1_800_000_000_000,
    )  # fmt: skip
    segment = Segment(
        volume=number, index=99_999, pool=3, first_chunk=number * CHUNKS_PER_SEGMENT, copysets=pack_ids(copysets)
    )
    copyset = CopysetRecord(pool=3, id=99_999, members=(9_001, 9_500, 10_000), epoch=12, established=True)
    chunkserver = ChunkServerRecord(
        id=10_000, uuid=str(uuid.UUID(int=rng.getrandbits(128))), secret=f"{rng.getrandbits(128):032x}",
        address="10.20.30.40:8200", server="worker-0123", zone="rack-17", physical_pool="default", poolset="default",
        disk_type="ssd", disk_path="/dev/disk/by-id/nvme-data", capacity=16 * TiB, version="0.1.0", confirmed=True,
    )  # fmt: skip
    pool = PoolRecord(
        id=3, name="pool-3", physical_pool="default", poolset="default", replicas=3, copysets=COPYSETS,
        scatter_width=200, zones=3, complete=True,
    )  # fmt: skip
    return {
        "a volume": stored(volume),
        "a session (while the volume is open)": stored(session),
        "a segment (1 GiB allocated)": stored(segment),
        "a copyset": stored(copyset),
        "a chunkserver": stored(chunkserver),
        "a pool": stored(pool),
    }


def client_memory(allocated: int) -> int:
    """Bytes of a block client's table of a volume with all of its `allocated` bytes written, as replies filled it:
    resident memory, in a process of its own."""
    command = [sys.executable, "-m", "bench.scale_sizes", str(allocated)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def fill(allocated: int) -> int:
    rng = random.Random(1)
    segments = SegmentMap(ManualClock(), exclusive=True)
    before = 0
    for index in range(allocated // SEGMENT_SIZE):
        if index == 1:  # the first reply loads what every reply needs
            before = resident()
        first = (index + 1) * CHUNKS_PER_SEGMENT
        reply = pb.GetSegmentReply(
            allocated=True,
            segment=pb.Segment(
                volume_id=1, offset=index * SEGMENT_SIZE, pool_id=3, chunk_size=CHUNK_SIZE,
                chunks=[
                    pb.Chunk(id=first + number, copyset_id=rng.randrange(1, COPYSETS))
                    for number in range(CHUNKS_PER_SEGMENT)
                ],
            ),
        )  # fmt: skip
        segments.store(index, reply)
    return resident() - before


if __name__ == "__main__":
    print(fill(int(sys.argv[1])))
