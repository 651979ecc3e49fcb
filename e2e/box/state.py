"""What `down` must know: written before every step of `up`, read by any later command, also after a crash at any
point.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from curve_storage.errors import DeadlineExceeded
from e2e.box.places import NAME, Places

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def start_time(pid: int) -> int | None:
    """When the process was started, in clock ticks since boot; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


@dataclass(frozen=True)
class State:
    """The box on this machine.

    cache: the cache folder it was started with; boot: the machine's boot id; phase: "starting", "up" or "stopping";
    supervisor: its (pid, start time); sysctls: name → [value before, value set]; api_port: the loopback port.
    """

    cache: str
    boot: str
    phase: str = "starting"
    nodes: int = 3
    supervisor: tuple[int, int] | None = None
    sysctls: dict[str, list[str]] = field(default_factory=dict)
    api_port: int = 0

    @property
    def places(self) -> Places:
        return Places(Path(self.cache))

    def supervisor_pid(self) -> int | None:
        """The supervisor's process id while it lives; never that of a stranger that got the same number."""
        if self.supervisor is None or self.boot != boot_id():
            return None
        pid, started = self.supervisor
        return pid if start_time(pid) == started else None


def boot_id() -> str:
    return BOOT_ID.read_text().strip()


class StateFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> State | None:
        """None when there is no box. A file cut short by a crash counts as a box about which nothing is known."""
        try:
            content: dict[str, Any] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        if content.get("supervisor"):
            content["supervisor"] = tuple(content["supervisor"])
        return State(**content)

    def save(self, state: State) -> State:
        """Replaces the file whole, durably."""
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        with temporary.open("w") as file:
            json.dump(asdict(state), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
        return state

    def update(self, **changes: Any) -> State:
        present = self.load()
        assert present is not None, "there is a state file from the first step on"
        return self.save(replace(present, **changes))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


@contextmanager
def sole_operation(patience: float = 600.0) -> Iterator[None]:
    """One command at a time changes the box. The lock is a name in the kernel: it leaves no file and dies with its
    owner.
    """
    end = time.monotonic() + patience
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        while True:
            try:
                lock.bind(f"\0{NAME}")
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise DeadlineExceeded(
                        "another command is changing the box",
                        where=NAME,
                        todo="Wait for it, or end it, then repeat.",
                    ) from error
                time.sleep(0.1)
        yield


@contextmanager
def cache_in_use(places: Places) -> Iterator[None]:
    """One process at a time builds images and touches the seed, of however many boxes."""
    places.cache.mkdir(parents=True, exist_ok=True)
    with (places.cache / ".images-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
