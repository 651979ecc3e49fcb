"""Process 1 of a node. Standard library only: run by its path, inside fresh mount, PID, UTS, IPC and network
namespaces.

    python -I -S node_init.py CONFIGURATION.json

It gives the node a file system of its own, an overlay over the machine's root, so that nothing a pod or a daemon writes
through a host path reaches the machine or another node. Data that must be fast or large is bound in from ordinary
folders. Then it starts the node's daemons, restarts those that end, and reaps every orphan. The node's power switch
is the end of this process: the kernel then kills everything in its PID namespace.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import Any

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384
MS_PRIVATE, MS_SHARED = 1 << 18, 1 << 20
MNT_DETACH = 2
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
RESTART_DELAY = 1.0
# The kubelet insists on these kernel-wide settings and would change them for the whole machine; a node sees private
# files instead.
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, *what: object) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)}: {' '.join(map(str, what))}")


def mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    arguments = (source.encode(), str(target).encode(), kind.encode() or None, flags, options.encode() or None)
    _check(_libc.mount(*map(_word, arguments)), "mount", source, target)


def _word(value: bytes | int | None) -> Any:
    return ctypes.c_ulong(value) if isinstance(value, int) else ctypes.c_char_p(value)


def bind(source: Path, target: Path, *, recursive: bool = False, read_only: bool = False) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(str(source), target, flags=MS_BIND | (MS_REC if recursive else 0))
    if read_only:
        mount("", target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def build_root(config: dict[str, Any]) -> Path:
    """Assembles the node's root below its data folder and returns it."""
    data = Path(config["data"])
    root, upper, work = data / "root", data / "upper", data / "work"
    for folder in (root, upper, work):
        folder.mkdir(parents=True, exist_ok=True)
    mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
    mount("overlay", root, "overlay", options=f"lowerdir=/,upperdir={upper},workdir={work}")
    for name in ("proc", "sys", "dev", "run", "tmp"):
        (root / name).mkdir(exist_ok=True)
    mount("proc", root / "proc", "proc")
    mount("sysfs", root / "sys", "sysfs")
    bind(Path("/sys/fs/cgroup"), root / "sys/fs/cgroup", recursive=True)
    bind(Path("/dev"), root / "dev", recursive=True)
    mount("tmpfs", root / "run", "tmpfs", options="mode=755")
    mount("tmpfs", root / "tmp", "tmpfs", options="mode=1777")
    for target, source in config["binds"].items():
        Path(source).mkdir(parents=True, exist_ok=True)
        bind(Path(source), root / target.lstrip("/"))
    for target, source in config["read_only_binds"].items():
        bind(Path(source), root / target.lstrip("/"), read_only=True)
    return root


def private_kernel_settings(root: Path, files: Path) -> None:
    """Files in place of kernel-wide settings, and a boot id of this start, by which Kubernetes notices a reboot."""
    files.mkdir(exist_ok=True)
    settings = {**KERNEL_SETTINGS, "kernel/random/boot_id": str(uuid.uuid4())}
    for name, value in settings.items():
        setting = root / "proc/sys" / name
        if setting.exists():
            own = files / name.replace("/", ".")
            own.write_text(f"{value}\n")
            bind(own, setting)


def write_identity(root: Path, name: str, address: str) -> None:
    identity = {
        "hostname": f"{name}\n",
        "machine-id": f"{uuid.uuid5(uuid.NAMESPACE_DNS, name).hex}\n",
        "hosts": f"127.0.0.1 localhost\n{address} {name}\n",
        "resolv.conf": "",
    }
    for file, text in identity.items():
        place = root / "etc" / file
        place.unlink(missing_ok=True)
        place.write_text(text)


def enter(root: Path) -> None:
    """Makes `root` this process's root and forgets the machine's."""
    old = root / "run/machine"
    old.mkdir(exist_ok=True)
    os.chdir(root)
    number = SYS_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, _word(b"."), _word(b"run/machine")), "pivot_root", root)
    os.chdir("/")
    _check(_libc.umount2(_word(b"/run/machine"), MNT_DETACH), "umount /run/machine")
    os.rmdir("/run/machine")
    # CSI drivers need mounts to propagate between the node and its pods.
    mount("none", Path("/"), flags=MS_REC | MS_SHARED)


class Daemons:
    """The node's long-running programs: started in order, restarted when they end."""

    def __init__(self, specifications: list[dict[str, Any]]) -> None:
        self._specifications = specifications
        self._running: dict[int, dict[str, Any]] = {}
        self._due: list[tuple[float, dict[str, Any]]] = []

    def start_all(self) -> None:
        for specification in self._specifications:
            self._start(specification)
            self._await_socket(specification.get("socket"))

    def run(self) -> None:
        """For ever: reap, restart."""
        while True:
            now = time.monotonic()
            for due in [entry for entry in self._due if entry[0] <= now]:
                self._due.remove(due)
                self._start(due[1])
            self._reap()
            timeout = min([entry[0] - now for entry in self._due], default=60.0)
            signal.sigtimedwait([signal.SIGCHLD], max(timeout, 0.05))

    def _start(self, specification: dict[str, Any]) -> None:
        log = os.open(specification["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        command = specification["command"]
        process = os.posix_spawn(
            command[0], command, specification["env"], file_actions=actions, setsid=True, setsigmask=[]
        )
        os.close(log)
        self._running[process] = specification

    def _reap(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            if specification := self._running.pop(process, None):
                code = os.waitstatus_to_exitcode(status)
                print(f"{specification['command'][0]} ended with status {code}; starting it again", flush=True)
                self._due.append((time.monotonic() + RESTART_DELAY, specification))

    def _await_socket(self, path: str | None) -> None:
        """Waits up to 30 s for a daemon that others depend on."""
        end = time.monotonic() + 30.0
        while path and time.monotonic() < end:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                    return
                except OSError:
                    time.sleep(0.05)


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    root = build_root(config)
    private_kernel_settings(root, Path(config["data"]) / "kernel")
    write_identity(root, config["name"], config["address"])
    enter(root)
    socket.sethostname(config["name"])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    daemons = Daemons(config["daemons"])
    daemons.start_all()
    print("node started", flush=True)
    daemons.run()


if __name__ == "__main__":
    main()
