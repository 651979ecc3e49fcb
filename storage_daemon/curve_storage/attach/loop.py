"""Loop devices over a file with direct I/O, by ioctl.

A device is found by what backs it, never by a remembered number: numbers are shared by everything on the machine. In a
container /dev may lack nodes of devices made after its start; `ensure_node` makes them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct

from curve_storage.errors import Aborted, CurveError, FailedPrecondition, InUse, NotFound

_SET_STATUS, _GET_STATUS, _CLR_FD = 0x4C04, 0x4C05, 0x4C01
_SET_CAPACITY, _CONFIGURE, _GET_FREE = 0x4C07, 0x4C0A, 0x4C82
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16

# struct loop_info64: device inode rdevice offset sizelimit, number - - flags, names, key, init
_INFO = Struct("<5Q4I64s64s32s2Q")
_CONFIG = Struct(f"<II{_INFO.size}s64x")  # struct loop_config: fd, block size, info, reserved
_ATTEMPTS = 64


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """One binding of a device to a file. backing: the path as the kernel shows it; it may name a deleted file or one of
    another mount namespace. sequence: the kernel's number of this very binding, never given twice before a reboot;
    0 where it has none (before Linux 5.15)."""

    number: int
    backing: str
    sequence: int = 0
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")

    @property
    def path(self) -> Path:
        return self.dev / f"loop{self.number}"


@dataclass(frozen=True, slots=True)
class BackingFile:
    """device: (major, minor) of its file system, inode: its number: they hold in every mount namespace."""

    device: tuple[int, int]
    inode: int


def bound_devices(sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> Iterator[LoopDevice]:
    """Every loop device that has a backing file at the moment."""
    for block in sorted((sys / "block").glob("loop*")):
        number = int(block.name.removeprefix("loop"))
        sequence = _sequence(number, sys)
        try:
            backing = (block / "loop" / "backing_file").read_text().rstrip("\n")
        except OSError:
            continue  # not bound
        yield LoopDevice(number, backing, sequence, sys, dev)


def _sequence(number: int, sys: Path) -> int:
    try:
        return int((sys / "block" / f"loop{number}" / "diskseq").read_text())
    except OSError:
        return 0


def known(number: int, sequence: int, sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> LoopDevice | None:
    """The same binding again, by its number and sequence; None when it is no more."""
    for device in bound_devices(sys, dev):
        if device.number == number and device.sequence == sequence != 0:
            return device
    return None


def candidates(path: Path, sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> list[LoopDevice]:
    """Devices that may be backed by `path`: ask each for its `backing_file` to be sure.

    The same path can be another file in another mount namespace (containers), and of a device made in a namespace that
    is gone the kernel shows only the path within the file system.
    """
    return [device for device in bound_devices(sys, dev) if device.backing in (str(path), f"/{path.name}")]


def backing_file(device: LoopDevice) -> BackingFile | None:
    """None when it is not bound any more. Can wait for the server of the file, where attributes are not cached."""
    buffer = bytearray(_INFO.size)
    try:
        with _opened(device, os.O_RDONLY) as fd:
            fcntl.ioctl(fd.number, _GET_STATUS, buffer)
    except (OSError, CurveError):
        return None
    fields = _INFO.unpack(buffer)
    return BackingFile((os.major(fields[0]), os.minor(fields[0])), fields[1])


def ensure_node(device: LoopDevice) -> None:
    """Make the block node if /dev does not have it, with the numbers of sysfs."""
    try:
        major, minor = map(int, (device.sys / "block" / f"loop{device.number}" / "dev").read_text().split(":"))
    except OSError as error:
        raise NotFound("no such loop device", where=str(device.path)) from error
    wanted = os.makedev(major, minor)
    try:
        info = device.path.stat()
        if stat.S_ISBLK(info.st_mode) and info.st_rdev == wanted:
            return
        device.path.unlink()
    except FileNotFoundError:
        pass
    try:
        os.mknod(device.path, stat.S_IFBLK | 0o600, wanted)
    except FileExistsError:
        pass


def attach(path: Path, *, read_only: bool = False, block_size: int = 0, dev: Path = Path("/dev")) -> LoopDevice:
    """Bind a free loop device to `path` with direct I/O. block_size: logical block in bytes, 0 for the kernel's 512.

    Raises FailedPrecondition without loop support, Aborted when other programs took every free device first.
    """
    backing = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR))
    try:
        for _ in range(_ATTEMPTS):
            device = _configure(LoopDevice(_free_number(dev), str(path), dev=dev), backing, read_only, block_size)
            if device is not None:
                return device
    finally:
        os.close(backing)
    raise Aborted("every free loop device was taken by others meanwhile", where=str(path), todo="Try again")


def _free_number(dev: Path) -> int:
    control = dev / "loop-control"
    try:
        fd = os.open(control, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(
            f"no loop devices: {error.strerror}", where=str(control), todo="Load the loop module: modprobe loop"
        ) from error
    try:
        return fcntl.ioctl(fd, _GET_FREE)
    finally:
        os.close(fd)


def _configure(device: LoopDevice, backing: int, read_only: bool, block_size: int) -> LoopDevice | None:
    """The binding; None when somebody else took the device first."""
    flags = _DIRECT_IO | (_READ_ONLY if read_only else 0)
    name = os.fsencode(device.backing)[-63:]
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    config = _CONFIG.pack(backing, block_size, info)
    with _opened(device, os.O_RDONLY if read_only else os.O_RDWR) as fd:
        try:
            fcntl.ioctl(fd.number, _CONFIGURE, config)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return None
            raise CurveError(f"cannot set up the device: {error.strerror}", where=str(device.path)) from error
        return replace(device, sequence=_sequence(device.number, device.sys))


def set_capacity(device: LoopDevice) -> None:
    """Take over the present size of the backing file."""
    with _opened(device, os.O_RDONLY) as fd:
        fcntl.ioctl(fd.number, _SET_CAPACITY)


def size(device: LoopDevice) -> int:
    """Bytes."""
    return int((device.sys / "block" / f"loop{device.number}" / "size").read_text()) * 512


def is_bound(device: LoopDevice) -> bool:
    """Whether this very binding still holds."""
    return any(
        found.number == device.number and found.sequence == device.sequence and found.backing == device.backing
        for found in bound_devices(device.sys, device.dev)
    )


def detach(
    device: LoopDevice, *, force: bool = False, patience: float = 2.0, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Unbind. Nothing to do is success. force: it unbinds by itself when the last holder closes it.

    Raises InUse when it is mounted or held open longer than `patience` seconds (scanners open devices for moments).
    """
    waited, pause = 0.0, 0.02
    while True:
        if _try_detach(device):
            return
        if waited >= patience:
            break
        sleep(pause)
        waited += pause
    if force:
        with _opened(device, os.O_RDONLY) as fd:
            fcntl.ioctl(fd.number, _CLR_FD)
        return
    _keep(device)
    if is_bound(device):
        raise InUse("the device is mounted or held open", where=str(device.path), todo="Unmount it, then detach")


