"""The mount operations of the node service, and whose mount is where."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from curve_csi.commands import run
from curve_storage.errors import FailedPrecondition, InUse
from curve_storage.mountinfo import Mount, mounts, visible

DEADLINE = 60.0
MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def same_source(mount: Mount, table: Sequence[Mount]) -> list[Mount]:
    """Every mount of the same part of the same device, `mount` itself included."""
    return [other for other in table if (other.device, other.root) == (mount.device, mount.root)]


def at(target: str) -> Mount | None:
    """The mount visible exactly at `target` now."""
    return visible(target, mounts())


async def mount(source: str, target: str, kind: str, options: Sequence[str]) -> None:
    command = ["mount", "-t", kind]
    if options:
        command += ["-o", ",".join(options)]
    await run([*command, source, target], deadline=DEADLINE)


async def bind(source: str, target: str, read_only: bool) -> None:
    await run(["mount", "--bind", source, target], deadline=DEADLINE)
    if read_only:
        await run(["mount", "-o", "remount,bind,ro", target], deadline=DEADLINE)


def _umount(target: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


async def unmount(target: str) -> None:
    """Unmounts everything at `target`; nothing mounted is success. A corrupted mount is detached lazily.
    Raises InUse naming processes that hold it."""
    while at(target) is not None:
        try:
            await asyncio.to_thread(_umount, target, 0)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return
            if error.errno in (errno.ENOTCONN, errno.ESTALE, errno.EIO):
                await asyncio.to_thread(_umount, target, MNT_DETACH)
            elif error.errno == errno.EBUSY:
                raise InUse(
                    f"the mount is busy{holders(target)}", where=target, todo="Stop what uses it; it is tried again"
                ) from error
            else:
                raise FailedPrecondition(
                    f"cannot unmount: {error.strerror}", where=target, todo="See the node's kernel log"
                ) from error


def holders(target: str) -> str:
    """ ", held by pid 12 (fio)" for processes with a file or working directory below `target`."""
    prefix = os.path.normpath(target)
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            links = [process / "cwd", *(process / "fd").iterdir()]
            if any(_below(os.readlink(link), prefix) for link in links):
                found.append(f"pid {process.name} ({(process / 'comm').read_text().strip()})")
        except OSError:
            continue
    return f", held by {', '.join(found[:5])}" if found else ""


def _below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def is_block(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def device_number(path: str) -> int:
    """Of a block device file, as `Mount.number` has it."""
    return os.stat(path).st_rdev
