"""All processes killed at random moments, again and again: every acknowledged write is there."""

from __future__ import annotations

import asyncio
import os
import random
import time

import pytest
from playground_checker import Checker

from curve_storage.cli.playground import Playground, PlaygroundOptions
from curve_storage.client import BlockVolume, Cluster, load_client_config
from curve_storage.proto import mds_pb2
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE, GiB

ROUNDS = int(os.environ.get("CURVE_TEST_CRASH_ROUNDS", "10"))
UP_TIMEOUT = 180.0


@pytest.mark.etcd
@pytest.mark.timeout(1200)
async def test_acknowledged_writes_survive_the_death_of_everything(playground: Playground) -> None:
    seed = int(os.environ.get("CURVE_TEST_SEED", str(random.randrange(2**32))))
    print(f"seed {seed}")
    rng = random.Random(seed)
    per_chunk = CHUNK_SIZE // BLOCK_SIZE
    # Eight chunks, one of them crossing into the next, in both segments.
    areas = [(n * per_chunk + 100, 256) for n in (0, 1, 2, 7, 20, 40, 70)] + [(65 * per_chunk - 128, 256)]
    checker = Checker(areas, seed)
    config = load_client_config(playground.directory / "client.yaml")
    cluster = Cluster(config)
    await cluster.mds.namespace.CreateVolume(mds_pb2.CreateVolumeRequest(path="/crash", size=2 * GiB), timeout=30)
    volume = await BlockVolume.open(cluster, path="/crash")
    acknowledged = 0
    for crash in range(ROUNDS):
        checker.start(volume)
        await checker.progress(20, 60)
        await asyncio.sleep(rng.uniform(0.3, 3.0))
        killed = playground.kill_all()
        acknowledged += checker.stalls.count
        started = time.monotonic()
        keep_client = rng.random() < 0.5
        if not keep_client:
            # The client dies too: what it had under way may be there or not.
            await checker.abandon()
            await volume.close()
            await cluster.close()
        await playground.up(PlaygroundOptions(), timeout=UP_TIMEOUT)
        up = time.monotonic() - started
        if keep_client:
            await checker.progress(50, 120)
            await checker.stop(120)
        else:
            cluster = Cluster(config)
            volume = await BlockVolume.open(cluster, path="/crash")
        async with asyncio.timeout(120):
            compared = await checker.verify(volume)
        print(
            f"round {crash + 1}: {killed} processes killed, client {'kept' if keep_client else 'killed'}, "
            f"up again in {up:.1f} s, {compared} blocks as they should be"
        )
    assert acknowledged > 50 * ROUNDS, "there was a load worth the name"
    await volume.close()
    await cluster.close()
