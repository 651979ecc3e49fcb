"""Puts itself where a process of the box belongs, then becomes that process. Standard library only: run by its path.

    python -I -S launch.py [--cgroup PATH] [--netns FILE] -- PROGRAM [ARGUMENT ...]

The process dies with its parent (PR_SET_PDEATHSIG): nothing of the box survives the supervisor that owns it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1


def enter_cgroup(path: str) -> None:
    """Moves this process into `path` below every cgroup hierarchy that has it."""
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        procs = hierarchy / path / "cgroup.procs"
        if procs.exists():
            procs.write_text("0")


def enter_netns(libc: ctypes.CDLL, file: str) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), file)
    os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cgroup")
    parser.add_argument("--netns")
    parser.add_argument("--parent", type=int, help="process id of the owner: end at once if it is gone already")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if given.parent is not None and os.getppid() != given.parent:
        sys.exit("launch: the owner is gone")
    if given.cgroup:
        enter_cgroup(given.cgroup)
    if given.netns:
        enter_netns(libc, given.netns)
    os.execvp(given.command[0], given.command)


if __name__ == "__main__":
    main()
