"""Calls on file systems that may hang, made in a helper process with a deadline: a hung mount never hangs the host.

As a program: `python -m curve_storage.volumehost.probe OPERATION PATH` prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from curve_storage.errors import CurveError, DeadlineExceeded, Internal, NotFound, all_errors
from curve_storage.fuse import mount


async def probe(operation: str, path: Path, *, deadline: float) -> dict[str, Any]:
    """statfs, stat, unmount or unmount-lazy of `path`. Raises DeadlineExceeded when it does not return in time (the
    helper is killed, or left behind where the kernel holds it), else the operation's own error."""
    helper = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "curve_storage.volumehost.probe", operation, str(path),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(deadline):
            out, _ = await helper.communicate()
    except TimeoutError as error:
        helper.kill()
        raise DeadlineExceeded(
            f"{operation} did not return within {deadline:g} s", where=str(path), todo="See the volume's health"
        ) from error
    try:
        reply = json.loads(out)
    except ValueError as error:
        raise Internal(f"the {operation} helper failed with status {helper.returncode}", where=str(path)) from error
    if "code" in reply:
        cls = all_errors().get(reply["code"], Internal)
        raise cls(reply["what"], where=reply["where"], todo=reply["todo"])
    assert isinstance(reply, dict)
    return reply


def perform(operation: str, path: Path) -> dict[str, Any]:
    """What the helper does."""
    if operation == "statfs":
        space = os.statvfs(path)
        return {
            "total_bytes": space.f_blocks * space.f_frsize,
            "free_bytes": space.f_bfree * space.f_frsize,
            "available_bytes": space.f_bavail * space.f_frsize,
            "total_inodes": space.f_files,
            "free_inodes": space.f_ffree,
        }
    if operation == "stat":
        info = path.stat()
        return {
            "size": info.st_size,
            "major": os.major(info.st_dev),
            "minor": os.minor(info.st_dev),
            "inode": info.st_ino,
        }
    if operation in ("unmount", "unmount-lazy"):
        mount.unmount(path, lazy=operation == "unmount-lazy")
        return {}
    raise Internal(f"no operation {operation!r}")


def main() -> None:
    operation, path = sys.argv[1], Path(sys.argv[2])
    try:
        reply = perform(operation, path)
    except FileNotFoundError:
        reply = _encode(NotFound("no such file or folder", where=str(path)))
    except OSError as error:
        reply = _encode(Internal(f"{operation} failed: {error.strerror}", where=str(path)))
    except CurveError as error:
        reply = _encode(error)
    print(json.dumps(reply))


def _encode(error: CurveError) -> dict[str, Any]:
    return {"code": error.code, "what": error.what, "where": error.where, "todo": error.todo}


if __name__ == "__main__":
    main()
