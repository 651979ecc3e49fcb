"""What volumes leave on the machine: file systems on loop devices, loop devices on FUSE files, FUSE mounts.

Only what lies over the playground's own directory is touched.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

from curve_storage.attach import loop
from curve_storage.errors import CurveError
from curve_storage.fuse import mount
from curve_storage.mountinfo import Mount, mounts


def loops_under(root: Path) -> list[loop.LoopDevice]:
    """Loop devices whose backing file lies in `root`."""
    return [device for device in loop.bound_devices() if _inside(device.backing, root)]


def mounts_of_devices(root: Path) -> list[Mount]:
    """File systems mounted from those loop devices, the innermost first."""
    devices = {(7, device.number) for device in loops_under(root)}
    return [m for m in reversed(mounts()) if m.device in devices]


def fuse_mounts(root: Path) -> list[Mount]:
    return [m for m in reversed(mounts()) if m.filesystem == mount.FILESYSTEM_TYPE and _inside(m.target, root)]


def unmount_filesystems(root: Path, *, timeout: float = 30.0) -> list[str]:
    """Unmounts what users have mounted from volumes, writing everything back. Returns a sentence for each refusal."""
    problems = []
    for mounted in mounts_of_devices(root):
        try:
            done = subprocess.run(["umount", str(mounted.target)], capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            problems.append(f"{mounted.target}: not written back within {timeout:g} s")
            continue
        if done.returncode:
            problems.append(done.stderr.strip() or f"{mounted.target}: umount failed")
    return problems


def clean(root: Path, *, patience: float = 5.0) -> list[str]:
    """Takes away mounts and loop devices over `root`. To be called when nothing serves them any more: reads and writes
    still waiting fail then, and nothing here can hang. Returns a sentence for everything that stays."""
    for mounted in mounts_of_devices(root):
        with contextlib.suppress(CurveError):
            mount.unmount(mounted.target, lazy=True)
    deadline = time.monotonic() + patience
    while True:
        for device in loops_under(root):
            with contextlib.suppress(CurveError, OSError):
                loop.detach(device, force=True, patience=0.1)
        for mounted in fuse_mounts(root):
            with contextlib.suppress(CurveError):
                mount.unmount(mounted.target, lazy=True)
        left = [f"{device.path} is held open" for device in loops_under(root)]
        left += [f"{mounted.target} is still mounted" for mounted in fuse_mounts(root)]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.1)


def _inside(path: str | Path, root: Path) -> bool:
    return Path(path).is_relative_to(root)
