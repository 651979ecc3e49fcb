"""Which loop device has a volume's file: asked of the kernel per device, never concluded from a path alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from curve_storage.attach import loop
from curve_storage.attach.volume_file import FILE_INODE
from curve_storage.mountinfo import Mount

_PATIENCE = 5.0


async def search(file: Path, mounted: Mount) -> loop.LoopDevice | None:
    """The device over `file`, the volume's file of the mount `mounted`; None when there is none."""
    wanted = loop.BackingFile(mounted.device, FILE_INODE)

    async def is_ours(device: loop.LoopDevice) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await asyncio.to_thread(loop.backing_file, device) == wanted
        except TimeoutError:
            return False  # a file whose server is gone: another volume's

    devices = loop.candidates(file)
    answers = await asyncio.gather(*(is_ours(device) for device in devices))
    return next((device for device, ours in zip(devices, answers, strict=True) if ours), None)
