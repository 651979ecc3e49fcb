"""Chunkserver processes: replicated I/O, crashes, rot, membership, identity."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from curve_storage.chunkserver.chunk_file import DATA_START
from curve_storage.errors import Corruption, Fenced, Unauthenticated
from curve_storage.proto import mds_pb2
from curve_storage.units import BLOCK_SIZE
from curve_storage.wire.channel import ChannelPool
from curve_storage.wire.messages import MessageType

Block = Callable[[int], bytes]


def chunk_path(cluster: Any, node: int, group: int, chunk: int) -> Path:
    found: Path = cluster.processes[node - 1].data / "copysets" / f"{group:016x}" / f"chunk_{chunk:016x}"
    return found


def rot(path: Path, number: int) -> None:
    with open(path, "r+b") as file:
        file.seek(DATA_START + number * BLOCK_SIZE + 77)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 0x10]))


async def test_one_chunkserver_alone(cluster: Any, block: Block) -> None:
    await cluster.start(1)
    group = await cluster.copyset(1, [1])
    client = cluster.client(group)
    for number in range(50):
        await client.write(number % 3, number, block(number))
    await client.write(4, 0, os.urandom(1 << 20))
    await client.verify()
    process = cluster.processes[0]
    for end in (signal.SIGKILL, signal.SIGTERM):
        process.kill(end)
        old = cluster.mds.addresses[1]
        process.start()
        await cluster.until(lambda old=old: cluster.mds.addresses[1] != old, "registration with the new address")
        await client.verify()
        await client.write(9, 9, os.urandom(BLOCK_SIZE))
    assert len(cluster.mds.ids) == 1
    rot(chunk_path(cluster, 1, group, 1), 1)
    with pytest.raises(Corruption, match="chunk 1 block 1"):
        await client.read(1, 1)


async def test_three_replicas_are_equal_and_a_flipped_bit_heals(cluster: Any, block: Block) -> None:
    await cluster.start(3)
    group = await cluster.copyset(1, [1, 2, 3])
    client = cluster.client(group)
    async with asyncio.TaskGroup() as tasks:
        for number in range(400):
            tasks.create_task(client.write(number % 5, number, block(number)))
    await client.delete(3)
    await client.verify()
    leader = cluster.mds.leader(1)
    tables = {}
    for chunk in range(5):

        async def equal(chunk: int = chunk) -> bool:
            tables[chunk] = [await client.checksums(node, chunk) for node in (1, 2, 3)]
            return tables[chunk][0] == tables[chunk][1] == tables[chunk][2]

        end = time.monotonic() + 60
        while not await equal():
            assert time.monotonic() < end, f"replicas of chunk {chunk} differ"
            await asyncio.sleep(0.05)
        assert (tables[chunk][0] is None) == (chunk == 3)
    path = chunk_path(cluster, leader, group, 0)
    rot(path, 0)
    rot(path, 5)
    rot(path, 395)
    await client.verify()
    with open(path, "rb") as file:
        file.seek(DATA_START + 395 * BLOCK_SIZE)
        assert file.read(BLOCK_SIZE) == block(395), "repaired on the disk"
    others = [node for node in (1, 2, 3) if node != leader]
    for node in (leader, *others):
        rot(chunk_path(cluster, node, group, 1), 1)
    with pytest.raises(Corruption, match="chunk 1 block 1"):
        await client.read(1, 1)
    await client.write(1, 1, block(777))
    await client.verify()


@pytest.mark.timeout(240)
async def test_kill_9_of_any_process_at_any_time_loses_nothing_acknowledged(cluster: Any, block: Block) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    await cluster.start(3)
    clients = [cluster.client(await cluster.copyset(number, [1, 2, 3])) for number in (1, 2)]
    done = False

    async def work(client: Any, lane: int) -> None:
        while not done:
            chunk, number = rng.randint(1, 3), lane * 64 + rng.randint(0, 60)
            data = b"".join(block(rng.getrandbits(60)) for _ in range(rng.choice([1, 1, 1, 4])))
            await client.write(chunk, number, data)

    workers = [asyncio.create_task(work(client, lane)) for client in clients for lane in range(4)]
    try:
        for _ in range(6):
            await asyncio.sleep(rng.uniform(0.3, 1.0))
            for victim in rng.sample(cluster.processes, rng.choice([1, 1, 2, 3])):
                victim.kill()
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            for process in cluster.processes:
                if process.process is None:
                    process.start()
            before = [client.seq for client in clients]
            await cluster.until(
                lambda before=before: all(c.seq > old + 8 for c, old in zip(clients, before, strict=True)),
                "progress after a crash",
            )
    finally:
        done = True
        results = await asyncio.gather(*workers, return_exceptions=True)
    assert not [result for result in results if isinstance(result, BaseException)]
    for client in clients:
        await client.verify()
    for process in cluster.processes:
        process.kill()
    for process in cluster.processes:
        process.start()
    for client in clients:
        await client.verify()


async def test_fencing_through_the_log(cluster: Any, block: Block) -> None:
    await cluster.start(3)
    group = await cluster.copyset(1, [1, 2, 3])
    old = cluster.client(group)
    await old.write(1, 0, block(1))
    await old.write(1, 1, block(11))
    wall = time.time() + 600
    token = cluster.keyring.sign("cluster", epoch=0, rights="rw", expires=wall)
    pool = ChannelPool(token=lambda: token, client="mds")
    try:
        leader = pool.channel(cluster.mds.addresses[cluster.mds.leader(1)])
        meta = msgspec.msgpack.encode({"group": group, "volume": 5, "epoch": 2})
        await leader.call(MessageType.FENCE, meta, timeout=30)
    finally:
        await pool.close()
    with pytest.raises(Fenced):
        await old.write(1, 0, block(2))
    with pytest.raises(Fenced):
        await old.read(1, 0)
    new = cluster.client(group, epoch=2)
    assert await new.read(1, 0) == block(1)
    await new.write(1, 0, block(3))
    cluster.processes[cluster.mds.leader(1) - 1].kill()
    with pytest.raises(Fenced):
        await old.write(1, 1, block(4))
    assert await new.read(1, 0, 2) == block(3) + block(11), "also after a change of leader"


async def test_membership_follows_the_orders(cluster: Any, block: Block) -> None:
    await cluster.start(4)
    group = await cluster.copyset(1, [1, 2, 3])
    client = cluster.client(group)
    for number in range(60):
        await client.write(number % 4, number, block(number))
    order = mds_pb2.CopysetOrder
    mds = cluster.mds
    gone = next(node for node in (1, 2, 3) if node != mds.leader(1))
    # As the MDS does it: the new member first gets a replica that waits, then the leader changes the membership.
    joining = order(kind=order.CREATE, pool_id=1, copyset_id=1, epoch=1, members=[1, 2, 3])
    mds.orders.append((4, joining))
    await cluster.until(lambda: 1 in mds.reports.get(4, {}), "waiting replica")
    change = order(kind=order.CHANGE_PEER, pool_id=1, copyset_id=1, epoch=1, target=4, old=gone)
    mds.orders = [(node, change) for node in (1, 2, 3)]
    del mds.wanted[1]

    def moved() -> bool:
        leader = mds.leader(1)
        return bool(leader) and sorted(mds.reports[leader][1].voters) == sorted({1, 2, 3, 4} - {gone})

    await cluster.until(moved, "membership change")
    mds.orders = [(gone, order(kind=order.REMOVE_REPLICA, pool_id=1, copyset_id=1, epoch=99))]
    await cluster.until(lambda: 1 not in mds.reports[gone], "removal")
    mds.orders = []
    assert not chunk_path(cluster, gone, group, 1).parent.exists()
    await client.verify()
    leader = mds.leader(1)
    target = 4 if leader != 4 else next(node for node in (1, 2, 3) if node not in (gone, leader))
    epoch = mds.reports[leader][1].epoch
    transfer = order(kind=order.TRANSFER_LEADER, pool_id=1, copyset_id=1, epoch=epoch, target=target)
    mds.orders = [(leader, transfer)]
    await cluster.until(lambda: mds.leader(1) == target, "transfer of leadership")
    mds.orders = []
    # With the new member and one old one only: the moved replica is complete.
    cluster.processes[next(node for node in (1, 2, 3) if node not in (gone,)) - 1].kill()
    await client.verify()


async def test_a_damaged_replica_stays_out_and_is_rebuilt(cluster: Any, block: Block) -> None:
    await cluster.start(3)
    group = await cluster.copyset(1, [1, 2, 3])
    client = cluster.client(group)
    for number in range(40):
        await client.write(number % 2, number, block(number))
    mds = cluster.mds
    victim = next(node for node in (1, 2, 3) if node != mds.leader(1))
    process = cluster.processes[victim - 1]
    process.kill(signal.SIGTERM)
    meta = chunk_path(cluster, victim, group, 0).with_name("meta")
    meta.write_bytes(b"rubbish")
    process.start()
    await cluster.until(lambda: mds.reports[victim].get(1) and mds.reports[victim][1].corrupt, "corrupt report")
    await client.verify()
    order = mds_pb2.CopysetOrder
    del mds.wanted[1]
    others = [node for node in (1, 2, 3) if node != victim]
    leave = order(kind=order.REMOVE_PEER, pool_id=1, copyset_id=1, epoch=1, target=victim)
    mds.orders = [(node, leave) for node in others]
    await cluster.until(
        lambda: mds.leader(1) and sorted(mds.reports[mds.leader(1)][1].voters) == others, "membership without it"
    )
    mds.orders = [(victim, order(kind=order.REMOVE_REPLICA, pool_id=1, copyset_id=1, epoch=2))]
    await cluster.until(lambda: 1 not in mds.reports[victim], "removal")
    epoch = mds.reports[mds.leader(1)][1].epoch
    mds.orders = [(victim, order(kind=order.CREATE, pool_id=1, copyset_id=1, epoch=epoch, members=others))]
    await cluster.until(lambda: 1 in mds.reports[victim], "waiting replica")
    add = order(kind=order.ADD_PEER, pool_id=1, copyset_id=1, epoch=epoch, target=victim)
    mds.orders = [(node, add) for node in others]
    await cluster.until(
        lambda: mds.leader(1) and sorted(mds.reports[mds.leader(1)][1].voters) == [1, 2, 3], "rebuilt membership"
    )
    mds.orders = []
    cluster.processes[others[0] - 1].kill()
    await client.verify()


async def test_reports_are_sent_on_change_and_in_full_now_and_then(cluster: Any) -> None:
    await cluster.start(1, full_report_every=5)
    for number in range(1, 9):
        await cluster.copyset(number, [1])
    seen = len(cluster.mds.sizes)
    await cluster.until(lambda: len(cluster.mds.sizes) >= seen + 12, "heartbeats")
    sizes = cluster.mds.sizes[seen + 1 : seen + 12]
    assert set(sizes) == {0, 8}
    assert sizes.count(8) in (2, 3)


async def test_identity(cluster: Any, real: SimpleNamespace, tmp_path: Path) -> None:
    await cluster.start(1)
    process = cluster.processes[0]
    process.kill(signal.SIGTERM)
    cluster.mds.cluster_id = "cluster-two"
    process.start()
    assert await process.wait() == 1
    assert "belongs to cluster cluster-one" in process.text()
    cluster.mds.cluster_id = "cluster-one"

    used = cluster.add("used")
    used.data.mkdir()
    (used.data / "holiday.jpg").write_bytes(b"precious")
    used.start()
    assert await used.wait() == 1
    assert "not empty (holiday.jpg)" in used.text()
    assert (used.data / "holiday.jpg").read_bytes() == b"precious"

    process.start()
    twin = cluster.add("twin", data=str(process.data))
    beats = len(cluster.mds.sizes)
    await cluster.until(lambda: len(cluster.mds.sizes) > beats, "heartbeat")
    twin.start()
    assert await twin.wait() == 1
    assert "another chunkserver uses this directory" in twin.text()
    wrong = cluster.add("wrong", colour="blue")
    wrong.start()
    assert await wrong.wait() == 78
    assert "colour" in wrong.text()


async def test_probes_metrics_and_the_end(cluster: Any, real: SimpleNamespace, block: Block) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    await cluster.start(1, http=f"127.0.0.1:{port}")
    await cluster.until(lambda: real.http(port, "/readyz")[0] == 200, "readiness")
    assert real.http(port, "/healthz")[0] == 200
    client = cluster.client(await cluster.copyset(1, [1]))
    await client.write(1, 1, block(1))
    await client.read(1, 1)
    page = real.http(port, "/metrics")[1]
    for line in (
        'curve_chunkserver_io_seconds_count{op="write"} 1.0',
        'curve_chunkserver_io_seconds_count{op="read"} 1.0',
        "curve_chunkserver_leaders 1.0",
        "curve_chunkserver_pool_total 11.0",
    ):
        assert line in page, page
    stranger = ChannelPool(token=lambda: b"x" * 64, client="stranger")
    try:
        with pytest.raises(Unauthenticated):
            await stranger.channel(cluster.mds.addresses[1]).call(MessageType.GET_LEADER, b"", timeout=10)
    finally:
        await stranger.close()
    assert cluster.processes[0].kill(signal.SIGTERM) == 0


async def test_a_stopping_chunkserver_hands_its_leaderships_over(cluster: Any, block: Block) -> None:
    await cluster.start(3)
    group = await cluster.copyset(1, [1, 2, 3])
    client = cluster.client(group)
    await client.write(1, 0, block(1))
    leader = cluster.mds.leader(1)
    process = cluster.processes[leader - 1]
    assert process.kill(signal.SIGTERM) == 0
    assert '"stopped"' in process.text()
    await client.write(1, 1, block(2))
    await client.verify()
