"""mount(2) and umount(2) of a FUSE connection. Needs CAP_SYS_ADMIN."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from curve_storage.errors import CurveError, FailedPrecondition, InUse, NotFound
from curve_storage.fuse.handshake import MAX_WRITE

FILESYSTEM_TYPE = "fuse.curve"

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MNT_DETACH = 2
_EBUSY, _EINVAL, _ENOENT = 16, 22, 2
_libc = ctypes.CDLL(None, use_errno=True)


def open_device() -> int:
    """A new descriptor of /dev/fuse: one connection, non-blocking, closed on exec."""
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot open /dev/fuse: {error.strerror}",
            where="/dev/fuse",
            todo="Load the fuse module (modprobe fuse) and give the pod access to the device",
        ) from error


def mount(descriptor: int, target: Path, source: str) -> None:
    """Mount the connection of `descriptor` on the directory `target`; only root may enter it."""
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={MAX_WRITE}"
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if _libc.mount(source.encode(), os.fsencode(target), FILESYSTEM_TYPE.encode(), flags, options.encode()):
        code = ctypes.get_errno()
        raise FailedPrecondition(
            f"cannot mount: {os.strerror(code)}", where=str(target), todo="Run as root with CAP_SYS_ADMIN"
        )


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Raises InUse while something below is open, NotFound where nothing is mounted. lazy: detach even so."""
    if _libc.umount2(os.fsencode(target), _MNT_DETACH if lazy else 0) == 0:
        return
    code = ctypes.get_errno()
    if code == _EBUSY:
        raise InUse("the mount is in use", where=str(target), todo="Stop what holds it open, or force")
    if code in (_EINVAL, _ENOENT):
        raise NotFound("nothing is mounted here", where=str(target))
    raise CurveError(f"cannot unmount: {os.strerror(code)}", where=str(target))
