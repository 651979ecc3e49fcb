"""One data process seen from its host: started or found again, asked, watched, ended.

A data process runs in a session of its own and outlives its host. It is known by its control socket; its death is
seen through a pidfd, whoever its parent is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curve_storage.clock import Clock
from curve_storage.errors import CurveError, DeadlineExceeded, Unavailable
from curve_storage.telemetry import logs
from curve_storage.volumehost import packet
from curve_storage.volumehost.packet_client import request
from curve_storage.volumehost.spare import Spare

_log = logs.get("data_process")
_START = 60.0  # seconds until a new process answers on its socket, on the most loaded machine
_POLL = 0.02
_LEAVING = 1.0  # seconds that a client which closes its connection may take
_LOG_LIMIT = 4 << 20


class DataProcess:
    """exited: done when the process has ended. report: its last answer to a ping."""

    def __init__(self, pid: int, control: Path, clock: Clock, child: subprocess.Popen[bytes] | None = None) -> None:
        """Raises ProcessLookupError when there is no such process."""
        self.pid = pid
        self.control = control
        self.report: dict[str, Any] = {}
        self._clock = clock
        self._child = child
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(pid)
        self.exited: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._gone)

    @classmethod
    def spawn(
        cls,
        arguments: Sequence[str],
        control: Path,
        descriptor: int | None,
        log_file: Path,
        clock: Clock,
        spare: Spare | None,
    ) -> DataProcess:
        """Start `curve-volume`, from the spare if there is one, with these arguments and a copy of the descriptor."""
        log = _open_log(log_file)
        command = ["--control", str(control), *arguments]
        try:
            child = spare.take(command, log, descriptor) if spare is not None else None
            if child is None:
                if descriptor is not None:
                    command += ["--descriptor", str(descriptor)]
                child = subprocess.Popen(
                    [sys.executable, "-m", "curve_storage.volumehost.volume_process", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=() if descriptor is None else (descriptor,),
                    start_new_session=True,
                    cwd="/",
                )
        finally:
            os.close(log)
        return cls(child.pid, control, clock, child)

    @classmethod
    async def find(cls, control: Path, clock: Clock, timeout: float) -> DataProcess | None:
        """The process that answers on this socket; None when there is none, or one that had to be killed because it
        does not answer."""
        try:
            reply, _ = await request(control, {"op": "ping"}, timeout=timeout)
        except Unavailable:
            control.unlink(missing_ok=True)
            return None
        except DeadlineExceeded:
            await _end_silent(control, clock)
            return None
        try:
            process = cls(int(reply["pid"]), control, clock)
        except ProcessLookupError:
            return None
        process.report = reply
        return process

    def _gone(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._child is not None:
            self._child.poll()  # reap
        if not self.exited.done():
            self.exited.set_result(None)

    @property
    def alive(self) -> bool:
        return not self.exited.done()

    @property
    def status(self) -> str:
        """How it ended, where that can be known."""
        code = self._child.returncode if self._child is not None else None
        if code is None:
            return "ended"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    async def ask(self, operation: str, *, timeout: float) -> dict[str, Any]:
        """Raises Unavailable when it is not there, DeadlineExceeded, or its own refusal."""
        reply, descriptors = await request(self.control, {"op": operation}, timeout=timeout)
        for descriptor in descriptors:
            os.close(descriptor)
        return reply

    async def descriptor(self, *, timeout: float) -> int:
        """A copy of the descriptor it serves, the caller's to close."""
        _, descriptors = await request(self.control, {"op": "descriptor"}, timeout=timeout)
        return descriptors[0]

    async def connected(self, *, timeout: float) -> bool:
        """Whether clients are at its NBD socket now; one that is just going is waited for. A process that does not
        answer is judged by its last report."""
        until = self._clock.monotonic() + _LEAVING
        while self.alive:
            try:
                self.report = await self.ask("ping", timeout=timeout)
            except (Unavailable, DeadlineExceeded):
                return bool(self.report.get("connections"))
            if not self.report.get("connections"):
                break
            if self._clock.monotonic() > until:
                return True
            await asyncio.sleep(_POLL)
        return False

    async def wait_ready(self, timeout: float) -> dict[str, Any]:
        """Until it serves (or is on standby): its report. Raises the error it failed with, DeadlineExceeded, or
        Unavailable when it ended."""
        deadline = self._clock.monotonic() + timeout
        while True:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"the volume was not opened within {timeout:g} s", where=str(self.control))
            if not self.alive:
                raise Unavailable(f"the data process {self.status}", where=str(self.control.parent / "process.log"))
            try:
                self.report = await self.ask("wait_ready", timeout=left)
                return self.report
            except Unavailable:
                await asyncio.wait([self.exited], timeout=_POLL)  # its socket is not there yet

    async def watch(self, interval: float, patience: float, observe: Callable[[dict[str, Any]], None]) -> None:
        """Ping until it ends; `observe` each report. One that does not answer for `patience` seconds is killed."""
        answered = self._clock.monotonic()
        allowed = max(_START, patience)
        while self.alive:
            try:
                self.report = await self.ask("ping", timeout=patience)
                answered, allowed = self._clock.monotonic(), patience
                observe(self.report)
            except CurveError as error:
                if self._clock.monotonic() - answered >= allowed and self.alive:
                    _log.error("a data process does not answer and is replaced", pid=self.pid, reason=str(error))
                    self.kill()
                    await asyncio.wait([self.exited], timeout=patience)
                    return
                interval_now = _POLL * 5
            else:
                interval_now = interval
            await asyncio.wait([self.exited], timeout=interval_now)

    def signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    async def end(self, timeout: float) -> None:
        """Wait for its end, kill it after `timeout` seconds."""
        await asyncio.wait([self.exited], timeout=timeout)
        if self.alive:
            self.kill()
            await asyncio.wait([self.exited], timeout=10.0)


async def _end_silent(control: Path, clock: Clock) -> None:
    """Kill a process that listens but does not answer."""
    import socket

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        connection.connect(str(control))
        pid = packet.peer_pid(connection)
    except OSError:
        return
    finally:
        connection.close()
    if pid <= 1:
        return
    try:
        process = DataProcess(pid, control, clock)
    except (ProcessLookupError, OSError):
        return
    _log.error("a data process that does not answer is killed", pid=pid)
    process.kill()
    await process.end(10.0)


def _open_log(path: Path) -> int:
    try:
        if path.stat().st_size > _LOG_LIMIT:
            path.replace(path.with_suffix(".log.old"))
    except FileNotFoundError:
        pass
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
