"""Bytes and inodes of a mounted file system, asked by a process of its own: a hung mount never hangs the plugin."""

from __future__ import annotations

from curve_csi.commands import run
from curve_csi.proto import csi_pb2 as csi
from curve_storage.errors import Internal


async def usage_of(path: str, deadline: float) -> list[csi.VolumeUsage]:
    """Raises DeadlineExceeded when the file system does not answer in `deadline` seconds."""
    result = await run(["stat", "-f", "-c", "%S %b %f %a %c %d", path], deadline=deadline)
    return parse(result.out, path)


def parse(text: str, path: str) -> list[csi.VolumeUsage]:
    """From "block-size blocks free available inodes free-inodes", as printed by stat -f."""
    try:
        size, blocks, free, available, inodes, free_inodes = (int(word) for word in text.split())
    except ValueError as error:
        raise Internal(f"stat printed {text.strip()!r}", where=path, todo="Report this") from error
    return [
        csi.VolumeUsage(
            unit=csi.VolumeUsage.BYTES, total=size * blocks, available=size * available, used=size * (blocks - free)
        ),
        csi.VolumeUsage(unit=csi.VolumeUsage.INODES, total=inodes, available=free_inodes, used=inodes - free_inodes),
    ]
