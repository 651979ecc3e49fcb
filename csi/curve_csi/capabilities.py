"""Which volume capabilities the driver serves, and what it advertises. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from curve_csi.proto import csi_pb2 as csi
from curve_storage.errors import InvalidArgument

Mode = csi.VolumeCapability.AccessMode
WRITER_MODES = {Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_SINGLE_WRITER, Mode.SINGLE_NODE_MULTI_WRITER}
READER_MODES = {Mode.SINGLE_NODE_READER_ONLY}
FILESYSTEMS = ("ext4", "xfs")
DEFAULT_FILESYSTEM = "ext4"

ControllerType = csi.ControllerServiceCapability.RPC
NodeType = csi.NodeServiceCapability.RPC
CONTROLLER = (
    ControllerType.CREATE_DELETE_VOLUME,
    ControllerType.PUBLISH_UNPUBLISH_VOLUME,
    ControllerType.LIST_VOLUMES,
    ControllerType.LIST_VOLUMES_PUBLISHED_NODES,
    ControllerType.GET_CAPACITY,
    ControllerType.PUBLISH_READONLY,
    ControllerType.EXPAND_VOLUME,
    ControllerType.VOLUME_CONDITION,
    ControllerType.GET_VOLUME,
    ControllerType.SINGLE_NODE_MULTI_WRITER,
    ControllerType.GET_VOLUME_HEALTH,
    ControllerType.LIST_VOLUME_HEALTH,
)
NODE = (
    NodeType.STAGE_UNSTAGE_VOLUME,
    NodeType.GET_VOLUME_STATS,
    NodeType.EXPAND_VOLUME,
    NodeType.VOLUME_CONDITION,
    NodeType.SINGLE_NODE_MULTI_WRITER,
    NodeType.GET_VOLUME_HEALTH,
)


def problem(capability: csi.VolumeCapability) -> str | None:
    """Why the driver cannot serve this capability, as a sentence; None when it can."""
    kind = capability.WhichOneof("access_type")
    if kind is None:
        return "the capability names neither mount nor block"
    mode = capability.access_mode.mode
    if mode == Mode.UNKNOWN:
        return "the capability has no access mode"
    if mode not in WRITER_MODES and mode not in READER_MODES:
        return (
            f"access mode {Mode.Mode.Name(mode)} is not supported: a block volume is attached to one node at a time; "
            "use ReadWriteOnce or ReadWriteOncePod"
        )
    if kind == "mount" and capability.mount.fs_type not in ("", *FILESYSTEMS):
        return f"file system {capability.mount.fs_type!r} is not supported; use {' or '.join(FILESYSTEMS)}"
    if kind == "mount" and capability.mount.volume_mount_group:
        return "volume_mount_group is not supported by block volumes; use fsGroup"
    return None


def check(capabilities: Iterable[csi.VolumeCapability]) -> None:
    """Raises InvalidArgument when there is none, or one that cannot be served."""
    found = list(capabilities)
    if not found:
        raise InvalidArgument(
            "no volume capability given", where="volume_capabilities", todo="Name an access mode and mount or block"
        )
    for capability in found:
        reason = problem(capability)
        if reason is not None:
            raise InvalidArgument(reason, where="volume_capabilities", todo="Change the StorageClass or the claim")


def one(capability: csi.VolumeCapability) -> csi.VolumeCapability:
    check([capability])
    return capability


def filesystem(capability: csi.VolumeCapability, context_type: str = "") -> str:
    return capability.mount.fs_type or context_type or DEFAULT_FILESYSTEM
