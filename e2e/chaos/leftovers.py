"""What a run that was killed has left: its processes by their mark, its loop devices by notes.

All mounts and network namespaces of a run are in a mount namespace of its own and go with its last process.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path

from curve_storage.attach import loop
from curve_storage.cli.playground import processes
from curve_storage.cli.playground.processes import Identity, end
from curve_storage.errors import CurveError

_PATIENCE = 90.0
MARK = "CHAOS_RUN"  # not CURVE_…: what begins so configures the daemons, and is not handed on to them


def marked(directory: Path) -> list[Identity]:
    """Living processes of the run in `directory`, this one excepted."""
    return processes.marked(str(directory), variable=MARK)


def devices(directory: Path) -> list[loop.LoopDevice]:
    """Loop devices that the run has noted and that are still bound: outside of its mount namespace their backing files
    have no telling names."""
    found = []
    for note in directory.glob("disks/*/device"):
        with contextlib.suppress(ValueError, OSError):
            number, sequence = map(int, note.read_text().split())
            found.append(loop.known(number, sequence))
    for note in directory.glob("pg/volumehost/volumes/*/state.json"):
        with contextlib.suppress(ValueError, OSError, KeyError):
            state = json.loads(note.read_bytes())
            found.append(loop.known(int(state["loop_number"]), int(state["loop_sequence"])))
    return [device for device in found if device is not None]


def clean(directory: Path, *, delete: bool) -> list[str]:
    """Ends and removes it all. Returns a sentence for each thing that stays."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        # Whoever waits for I/O can end only when those that owe it the answer have.
        left = end(marked(directory), patience=3.0)
        for device in devices(directory):
            with contextlib.suppress(CurveError, OSError):
                loop.detach(device, force=True, patience=0.2)
        still = devices(directory)
        if not (left or still) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    problems = [f"process {known.pid} does not end" for known in left]
    problems += [f"{device.path} is still bound to {device.backing}" for device in still]
    if delete and not problems:
        for entry in directory.iterdir() if directory.is_dir() else ():
            if entry.name not in ("lock", "logs"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return problems
