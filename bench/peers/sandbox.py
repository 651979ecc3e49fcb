"""A place of its own for the daemons of a peer: network (loopback only), mounts and processes in new namespaces.

Nothing of it can outlive its maker: the first process of the PID namespace dies with `unshare`, `unshare` with this
program (PR_SET_PDEATHSIG), and the kernel ends a PID namespace, its mounts and its network with that first process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from curve_storage.cli.playground.processes import MARK

_PR_SET_PDEATHSIG = 1
_INSIDE = "CURVE_BENCH_SANDBOX"


def die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_inside(arguments: Sequence[str], *, mark: str, timeout: float) -> None:
    """`python ARGUMENTS` in a sandbox; its output goes where ours goes. Raises RuntimeError when it fails or takes
    longer than `timeout` seconds."""
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    process = subprocess.Popen(
        [*unshare, sys.executable, *arguments],
        env={**os.environ, MARK: mark, _INSIDE: "1"},
        preexec_fn=die_with_parent,
    )
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {timeout:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if code:
        raise RuntimeError(f"ended with status {code}, see above")


def inside() -> None:
    """To be called first in a sandbox. Exits when this is none: what follows mounts over directories of the system."""
    if os.environ.get(_INSIDE) != "1" or os.getpid() != 1:
        sys.exit("this runs in a sandbox only: use `python -m bench.peers`")
    for command in (["ip", "link", "set", "lo", "up"],):
        subprocess.run(command, check=True)


class Daemons:
    """Processes of a peer, with their output in `logs`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, argv: Sequence[str]) -> None:
        with (self._logs / f"{name}.out").open("ab") as output:
            self._running[name] = subprocess.Popen(
                list(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def until(self, what: str, done: Callable[[], bool], timeout: float) -> None:
        """Raises RuntimeError with the last lines of all logs when a daemon ends, or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not done():
            ended = [name for name, process in self._running.items() if process.poll() not in (None, 0)]
            if ended or time.monotonic() > deadline:
                why = f"{', '.join(ended)} ended" if ended else f"not within {timeout:g} s"
                raise RuntimeError(f"{what}: {why}\n{self.tails()}")
            time.sleep(0.2)

    def tails(self, lines: int = 5) -> str:
        out = []
        for log in sorted(self._logs.iterdir()):
            text = log.read_text(errors="replace").splitlines()[-lines:]
            out += [f"--- {log.name}", *(line[:300] for line in text)]
        return "\n".join(out)

    def stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        deadline = time.monotonic() + 20
        for process in self._running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def command(argv: Sequence[str], *, timeout: float = 60.0) -> str:
    """Output of a program. Raises RuntimeError with its words when it fails."""
    try:
        done = subprocess.run(list(argv), capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{' '.join(argv)}: no answer within {timeout:g} s") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def succeeds(argv: Sequence[str], *, timeout: float = 30.0) -> bool:
    try:
        command(argv, timeout=timeout)
    except RuntimeError:
        return False
    return True
