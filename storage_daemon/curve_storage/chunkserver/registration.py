"""Makes this disk known to the MDS; also tells it a new address after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

from curve_storage import __version__
from curve_storage.chunkserver import identity as identity_file
from curve_storage.chunkserver.config import ChunkServerConfig
from curve_storage.chunkserver.identity import Identity
from curve_storage.errors import CurveError
from curve_storage.proto import mds_pb2
from curve_storage.rpc.leader import MdsClient
from curve_storage.telemetry import logs

_TIMEOUT = 5.0
_PAUSE = 1.0

log = logs.get("registration")


async def register(
    mds: MdsClient,
    config: ChunkServerConfig,
    identity: Identity,
    *,
    address: str,
    capacity: int,
    patience: float | None,
) -> Identity:
    """Registers and stores what the MDS assigned. patience: seconds of retrying while no MDS answers, None = for ever.

    Raises FailedPrecondition (disk of another cluster), or what the MDS refuses with."""
    request = mds_pb2.RegisterChunkServerRequest(
        uuid=identity.uuid,
        secret=identity.secret,
        address=address,
        server=config.server or config.name,
        zone=config.zone,
        physical_pool=config.physical_pool,
        poolset=config.poolset,
        disk_type=config.disk_type,
        disk_path=str(config.data),
        capacity=capacity,
        version=__version__,
    )
    loop = asyncio.get_running_loop()
    deadline = None if patience is None else loop.time() + patience
    while True:
        try:
            reply = await mds.topology.RegisterChunkServer(request, timeout=_TIMEOUT)
            break
        except CurveError as error:
            if not error.retryable or (deadline is not None and loop.time() >= deadline):
                raise
            log.warning("registration waits for the MDS", error=str(error))
            await asyncio.sleep(_PAUSE)
    registered = identity.registered_as(
        reply.chunkserver_id, reply.secret, reply.cluster_id, where=str(Path(config.data).absolute())
    )
    if registered != identity:
        identity_file.save(config.data, registered)
    log.info("registered", chunkserver=registered.chunkserver_id, cluster=registered.cluster_id, address=address)
    return registered