def _try_detach(device: LoopDevice) -> bool:
    try:
        with _opened(device, os.O_RDWR | os.O_EXCL) as fd:  # EXCL fails while a file system is mounted
            fcntl.ioctl(fd.number, _CLR_FD)
    except NotFound:
        return True
    except OSError as error:
        if error.errno == errno.ENXIO:
            return True
        if error.errno not in (errno.EBUSY, errno.EROFS, errno.EACCES):
            raise
        if error.errno != errno.EBUSY:
            with _opened(device, os.O_RDONLY) as fd:
                fcntl.ioctl(fd.number, _CLR_FD)
    return not is_bound(device)


def _keep(device: LoopDevice) -> None:
    """Undo a request to unbind at the last close."""
    buffer = bytearray(_INFO.size)
    try:
        with _opened(device, os.O_RDONLY) as fd:
            fcntl.ioctl(fd.number, _GET_STATUS, buffer)
            fields = list(_INFO.unpack(buffer))
            fields[8] &= ~_AUTOCLEAR
            fcntl.ioctl(fd.number, _SET_STATUS, _INFO.pack(*fields))
    except (OSError, NotFound):
        pass  # gone meanwhile


class _opened:
    """A descriptor for the time of a with block."""

    def __init__(self, device: LoopDevice, flags: int) -> None:
        ensure_node(device)
        self.number = os.open(device.path, flags | os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> _opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.number)
