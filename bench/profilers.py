"""Profilers attached to running processes while a job runs: perf (kernel and C), py-spy (Python), and what they print.

perf samples threads on a CPU, py-spy threads that run Python: shares of samples are shares of CPU time.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Counted one by one; anything else is in the total only.
SYSCALLS = (
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2",
    "recvfrom", "sendto", "recvmsg", "sendmsg", "epoll_wait", "epoll_pwait", "epoll_ctl", "poll", "ppoll", "select",
    "fsync", "fdatasync", "sync_file_range", "futex", "io_uring_enter", "fallocate", "openat", "close", "lseek",
    "ioctl", "splice", "madvise", "mmap", "munmap", "sched_yield", "clock_nanosleep", "getpid", "io_submit",
    "io_getevents",
)  # fmt: skip
_ATTACH = 20.0
_END = 60.0


def tools_missing() -> list[str]:
    """A sentence for each part of the profile that cannot be made here."""
    found = []
    if shutil.which("perf") is None:
        found.append("no perf: no counts of syscalls, no C and kernel functions (Debian: linux-perf)")
    if py_spy() is None:
        found.append("no py-spy: no Python functions (`pip install py-spy`; `make setup` installs it)")
    return found


def py_spy() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


@dataclass
class Attached:
    """Profilers running, one per process name; `stop` ends them and waits for their reports."""

    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def stop(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _END
        for process in self.running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def count_syscalls(pids: Mapping[str, int], directory: Path) -> Attached:
    """perf stat on the tracepoints, counted in the kernel; read with `parse_perf_stat(syscall_report(…))`."""
    events = ["raw_syscalls:sys_enter"]
    for name in SYSCALLS:
        if Path(f"/sys/kernel/tracing/events/syscalls/sys_enter_{name}").is_dir() or not _tracefs():
            events.append(f"syscalls:sys_enter_{name}")
    attached = Attached()
    for name, pid in pids.items():
        argv = ["perf", "stat", "-x,", "-o", str(syscall_report(directory, name)), "-p", str(pid)]
        for event in events:
            argv += ["-e", event]
        attached.running[name] = _start(argv, directory / f"{name}.perf-stat.log")
    _until_counting(attached)
    return attached


def syscall_report(directory: Path, name: str) -> Path:
    return directory / f"{name}.syscalls"


def sample_native(pids: Mapping[str, int], directory: Path, hertz: int) -> Attached:
    """perf record on the CPU clock, all processes in one file."""
    attached = Attached()
    argv = [
        "perf", "record", "-q", "-F", str(hertz), "-e", "cpu-clock", "-o", str(directory / "perf.data"),
        "-p", ",".join(str(pid) for pid in pids.values()),
    ]  # fmt: skip
    attached.running["perf"] = _start(argv, directory / "perf-record.log")
    _until_counting(attached)
    return attached


def native_samples(directory: Path) -> str:
    done = subprocess.run(
        ["perf", "script", "-i", str(directory / "perf.data"), "-F", "pid,ip,sym,dso"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout


def sample_python(pids: Mapping[str, int], directory: Path, hertz: int) -> Attached:
    """py-spy without stopping the process; samples it could not read are left out. Only threads that hold the
    interpreter's lock count: waits in the kernel would look like work."""
    attached = Attached()
    program = py_spy()
    assert program is not None
    for name, pid in pids.items():
        argv = [
            program, "record", "-p", str(pid), "-r", str(hertz), "-d", "3600", "-f", "raw", "--nonblocking", "--gil",
            "--function", "-o", str(python_report(directory, name)),
        ]  # fmt: skip
        attached.running[name] = _start(argv, directory / f"{name}.py-spy.log")
    deadline = time.monotonic() + _ATTACH
    while time.monotonic() < deadline:
        logs = [(directory / f"{name}.py-spy.log").read_text(errors="replace") for name in attached.running]
        if all("Sampling process" in log or "Error" in log for log in logs):
            break
        time.sleep(0.05)
    return attached


def python_report(directory: Path, name: str) -> Path:
    return directory / f"{name}.python"


def parse_perf_stat(text: str) -> dict[str, int]:
    """Counts by syscall, and "all", from `perf stat -x,`; events the kernel does not have are left out."""
    found = {}
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) < 3 or not fields[0].isdigit():
            continue
        event = fields[2]
        if event == "raw_syscalls:sys_enter":
            found["all"] = int(fields[0])
        elif event.startswith("syscalls:sys_enter_"):
            found[event.removeprefix("syscalls:sys_enter_")] = int(fields[0])
    return found


_SAMPLE = re.compile(r"^\s*(\d+)\s+[0-9a-f]+\s+(.*?)\s*\(([^()]*(?:\([^()]*\))?[^()]*)\)\s*$")


def parse_perf_script(text: str, names: Mapping[int, str]) -> dict[str, Counter[str]]:
    """Samples by process name and symbol; a symbol of the kernel ends in " [kernel]", one of a library in its name."""
    found: dict[str, Counter[str]] = {}
    for line in text.splitlines():
        matched = _SAMPLE.match(line)
        if matched is None:
            continue
        pid, symbol, where = int(matched[1]), matched[2], matched[3]
        if pid not in names:
            continue
        place = "kernel" if where.startswith(("[kernel", "[guest.kernel")) else os.path.basename(where)
        found.setdefault(names[pid], Counter())[f"{symbol or '[unknown]'} [{place}]"] += 1
    return found


def parse_stacks(text: str) -> Counter[str]:
    """Self samples by function from py-spy's raw format: "outer (file.py);inner (file.py) COUNT"."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack and count.isdigit():
            found[stack.rsplit(";", 1)[-1]] += int(count)
    return found


def shares(samples: Counter[str], most: int) -> list[tuple[str, float]]:
    """The most frequent with their share of all samples, 0 to 1."""
    total = sum(samples.values())
    return [(name, count / total) for name, count in samples.most_common(most)] if total else []


def _start(argv: Iterable[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def _tracefs() -> bool:
    return Path("/sys/kernel/tracing/events").is_dir()


def _until_counting(attached: Attached) -> None:
    """Until every perf holds its events open; one that has ended already says so in its log."""
    deadline = time.monotonic() + _ATTACH
    for process in attached.running.values():
        while time.monotonic() < deadline and process.poll() is None:
            if _holds_events(process.pid):
                break
            time.sleep(0.02)


def _holds_events(pid: int) -> bool:
    try:
        return any("perf_event" in os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
