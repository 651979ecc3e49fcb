"""The MDS as the operator sees it: one look, with a deadline, never an exception."""

from __future__ import annotations

import tempfile
from pathlib import Path

from curve_operator.observed import ChunkserverView, MdsView, PoolView
from curve_operator.security import data
from curve_operator.settings import Settings
from curve_storage.config import TlsFiles
from curve_storage.errors import CurveError
from curve_storage.proto import mds_pb2 as pb
from curve_storage.rpc.leader import MdsClient

TIMEOUT = 5.0
POOL_TIMEOUT = 60.0
NAMES_SHOWN = 6

_DISK_STATES = {
    pb.DISK_STATE_NORMAL: "normal",
    pb.DISK_STATE_ERROR: "error",
    pb.DISK_STATE_FULL: "full",
    pb.DISK_STATE_FORMATTING: "formatting",
}


class MdsConnection:
    """To one cluster; its TLS files live in a private folder and follow the Secret."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="curve-operator-")
        self._client: MdsClient | None = None
        self._key: tuple[object, ...] = ()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None
        self._directory.cleanup()

    async def client(self, settings: Settings, secret: object) -> MdsClient:
        """The connection, made anew when addresses or certificates changed."""
        files = {name: data(secret, name) for name in ("ca.crt", "tls.crt", "tls.key")} if settings.tls else {}  # type: ignore[arg-type]
        key = (tuple(settings.mds_addresses), tuple(sorted(files.items())))
        if self._client is not None and key == self._key:
            return self._client
        if self._client is not None:
            await self._client.close()
        tls = None
        if settings.tls:
            base = Path(self._directory.name)
            for name, content in files.items():
                path = base / name
                path.touch(mode=0o600)
                path.write_bytes(content)
            tls = TlsFiles(ca=base / "ca.crt", cert=base / "tls.crt", key=base / "tls.key")
        self._client = MdsClient(settings.mds_addresses, tls=tls, deadline=TIMEOUT)
        self._key = key
        return self._client


async def look(client: MdsClient, *, want_names: bool) -> MdsView:
    """want_names: also the paths of some volumes, for a deletion that must say what blocks it."""
    try:
        status = await client.admin.GetStatus(pb.Empty(), timeout=TIMEOUT)
        servers = await client.topology.ListChunkServers(pb.ListChunkServersRequest(), timeout=TIMEOUT)
        paths: tuple[str, ...] = ()
        if want_names and status.volumes:
            listing = await client.namespace.ListDirectory(
                pb.ListDirectoryRequest(path="/", recursive=True), timeout=TIMEOUT
            )
            paths = tuple(entry.path for entry in listing.entries if not entry.directory)[:NAMES_SHOWN]
    except CurveError as error:
        return MdsView(error=str(error))
    return view(status, servers, paths)


def view(status: pb.StatusReply, servers: pb.ListChunkServersReply, paths: tuple[str, ...] = ()) -> MdsView:
    return MdsView(
        cluster_id=status.cluster_id,
        health=status.health,
        reasons=tuple(reason.message for reason in status.reasons),
        leader=next((member.name for member in status.mds if member.leader), ""),
        pools=tuple(
            PoolView(pool.name, pool.replicas, pool.copysets, pool.copysets_healthy, pool.capacity, pool.used)
            for pool in status.pools
        ),
        chunkservers=tuple(
            ChunkserverView(
                id=item.id,
                address=item.address,
                server=item.server,
                zone=item.zone,
                physical_pool=item.physical_pool,
                online=item.online != pb.ONLINE_STATE_OFFLINE and item.last_heartbeat_ms > 0,
                state=_DISK_STATES.get(item.disk, "error"),
                format_percent=item.format_percent,
                disk_path=item.disk_path,
                version=item.version,
            )
            for item in servers.chunkservers
        ),
        copysets=status.copysets,
        copysets_healthy=status.copysets_healthy,
        copysets_available=status.copysets_available,
        volumes=status.volumes,
        volume_names=paths,
        volume_bytes=status.volume_bytes,
        capacity=status.capacity,
        used=status.used,
        versions=tuple(status.versions),
    )
