"""The box's control groups: one subtree of its name below every hierarchy of the machine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from curve_storage.errors import Aborted, FailedPrecondition
from curve_storage.mountinfo import Mount, mounts
from e2e.box.places import NAME

ROOT = Path("/sys/fs/cgroup")
TOP = NAME
NEEDED = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")
PATIENCE = 10.0


def hierarchies(table: Iterable[Mount]) -> list[tuple[Path, set[str]]]:
    """Mount points of cgroup hierarchies and their controllers."""
    found: dict[Path, set[str]] = {}
    for mount in table:
        if mount.filesystem in ("cgroup", "cgroup2"):
            options = mount.super_options if mount.filesystem == "cgroup" else ()
            found[mount.target] = {option.removeprefix("name=") for option in options}
    return list(found.items())


def _mounted() -> list[tuple[Path, set[str]]]:
    return hierarchies(mounts())


def check() -> None:
    """Raises FailedPrecondition when the machine's control groups are not what the kubelets are configured for."""
    controllers = {controller for _, options in _mounted() for controller in options}
    missing = [name for name in NEEDED if name not in controllers]
    if missing:
        raise FailedPrecondition(
            f"the machine has no version 1 control groups for {', '.join(missing)}",
            where=str(ROOT),
            todo="The box needs cgroup v1. `curve playground up` and `helm install` on a cluster work on any machine.",
        )


def create(name: str) -> None:
    """Makes `BOX/<name>` in every version 1 hierarchy, ready to take processes."""
    for mount, options in _mounted():
        if not options:
            continue
        folder = mount
        for part in (TOP, *Path(name).parts):
            parent, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            if "cpuset" in options:
                for file in ("cpuset.cpus", "cpuset.mems"):
                    if not (folder / file).read_text().strip():
                        (folder / file).write_text((parent / file).read_text())


def _folders(name: str) -> list[Path]:
    """Every group at and below `BOX/<name>`, deepest first."""
    return [
        Path(folder)
        for mount, _ in _mounted()
        for folder, _, _ in os.walk(mount / TOP / name if name else mount / TOP, topdown=False)
    ]


def processes(name: str = "") -> set[int]:
    """Processes in `BOX/<name>` and below; the whole box's without a name."""
    found: set[int] = set()
    for folder in _folders(name):
        try:
            found.update(int(word) for word in (folder / "cgroup.procs").read_text().split())
        except OSError:
            continue  # the group went away meanwhile
    return found


def kill(name: str = "") -> None:
    """Kills what is in `BOX/<name>` until nothing is left. Raises Aborted when something does not die."""
    end = time.monotonic() + PATIENCE
    while remaining := processes(name):
        for process in remaining:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if time.monotonic() > end:
            raise Aborted(
                f"processes {sorted(remaining)} do not end",
                where=f"control group {TOP}/{name}",
                todo="They wait for a device or a file system in the kernel: look at /proc/PID/stack, then repeat.",
            )
        time.sleep(0.02)


def remove(name: str = "") -> None:
    """Removes `BOX/<name>` and all below it; a group whose last process is only just gone needs a moment."""
    end = time.monotonic() + PATIENCE
    while folders := _folders(name):
        for folder in folders:
            try:
                folder.rmdir()
            except OSError as error:
                if time.monotonic() > end:
                    raise Aborted(
                        f"cannot be removed: {error}", where=str(folder), todo="Repeat `box down`."
                    ) from error
        if _folders(name):
            time.sleep(0.02)
