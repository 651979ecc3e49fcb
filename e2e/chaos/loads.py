"""Verified load: threads with a shadow copy on a device, a file or an NBD socket, and fio with verification."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from curve_storage.errors import Aborted, CurveError
from curve_storage.units import BLOCK_SIZE
from e2e.chaos.nbd_client import NbdClient
from e2e.chaos.shadow import Shadow, Span
from e2e.chaos.stalls import Waits

_LONGEST = 64 * BLOCK_SIZE


class Access(Protocol):
    """What a worker reads and writes with; one per worker, blocking. A write is durable when it returns."""

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def close(self) -> None: ...


class DirectFile:
    """A block device or a file whose blocks exist, without the page cache."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
        self._buffer = memoryview(mmap.mmap(-1, _LONGEST))

    def read(self, offset: int, length: int) -> bytes:
        if os.preadv(self._descriptor, [self._buffer[:length]], offset) != length:
            raise OSError(f"short read at {offset}")
        return bytes(self._buffer[:length])

    def write(self, offset: int, data: bytes) -> None:
        self._buffer[: len(data)] = data
        if os.pwritev(self._descriptor, [self._buffer[: len(data)]], offset) != len(data):
            raise OSError(f"short write at {offset}")

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass
class Problem:
    """lost: data, not only an answer."""

    what: str
    at: float
    lost: bool


class Load:
    """name: as the report shows it; volume: the path of its volume."""

    def __init__(self, name: str, volume: str) -> None:
        self.name = name
        self.volume = volume
        self.waits = Waits()
        self.problems: list[Problem] = []
        self.verified = 0  # bytes compared
        self.stopping = threading.Event()
        self.given_up = threading.Event()
        self.abandoned = False
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self, seconds: float) -> bool:
        """Ends what is under way; False when something still waits after `seconds`."""
        self.stopping.set()
        deadline = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        done = not any(thread.is_alive() for thread in self.threads)
        self.given_up.set()
        return done

    def abandon(self) -> None:
        """Ends without waiting for I/O that may never end."""
        self.abandoned = True
        self.stopping.set()
        self.given_up.set()

    def problem(self, what: str, *, lost: bool) -> None:
        self.problems.append(Problem(f"{self.name}: {what}", time.monotonic(), lost))

    def verify(self) -> None:
        """Compare everything; problems are added to `problems`."""


