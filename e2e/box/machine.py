"""What the box needs of the machine, checked before anything is started."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from curve_storage.errors import FailedPrecondition, NoSpace, PermissionDenied
from curve_storage.units import GiB
from e2e.box import cgroups
from e2e.box.places import Places

FREE_SPACE = 5 * GiB
"""Of the box itself: caches, images, logs."""
SYSCTLS = {
    # Three kubelets and containerds watch more files than one machine's default allows.
    "fs/inotify/max_user_instances": 1024,
}


def check(places: Places, room: int = 0) -> None:
    """Raises a CurveError that says what is missing and what to do. room: bytes needed beside the box's own."""
    if os.geteuid() != 0:
        raise PermissionDenied("the box makes namespaces and mounts", where="box", todo="Run it as root.")
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not Path(device).exists():
            raise FailedPrecondition(
                "the kernel lacks it", where=device, todo="Use a kernel with FUSE and loop devices."
            )
    if "overlay" not in Path("/proc/filesystems").read_text():
        raise FailedPrecondition(
            "the kernel has no overlay file system", where="/proc/filesystems", todo="Load `overlay`."
        )
    cgroups.check()
    places.cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(places.cache).free
    needed = FREE_SPACE + room
    if free < needed:
        of_pods = f", {room / GiB:.0f} of them for what will run in the box" if room else ""
        raise NoSpace(
            f"{free / GiB:.1f} GiB free, {needed / GiB:.0f} GiB are needed{of_pods}",
            where=str(places.cache),
            todo="Make room (`python -m e2e.box down` removes what is left of a box), or set CURVE_CACHE to a folder "
            "on a larger disk.",
        )


def sysctls_to_raise() -> dict[str, list[str]]:
    """Settings that are too small: name → [present value, value to set]."""
    found = {}
    for name, least in SYSCTLS.items():
        present = Path("/proc/sys", name).read_text().strip()
        if int(present) < least:
            found[name] = [present, str(least)]
    return found
