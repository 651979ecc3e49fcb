"""StorageClass parameters of the block driver: known keys only, each checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from curve_csi.capabilities import FILESYSTEMS
from curve_storage.errors import InvalidArgument

RESERVED = "csi.storage.k8s.io/"
KNOWN = ("poolset", "owner", "user", "fsType", "mkfsOptions", "onDelete", "accessibility", "clusterID")
PURGE_LABEL = "csi.on-delete"


@dataclass(frozen=True)
class Parameters:
    """onDelete: recycle (the volume can be recovered for the bin's retention) or purge (space returns at once).
    accessibility: anywhere, or zone to bind volumes to the zones that the claim's topology asks for."""

    poolset: str = ""
    owner: str = "csi"
    filesystem: str = ""
    mkfs_options: str = ""
    on_delete: str = "recycle"
    accessibility: str = "anywhere"

    def context(self) -> dict[str, str]:
        """What the node needs, for volume_context."""
        pairs = {"fsType": self.filesystem, "mkfsOptions": self.mkfs_options}
        return {key: value for key, value in pairs.items() if value}


def parse(raw: Mapping[str, str]) -> Parameters:
    """Raises InvalidArgument for an unknown key or a value out of its set."""
    own = {key: value for key, value in raw.items() if not key.startswith(RESERVED)}
    for key in own:
        if key not in KNOWN:
            raise InvalidArgument(
                f"unknown parameter {key!r}",
                where="StorageClass parameters",
                todo=f"Known ones: {', '.join(KNOWN)}",
            )
    filesystem = own.get("fsType", raw.get(f"{RESERVED}fstype", ""))
    for key, value, allowed in (
        ("fsType", filesystem, ("", *FILESYSTEMS)),
        ("onDelete", own.get("onDelete", "recycle"), ("recycle", "purge")),
        ("accessibility", own.get("accessibility", "anywhere"), ("anywhere", "zone")),
    ):
        if value not in allowed:
            raise InvalidArgument(
                f"{value!r} is no value of parameter {key}",
                where="StorageClass parameters",
                todo=f"Use one of: {', '.join(word for word in allowed if word)}",
            )
    return Parameters(
        poolset=own.get("poolset", ""),
        owner=own.get("owner", own.get("user", "csi")),
        filesystem=filesystem,
        mkfs_options=own.get("mkfsOptions", ""),
        on_delete=own.get("onDelete", "recycle"),
        accessibility=own.get("accessibility", "anywhere"),
    )
