"""Processes that outlive the command that started them, and how they are known again.

A process is ours when its pid has the start time that was noted (a pid alone may have been given to another program),
or when its environment carries this playground's mark: that also finds what was started a moment before a crash, and
the data processes that the volume host starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from curve_storage.errors import Unavailable

MARK = "CURVE_PLAYGROUND_ID"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Identity:
    """pid and start time (clock ticks after boot, field 22 of /proc/PID/stat): together unique until a reboot."""

    pid: int
    started: int


@dataclass(frozen=True)
class Usage:
    state: str  # R, S, D, T, Z … as in /proc/PID/stat
    cpu_seconds: float
    memory: int  # resident bytes


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may contain anything.
    return text[text.rindex(")") + 2 :].split()


def identity(pid: int) -> Identity | None:
    """None when there is no such process, or only what is left of it (a zombie)."""
    fields = _stat(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return None
    return Identity(pid, int(fields[19]))


def alive(known: Identity | None) -> bool:
    return known is not None and identity(known.pid) == known


def usage(pid: int) -> Usage | None:
    fields = _stat(pid)
    if fields is None:
        return None
    page = os.sysconf("SC_PAGE_SIZE")
    return Usage(fields[0], (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * page)


def command_line(pid: int) -> list[str]:
    """Empty when it cannot be read."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return os.fsdecode(data).removesuffix("\0").split("\0")


def holds_open(pid: int, path: str) -> bool:
    """Whether a descriptor of the process is of the file `path`, e.g. /dev/fuse. False when it cannot be looked at."""
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(f"/proc/{pid}/fd/{descriptor}") == path:
                return True
        except OSError:  # closed meanwhile
            continue
    return False


def spawn(argv: list[str], log: Path, environment: dict[str, str], namespace: str = "") -> Identity:
    """Starts a process in a session of its own, output appended to `log`; `namespace`: the file of a network namespace
    to start it in. Raises Unavailable when it cannot be."""
    # nsenter becomes the program: pid, start time and command line are the program's own.
    enter = ["nsenter", f"--net={namespace}", "--"] if namespace else []
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                [*enter, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
                cwd="/",
            )
        except OSError as error:
            raise Unavailable(
                f"cannot be started: {error.strerror}",
                where=(enter or argv)[0],
                todo="Check that the program is installed",
            ) from error
    started = identity(child.pid)
    # It outlives this program on purpose, and is watched through /proc: nothing here waits for it.
    child.returncode = 0
    return started or Identity(child.pid, -1)


def marked(mark: str, *, variable: str = MARK) -> list[Identity]:
    """All living processes whose environment carries the mark, this one excepted."""
    wanted = f"{variable}={mark}".encode()
    found: list[Identity] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            known = identity(int(entry))
            if known is not None:
                found.append(known)
    return found


def end(processes: Iterable[Identity], *, patience: float = 5.0) -> list[Identity]:
    """SIGTERM, after `patience` seconds SIGKILL. Returns those that even then do not end (in uninterruptible sleep)."""
    remaining = [known for known in processes if alive(known)]
    for known in remaining:
        send(known, signal.SIGTERM)
        send(known, signal.SIGCONT)  # a stopped process would never see it
    deadline = time.monotonic() + patience
    remaining = _wait(remaining, deadline)
    for known in remaining:
        send(known, signal.SIGKILL)
    return _wait(remaining, time.monotonic() + 5.0)


def send(known: Identity, number: int) -> bool:
    """False when the process is gone. The check and the signal are not one step; a pid is not reused that fast."""
    if not alive(known):
        return False
    try:
        os.kill(known.pid, number)
    except ProcessLookupError:
        return False
    return True


def _wait(processes: list[Identity], deadline: float) -> list[Identity]:
    while True:
        processes = [known for known in processes if alive(known)]
        if not processes or time.monotonic() >= deadline:
            return processes
        time.sleep(0.02)
