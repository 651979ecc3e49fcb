"""The chunkservers' disks: ext4 on a loop device on a FUSE file whose process fails on request.

What a chunkserver sees is what a real disk gives it: a write that fails behind its back and is reported by the next
fsync, a journal that gives up, a file system that is full. After errors a disk is made whole as an administrator
would: unmounted, checked, mounted.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from curve_storage.attach import loop
from curve_storage.attach.volume_file import FILE_NAME
from curve_storage.errors import CurveError, Unavailable
from curve_storage.fuse import mount
from curve_storage.units import GiB
from e2e.box.command import run

SIZE = 20 * GiB  # more than a chunkserver's pool and log; sparse
_START = 60.0
_REPAIRED = (0, 1)  # e2fsck: nothing found, errors corrected


@dataclass
class Disk:
    """directory: holds everything of it. size in bytes; the backing file is sparse."""

    name: str
    directory: Path
    size: int
    seed: int
    process: subprocess.Popen[bytes] | None = None
    device: loop.LoopDevice | None = None

    @property
    def filesystem(self) -> Path:
        return self.directory / "disk"

    @property
    def data(self) -> Path:
        """For the chunkserver."""
        return self.filesystem / "data"

    @property
    def _file(self) -> Path:
        return self.directory / "file"

    @property
    def _control(self) -> Path:
        return self.directory / "control"

    @property
    def _ballast(self) -> Path:
        return self.filesystem / "ballast"

    def create(self) -> None:
        """From nothing to a mounted, empty file system."""
        for part in (self.directory, self._file, self.filesystem):
            part.mkdir(parents=True, exist_ok=True)
        backing = self.directory / "backing"
        with backing.open("wb") as file:
            file.truncate(self.size)
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "e2e.chaos.disk_process", "--backing", str(backing),
                    "--mount", str(self._file), "--control", str(self._control), "--seed", str(self.seed),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _START
        while not self._control.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable("the disk's process does not serve", where=str(self.directory / "log"))
            time.sleep(0.05)
        self.device = loop.attach(self._file / FILE_NAME, block_size=4096)
        (self.directory / "device").write_text(f"{self.device.number} {self.device.sequence}\n")  # for `leftovers`
        run(
            [
                "mkfs.ext4", "-q", "-b", "4096", "-m", "0", "-N", "8192", "-J", "size=32",
                "-E", "lazy_itable_init=0,nodiscard", self.device.path,
            ],
            timeout=120,
        )  # fmt: skip
        self._mount()
        self.data.mkdir()

    def _mount(self) -> None:
        assert self.device is not None
        run(["mount", "-t", "ext4", "-o", "noatime,nodiscard", self.device.path, self.filesystem], timeout=120)

    def tell(self, mode: str) -> dict[str, int]:
        """Set the mode; returns how many operations were failed so far, by kind. Raises Unavailable."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(30)
                connection.connect(str(self._control))
                connection.sendall(mode.encode() + b"\n")
                reply = json.loads(connection.makefile("rb").readline())
        except (OSError, ValueError) as error:
            raise Unavailable(f"the disk's process does not answer: {error}", where=str(self._control)) from error
        if "error" in reply:
            raise Unavailable(reply["error"], where=str(self._control))
        return {str(kind): int(count) for kind, count in reply["failed"].items()}

    def forget_cache(self) -> None:
        """So that the next reads come from the device."""
        for path in self.data.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file():
                    descriptor = os.open(path, os.O_RDONLY)
                    try:
                        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    finally:
                        os.close(descriptor)

    def fill(self) -> int:
        """Until nothing is free; returns the bytes taken."""
        taken = 0
        step = GiB
        descriptor = os.open(self._ballast, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while step >= 4096:
                try:
                    os.posix_fallocate(descriptor, taken, step)
                    taken += step
                except OSError:
                    step //= 4
        finally:
            os.close(descriptor)
        return taken

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def repair(self) -> str:
        """Healthy again after errors: unmounted, checked, mounted. Nothing may have a file on it open. Returns what
        e2fsck did, one line; raises CommandFailed when the file system is lost."""
        assert self.device is not None
        self.tell("ok")
        deadline = time.monotonic() + 30
        while True:
            done = subprocess.run(["umount", self.filesystem], capture_output=True, text=True, timeout=120)
            if done.returncode == 0:
                break
            if time.monotonic() > deadline:
                raise Unavailable(f"cannot be unmounted: {done.stderr.strip()}", where=str(self.filesystem))
            time.sleep(0.2)
        checked = subprocess.run(
            ["e2fsck", "-fy", self.device.path], capture_output=True, text=True, errors="replace", timeout=300
        )
        if checked.returncode not in _REPAIRED:
            raise Unavailable(f"e2fsck ended with {checked.returncode}: {checked.stdout[-500:]}", where=self.name)
        self._mount()
        return "errors corrected" if checked.returncode else "clean"

    def remove(self) -> list[str]:
        """Everything but the directory. Its users must have ended. Returns a sentence for each thing that stays."""
        problems = []
        with contextlib.suppress(CurveError):
            self.tell("ok")
        if os.path.ismount(self.filesystem):
            done = subprocess.run(["umount", self.filesystem], capture_output=True, text=True, timeout=120)
            if done.returncode:
                problems.append(done.stderr.strip())
        if self.device is not None:
            try:
                loop.detach(self.device, patience=5)
            except CurveError as error:
                problems.append(str(error))
        with contextlib.suppress(CurveError):
            mount.unmount(self._file)
        if self.process is not None:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        return problems