class ShadowLoad(Load):
    """pace: seconds each worker rests after a request."""

    def __init__(
        self, name: str, volume: str, open_access: Callable[[threading.Event], Access], shadow: Shadow, *, workers: int,
        pace: float,
    ) -> None:  # fmt: skip
        super().__init__(name, volume)
        self.shadow = shadow
        self._open = open_access
        self._pace = pace
        self.threads = [
            threading.Thread(target=self._work, args=(number,), name=f"{name}-{number}", daemon=True)
            for number in range(workers)
        ]

    def _work(self, number: int) -> None:
        try:
            access = self._open(self.given_up)
            with contextlib.closing(access):
                while not self.stopping.is_set():
                    self._request(number, access)
                    self.stopping.wait(self._pace)
        except Aborted as error:
            self.problem(f"no answer: {error}", lost=False)
        except CurveError as error:
            self.problem(str(error), lost=True)
        except OSError as error:
            self.problem(f"I/O error: {error}", lost=False)

    def _request(self, number: int, access: Access) -> None:
        span = self.shadow.take()
        offset, length = span.first * BLOCK_SIZE, span.count * BLOCK_SIZE
        data = b"" if span.version is None else self.shadow.data(span)
        self.waits.begin(number, time.monotonic())
        if span.version is None:
            found = access.read(offset, length)
            self.waits.end(number, time.monotonic())
            self.shadow.check(span, found)
            self.verified += length
        else:
            access.write(offset, data)
            self.waits.end(number, time.monotonic())
            self.shadow.acknowledge(span)

    def verify(self) -> None:
        try:
            with contextlib.closing(self._open(threading.Event())) as access:
                for first, count in self.shadow.areas:
                    for start in range(first, first + count, 64):
                        span = Span(start, min(64, first + count - start), None)
                        found = access.read(span.first * BLOCK_SIZE, span.count * BLOCK_SIZE)
                        self._compare(span, found)
        except OSError as error:
            self.problem(f"cannot be compared: {error}", lost=True)

    def _compare(self, span: Span, found: bytes) -> None:
        """Block by block: each that is wrong is a problem of its own."""
        for index, block in enumerate(span.blocks):
            piece = found[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            try:
                self.shadow.check(Span(block, 1, None), piece)
                self.verified += BLOCK_SIZE
            except CurveError as error:
                self.problem(str(error), lost=True)


@dataclass
class FioJob:
    """target: options that say where; size in bytes; rate: writes per second, reads come four times as fast;
    rounds: how many were completed; seed: of the present round."""

    target: list[str]
    folder: Path
    size: int
    rate: int
    rounds: int = 0
    seed: int = 0


class FioLoad(Load):
    """Rounds of random writes of a whole area, each then read and compared by fio; once more at the end."""

    def __init__(self, name: str, volume: str, job: FioJob, environment: dict[str, str]) -> None:
        super().__init__(name, volume)
        self.job = job
        self._environment = environment
        self._offset = time.time() - time.monotonic()
        self._process: subprocess.Popen[str] | None = None
        self.threads = [threading.Thread(target=self._work, name=name, daemon=True)]
        job.folder.mkdir(parents=True, exist_ok=True)

    def _command(self, *more: str) -> list[str]:
        job = self.job
        return [
            "fio", "--name=verify", *job.target, "--rw=randwrite", "--bs=4k", "--direct=1", f"--size={job.size}",
            "--iodepth=4", "--verify=crc32c", "--verify_fatal=1", "--randrepeat=1", f"--randseed={job.seed}",
            f"--rate_iops={4 * job.rate},{job.rate}", "--output=fio.out", *more,
        ]  # fmt: skip

    def _work(self) -> None:
        while not self.stopping.is_set() and not self.problems:
            self.job.seed += 1
            log = self.job.folder / f"round{self.job.seed}"
            if not self._run("--do_verify=1", f"--write_lat_log={log}", "--log_unix_epoch=1"):
                return
            self.job.rounds += 1
            self.verified += self.job.size
            self._note_waits(log)

    def _run(self, *more: str) -> bool:
        process = subprocess.Popen(
            self._command(*more), cwd=self.job.folder, env=self._environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        self._process = process
        output, _ = process.communicate()
        self._process = None
        if process.returncode == 0:
            return True
        if self.abandoned:
            return False
        with contextlib.suppress(OSError):
            output += (self.job.folder / "fio.out").read_text(errors="replace")
        first = next((line for line in output.splitlines() if "verify" in line or "error" in line), output[-300:])
        bad = "verify:" in output or "bad header" in output
        self.problem(f"fio ended with {process.returncode}: {first.strip()[:300]}", lost=bad)
        return False

    def _note_waits(self, log: Path) -> None:
        """Lines are: completion (ms since the epoch), latency (ns), …"""
        for path in log.parent.glob(f"{log.name}_lat*.log"):
            with path.open() as lines:
                for line in lines:
                    fields = line.split(",")
                    end = int(fields[0]) / 1000 - self._offset
                    self.waits.note(end - int(fields[1]) / 1e9, end)
            path.unlink()
        for path in log.parent.glob(f"{log.name}_*.log"):
            path.unlink()

    def abandon(self) -> None:
        super().abandon()
        process = self._process
        if process is not None:
            process.kill()

    def verify(self) -> None:
        if self.problems:
            return
        if self._run("--verify_only"):
            self.verified += self.job.size


def nbd_access(path: Path, export: str) -> Callable[[threading.Event], Access]:
    return lambda stop: NbdClient(path, export, stop)


def direct_access(path: Path) -> Callable[[threading.Event], Access]:
    return lambda _stop: DirectFile(path)
