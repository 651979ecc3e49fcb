"""A process that serves a block device must not need memory in order to free memory.

The kernel, short of memory, writes dirty pages to the device and waits for the process that serves it. So that process
locks what it has, tells the kernel that it is part of the way to the disk, and is the last to be killed.
"""

from __future__ import annotations

import ctypes
import os

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_PR_SET_IO_FLUSHER = 57
_PR_SET_NAME = 15
_libc = ctypes.CDLL(None, use_errno=True)


def name_process(name: str) -> None:
    """What ps and top show; the kernel keeps 15 characters."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def protect() -> list[str]:
    """Apply all that is permitted; one sentence for each that is not."""
    missing = []
    # On fault for what is still to come: else every thread's whole stack would be made present.
    if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        missing.append(f"memory is not locked ({os.strerror(ctypes.get_errno())}): CAP_IPC_LOCK is missing")
    if _libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0):
        missing.append(f"not marked as I/O flusher ({os.strerror(ctypes.get_errno())}): CAP_SYS_RESOURCE is missing")
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
    except OSError as error:
        missing.append(f"not protected from the OOM killer ({error.strerror}): CAP_SYS_RESOURCE is missing")
    return missing
