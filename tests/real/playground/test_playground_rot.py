"""Bits flip in every kind of file of one chunkserver, between rounds of verified load: the cluster heals by itself."""

from __future__ import annotations

import asyncio
import random
import signal
import time

import pytest
from playground_checker import Checker
from playground_rot import Flip, Rot

from curve_storage.cli.playground import Playground, PlaygroundOptions
from curve_storage.cli.playground.processes import alive, send
from curve_storage.client import BlockVolume, Cluster, load_client_config
from curve_storage.errors import CurveError
from curve_storage.proto import mds_pb2
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE, GiB

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(900)]

POOL_SIZE = 2 * GiB
VICTIM = "chunkserver2"
LONGEST = 90.0
STEADY = 3.5  # seconds; heartbeats come every second
MET_AT_START = ("log", "hard", "checkpoint meta", "identity", "incarnation")
PER_CHUNK = CHUNK_SIZE // BLOCK_SIZE
AREAS = [(n * PER_CHUNK + 50, 64) for n in range(0, 60, 5)]


async def end(playground: Playground, name: str, number: signal.Signals) -> None:
    known = playground.identity(name)
    assert known is not None and send(known, number)
    async with asyncio.timeout(30):
        while alive(known):
            await asyncio.sleep(0.05)


async def restart(playground: Playground, cluster: Cluster, name: str) -> float:
    """Starts it, and waits until it serves and the cluster has been healthy for several of its heartbeats; how long
    that took."""
    log = playground.layout().logs / f"{name}.log"
    served = log.read_text(errors="replace").count('"event": "serving"')
    started = time.monotonic()
    await playground.up(PlaygroundOptions(), timeout=150)
    since, last = 0.0, "it does not serve"
    while time.monotonic() < started + 150:
        await asyncio.sleep(0.2)
        if log.read_text(errors="replace").count('"event": "serving"') <= served:
            continue
        try:
            status = await cluster.mds.admin.GetStatus(mds_pb2.Empty(), timeout=3)
            healthy, last = status.health == "healthy", "; ".join(reason.message for reason in status.reasons)
        except CurveError as error:
            healthy, last = False, str(error)
        since = (since or time.monotonic()) if healthy else 0.0
        if since and time.monotonic() - since > STEADY:
            return since - started
    pytest.fail(f"not healthy again: {last}")


def named(told: str, found: Flip) -> bool:
    """What the victim has logged since its start tells of the file, or of the replica whose checkpoint it is."""
    return (found.path.parent.name if found.kind == "checkpoint meta" else found.path.name) in told


async def test_flipped_bits_in_every_structure_heal(playground: Playground) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    rot = Rot(playground.layout().chunkserver_data(2), rng)
    log = playground.layout().logs / f"{VICTIM}.log"
    cluster = Cluster(load_client_config(playground.directory / "client.yaml"))
    try:
        await cluster.mds.namespace.CreateVolume(mds_pb2.CreateVolumeRequest(path="/rot", size=GiB), timeout=30)
        volume = await BlockVolume.open(cluster, path="/rot")
        checker = Checker(AREAS, seed=seed)
        checker.start(volume)
        try:
            await checker.progress(300, LONGEST)
            for number, flips in enumerate(rot.stopped()):
                if flips[0] == rot.chunk_header:
                    async with asyncio.timeout(120):
                        while not rot.checkpointed():
                            await asyncio.sleep(0.5)
                await end(playground, VICTIM, signal.SIGKILL if number == 0 else signal.SIGTERM)
                await checker.stop(LONGEST)
                rot.look()
                done = [one() for one in flips]
                before = log.stat().st_size
                seconds = await restart(playground, cluster, VICTIM)
                told = log.read_bytes()[before:].decode(errors="replace")
                for one in done:
                    print(f"{one.kind}: {one.path.relative_to(rot.data)} offset {one.offset}")
                    if one.kind.startswith(MET_AT_START):
                        assert named(told, one), f"{one} is not named in the log:\n{told}"
                print(f"healthy after {seconds:.1f} s", flush=True)
                checker.start(volume)
                await checker.progress(200, LONGEST)
            rot.look()
            for one_more in rot.running():
                found = one_more()
                print(f"{found.kind}, while running: {found.path.relative_to(rot.data)} offset {found.offset}")
            await checker.progress(200, LONGEST)
            await checker.stop(LONGEST)
            await end(playground, VICTIM, signal.SIGKILL)
            seconds = await restart(playground, cluster, VICTIM)
            print(f"restarted on what rotted while it ran: healthy after {seconds:.1f} s")
            checker.start(volume)
            await checker.progress(100, LONGEST)
            await checker.stop(LONGEST)
            # The healed replica is needed for every quorum now, and must have what it answers with.
            await end(playground, "chunkserver1", signal.SIGKILL)
            await checker.verify(volume)
            await restart(playground, cluster, "chunkserver1")
        finally:
            await checker.abandon()
            await volume.close()
    finally:
        await cluster.close()
