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
SYSCTLS = {
    # Three kubelets and containerds watch more files than one machine's default allows.
    "fs/inotify/max_user_instances": 1024,
}


def check(places: Places) -> None:
    """Raises a CurveError that says what is missing and what to do."""
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
    if free < FREE_SPACE:
        raise NoSpace(
            f"{free / GiB:.1f} GiB free, {FREE_SPACE // GiB} GiB are needed",
            where=str(places.cache),
            todo="Make room, or set CURVE_CACHE to a folder on a larger disk.",
        )


def sysctls_to_raise() -> dict[str, list[str]]:
    """Settings that are too small: name → [present value, value to set]."""
    found = {}
    for name, least in SYSCTLS.items():
        present = Path("/proc/sys", name).read_text().strip()
        if int(present) < least:
            found[name] = [present, str(least)]
    return found
