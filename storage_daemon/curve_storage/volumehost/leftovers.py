"""What a node still has of volumes that nobody owns: found at start, cleaned where provably ours, else reported."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from pathlib import Path

from curve_storage.attach import loop
from curve_storage.attach.volume_file import FILE_NAME
from curve_storage.errors import CurveError
from curve_storage.fuse import mount
from curve_storage.telemetry import logs
from curve_storage.volumehost.attachment import Node, kept_name
from curve_storage.volumehost.probe import probe

_log = logs.get("leftovers")
_DEADLINE = 10.0


def volume_of(path: Path, volumes: Path, last: str) -> int | None:
    """The volume id when `path` is `volumes`/<id>/…/`last`, however deep; else None."""
    try:
        parts = path.relative_to(volumes).parts
    except ValueError:
        return None
    if len(parts) < 2 or not parts[0].isdecimal() or parts[-1] != last:
        return None
    return int(parts[0])


async def clean(node: Node, owned: Container[int]) -> list[str]:
    """Remove loop devices, mounts and kept descriptors of volumes not in `owned`: a sentence for each one in use."""
    problems: list[str] = []
    busy: set[int] = set()
    volumes = node.config.volumes
    for device in loop.bound_devices():
        volume_id = volume_of(Path(device.backing.removesuffix(" (deleted)")), volumes, FILE_NAME)
        if volume_id is None or volume_id in owned:
            continue
        try:
            await asyncio.wait_for(asyncio.to_thread(loop.detach, device, patience=0.5), _DEADLINE)
            _log.warning("a loop device without an owner was detached", device=str(device.path), volume=volume_id)
        except (CurveError, OSError, TimeoutError) as error:
            busy.add(volume_id)
            problems.append(f"{device.path} of volume {volume_id} has no owner and cannot be detached: {error}")
    for entry in mount.mounts():
        volume_id = volume_of(entry.target, volumes, "mount")
        if volume_id is None or volume_id in owned or entry.filesystem != mount.FILESYSTEM_TYPE:
            continue
        if volume_id in busy:
            continue
        try:
            await probe("unmount", entry.target, deadline=_DEADLINE)
            _log.warning("a mount without an owner was unmounted", target=str(entry.target))
        except CurveError as error:
            busy.add(volume_id)
            problems.append(f"{entry.target} has no owner and cannot be unmounted: {error.what}")
    for name in await node.keeper.names():
        number = name.removeprefix("volume-")
        if not number.isdecimal() or name != kept_name(int(number)):
            continue
        if int(number) not in owned and int(number) not in busy:
            await node.keeper.delete(name)
            _log.warning("a descriptor without an owner was dropped", name=name)
    for volume_id in node.store.volume_ids():
        if volume_id not in owned and volume_id not in busy:
            node.store.remove(volume_id)
    for problem in problems:
        _log.error(problem)
    return problems
