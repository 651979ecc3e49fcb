"""The process behind one faulty disk: a FUSE file over a backing file, and a socket that takes the mode.

    python -m e2e.chaos.disk_process --backing FILE --mount DIRECTORY --control SOCKET --seed N

A connection sends one line, a mode as of `faulty_device.Mode.parse` or `failed`, and reads one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
from pathlib import Path

from curve_storage.attach.file_device import FileDevice
from curve_storage.attach.volume_file import VolumeFile
from curve_storage.clock import SystemClock
from curve_storage.errors import CurveError
from curve_storage.fuse import mount
from curve_storage.fuse.session import Session
from e2e.chaos.faulty_device import FaultyDevice, Mode


async def serve(backing: Path, target: Path, control: Path, seed: int) -> None:
    """Until the kernel ends the connection: unmounted."""
    device = FaultyDevice(FileDevice(backing), random.Random(seed))
    ended = asyncio.Event()
    descriptor = mount.open_device()
    mount.mount(descriptor, target, "chaos-disk")
    session = Session(descriptor, VolumeFile(device), clock=SystemClock(), on_end=ended.set)
    session.start()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = (await reader.readline()).decode(errors="replace").split()
        reply: dict[str, object] = {"failed": device.failed}
        if words != ["failed"]:
            try:
                device.mode = Mode.parse(words)
            except CurveError as error:
                reply = {"error": str(error)}
        writer.write(json.dumps(reply).encode() + b"\n")
        await writer.drain()
        writer.close()

    control.unlink(missing_ok=True)
    async with await asyncio.start_unix_server(answer, control):
        await ended.wait()
    os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("backing", "mount", "control"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.backing, arguments.mount, arguments.control, arguments.seed))


if __name__ == "__main__":
    main()
