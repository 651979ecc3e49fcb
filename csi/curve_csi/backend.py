"""The controller's view of the storage cluster: volumes by id and by name, attachments, capacity. Over the MDS API."""

from __future__ import annotations

from dataclasses import dataclass

from curve_csi import volume_id
from curve_csi.volume_id import VolumeId
from curve_storage.errors import AlreadyExists, InvalidArgument, NotFound
from curve_storage.proto import mds_pb2 as mds
from curve_storage.rpc.leader import MdsClient
from curve_storage.units import format_size

DEADLINE = 25.0
NAME_LABEL = "csi.name"
CREATOR_LABEL = "csi.driver"
FILESYSTEM_LABEL = "csi.fstype"


@dataclass(frozen=True)
class Capacity:
    available: int
    minimum: int
    maximum: int


class BlockBackend:
    """`cluster_id` is asked once; ids of another cluster are refused with NotFound."""

    def __init__(self, client: MdsClient, driver: str) -> None:
        self._client = client
        self._driver = driver
        self._cluster = ""

    async def cluster(self) -> str:
        if not self._cluster:
            status = await self._client.admin.GetStatus(mds.Empty(), timeout=DEADLINE)
            self._cluster = status.cluster_id
        return self._cluster

    async def reachable(self, timeout: float) -> bool:
        await self._client.admin.GetStatus(mds.Empty(), timeout=timeout)
        return True

    async def id_of(self, volume: mds.Volume) -> VolumeId:
        return volume_id.make(await self.cluster(), volume.poolset or "default", volume.id)

    async def get(self, text: str) -> mds.Volume:
        """The live volume of an id. Raises InvalidArgument (empty) or NotFound."""
        wanted = volume_id.parse(text)
        if wanted.cluster != await self.cluster():
            raise NotFound(
                f"the volume belongs to cluster {wanted.cluster}", where=text, todo="Ask the driver of that cluster"
            )
        reply = await self._client.namespace.GetVolume(
            mds.GetVolumeRequest(volume=mds.VolumeRef(id=wanted.number)), timeout=DEADLINE
        )
        if reply.volume.deleted_ms:
            raise NotFound("the volume is in the recycle bin", where=text, todo="`curve volume recover` brings it back")
        return reply.volume

    async def create(
        self, name: str, size: int, limit: int, *, poolset: str, owner: str, labels: dict[str, str]
    ) -> mds.Volume:
        """Creates the volume of a request name, or finds it. Raises AlreadyExists when the found one differs."""
        path = volume_id.path_for(name)
        try:
            reply = await self._client.namespace.CreateVolume(
                mds.CreateVolumeRequest(
                    path=path,
                    size=size,
                    owner=owner,
                    poolset=poolset,
                    labels={NAME_LABEL: name, CREATOR_LABEL: self._driver, **labels},
                    create_parents=True,
                ),
                timeout=DEADLINE,
            )
            return reply.volume
        except AlreadyExists:
            found = (
                await self._client.namespace.GetVolume(
                    mds.GetVolumeRequest(volume=mds.VolumeRef(path=path)), timeout=DEADLINE
                )
            ).volume
        fits = found.size >= size and (not limit or found.size <= limit)
        if not fits or (poolset and found.poolset != poolset):
            raise AlreadyExists(
                f"a volume of this name exists with {format_size(found.size)} in poolset {found.poolset}",
                where=name,
                todo="Choose another name, or delete that volume first",
            )
        return found

    async def delete(self, volume: mds.Volume, *, purge: bool) -> None:
        """Idempotent. Raises InvalidArgument for a volume that the driver has not made."""
        if volume.labels.get(CREATOR_LABEL) != self._driver:
            raise InvalidArgument(
                f"volume {volume.path} was not made by this driver",
                where=volume.path,
                todo="Delete it with `curve volume delete`",
            )
        try:
            await self._client.namespace.DeleteVolume(
                mds.DeleteVolumeRequest(volume=mds.VolumeRef(id=volume.id), force=purge), timeout=DEADLINE
            )
        except NotFound:
            return

    async def attach(self, volume: mds.Volume, node: str, read_only: bool) -> mds.AttachVolumeReply:
        return await self._client.namespace.AttachVolume(
            mds.AttachVolumeRequest(volume=mds.VolumeRef(id=volume.id), node=node, read_only=read_only),
            timeout=DEADLINE,
        )

    async def release(self, text: str, node: str) -> None:
        """Idempotent: unknown volume, other holder or none at all is success."""
        try:
            volume = await self.get(text)
            await self._client.namespace.ReleaseVolume(
                mds.ReleaseVolumeRequest(volume=mds.VolumeRef(id=volume.id), node=node), timeout=DEADLINE
            )
        except NotFound:
            return

    async def extend(self, volume: mds.Volume, size: int) -> mds.Volume:
        reply = await self._client.namespace.ExtendVolume(
            mds.ExtendVolumeRequest(volume=mds.VolumeRef(id=volume.id), size=size), timeout=DEADLINE
        )
        return reply.volume

    async def page(self, limit: int, after: str) -> tuple[list[mds.Volume], str]:
        """Volumes under the driver's folder in order of path, after path `after`; the path to go on with, or ''."""
        try:
            reply = await self._client.namespace.ListDirectory(
                mds.ListDirectoryRequest(path=volume_id.FOLDER, limit=limit, start_after=after), timeout=DEADLINE
            )
        except NotFound:
            return [], ""
        volumes = [entry for entry in reply.entries if not entry.directory]
        return volumes, reply.entries[-1].path if reply.more else ""

    async def capacity(self, poolset: str) -> Capacity:
        """Bytes left for new volumes in a poolset ('' = all)."""
        reply = await self._client.topology.ListPools(mds.Empty(), timeout=DEADLINE)
        pools = [pool for pool in reply.pools if poolset in ("", pool.poolset)]
        if poolset and not pools:
            raise InvalidArgument(
                f"there is no poolset {poolset!r}",
                where="parameters.poolset",
                todo="`curve pool list` shows those there are",
            )
        available = sum(max(0, pool.capacity - pool.allocated) for pool in pools)
        largest = max((max(0, pool.capacity - pool.allocated) for pool in pools), default=0)
        return Capacity(available, 1 << 30, largest)

    async def health(self) -> mds.StatusReply:
        return await self._client.admin.GetStatus(mds.Empty(), timeout=DEADLINE)
