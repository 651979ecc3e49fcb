"""What a node still has of volumes that nobody owns: found at start, cleaned where provably ours, else reported."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from pathlib import Path

from curve_storage.attach import loop
from curve_storage.attach.volume_file import FILE_INODE, FILE_NAME
from curve_storage.errors import CurveError
from curve_storage.fuse.mount import FILESYSTEM_TYPE
from curve_storage.mountinfo import Mount, mounts
from curve_storage.telemetry import logs
from curve_storage.volumehost.attachment import Node, kept_name
from curve_storage.volumehost.probe import probe

_log = logs.get("leftovers")
_DEADLINE = 10.0


def volume_of(target: Path, volumes: Path) -> int | None:
    """The volume id when `target` is `volumes`/<id>/mount; else None."""
    if target.name != "mount" or target.parent.parent != volumes or not target.parent.name.isdecimal():
        return None
    return int(target.parent.name)


async def _detach_devices(entry: Mount) -> None:
    file = loop.BackingFile(entry.device, FILE_INODE)
    for device in loop.candidates(entry.target / FILE_NAME):
        if await asyncio.wait_for(asyncio.to_thread(loop.backing_file, device), _DEADLINE) == file:
            await asyncio.wait_for(asyncio.to_thread(loop.detach, device, patience=0.5), _DEADLINE)


async def clean(node: Node, owned: Container[int]) -> list[str]:
    """Remove mounts, loop devices over them, and kept descriptors of volumes not in `owned`: a sentence for each one in
    use. A loop device is ours only if its file is on a mount of ours: others may have a file of the same path in
    another mount namespace."""
    problems: list[str] = []
    busy: set[int] = set()
    volumes = node.config.volumes
    for entry in mounts():
        volume_id = volume_of(entry.target, volumes)
        if volume_id is None or volume_id in owned or entry.filesystem != FILESYSTEM_TYPE:
            continue
        try:
            await _detach_devices(entry)
            await probe("unmount", entry.target, deadline=_DEADLINE)
            _log.warning("a mount without an owner was removed", target=str(entry.target), volume=volume_id)
        except (CurveError, OSError, TimeoutError) as error:
            busy.add(volume_id)
            problems.append(f"volume {volume_id} has no owner and its device cannot be removed: {error}")
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
