"""Taking the box down: the same way whether it runs well, is half started, or has lost its supervisor.

Nothing is asked of the box's processes. What is ours is found by names and places that nobody else uses: control
groups and network namespaces of the box's name, mounts below the data folder, loop devices by proof (`loops`). Each
step looks at the machine, not at what some earlier run meant to do, and is harmless when there is nothing to undo.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from curve_storage.errors import Aborted
from curve_storage.mountinfo import mounts
from e2e.box import cgroups, loops, network
from e2e.box.command import run
from e2e.box.places import Places
from e2e.box.state import State, StateFile

PATIENCE = 10.0
SYSCTLS = Path("/proc/sys")


def sweep(places: Places, state: State | None) -> list[str]:
    """Removes every trace but logs and caches; returns a line for each thing that could not be removed."""
    if state is not None and (supervisor := state.supervisor_pid()) is not None:
        os.kill(supervisor, signal.SIGKILL)
    data = state.places.box if state else places.box
    lost = file_systems_of("")
    complaints = [] if (error := _kill_everything()) is None else [error]
    complaints += detach_loops(data, lost)
    unmount_below(data)
    for name in network.namespaces():
        network.remove(name)
    try:
        cgroups.remove()
    except Aborted as failure:
        complaints.append(str(failure))
    if state is not None:
        restore_sysctls(state.sysctls)
    remove_data(data)
    if not complaints:
        StateFile(places.state).remove()
        shutil.rmtree(places.runtime, ignore_errors=True)
    return complaints


def file_systems_of(group: str) -> set[int]:
    """Devices of the file systems that processes of a control group of ours have mounted, to know later what was
    theirs.
    """
    tables = []
    for process in cgroups.processes(group):
        try:
            tables.append(mounts(process))
        except OSError:
            continue  # ended meanwhile
    return loops.mounted_devices(tables)


def _kill_everything() -> str | None:
    try:
        cgroups.kill()
        end = time.monotonic() + PATIENCE
        while strays := network.processes_in(network.namespaces()):
            for process in strays:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if time.monotonic() > end:
                return f"processes {sorted(strays)} do not end"
            time.sleep(0.02)
    except Aborted as error:
        return str(error)
    return None


def detach_loops(data: Path, lost: set[int]) -> list[str]:
    """Detaches the loop devices of dead nodes. `data`: the box's or the node's folder; `lost`: see `loops.ours`."""
    candidates = loops.attached()
    if not candidates:
        return []
    living = loops.mounted_devices(loops.living_mounts())
    files = loops.files_below(data, {loop.inode for loop in candidates})
    remaining = loops.detach(loops.ours(candidates, files, living, lost))
    return [f"/dev/loop{loop.number} ({loop.path}) is still in use" for loop in remaining]


def unmount_below(folder: Path) -> None:
    """Mounts of the machine's own namespace below `folder`, innermost first. Nodes mount in namespaces of their own;
    this is for what an interrupted preparation left."""
    for mount in reversed(mounts()):
        if mount.target.is_relative_to(folder):
            run(["umount", "--lazy", str(mount.target)])


def restore_sysctls(changed: dict[str, list[str]]) -> None:
    """Back to the old value, unless somebody else has changed it since."""
    for name, (before, ours) in changed.items():
        path = SYSCTLS / name
        if path.read_text().strip() == ours:
            path.write_text(before)


def remove_data(data: Path) -> None:
    """All of the box's data but its logs, which are kept until the next start."""
    if not data.is_dir():
        return
    entries = [entry for entry in data.iterdir() if entry.name != "logs"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda entry: run(["rm", "-rf", "--one-file-system", entry]), entries))
