"""`python -m e2e.chaos --minutes 60 [--seed N]`: see docs/testing.md, "Chaos"."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import fcntl
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import TextIO

from curve_storage.errors import CurveError, FailedPrecondition, InUse
from e2e.chaos import leftovers
from e2e.chaos.report import Report
from e2e.chaos.run import Options, Run, passed, summary

_INTERVAL = 13.0
_NEW_MOUNTS, _NEW_NETWORK = 0x20000, 0x40000000
_RECURSIVE, _PRIVATE = 0x4000, 0x40000
_PROGRAMS = ("fio", "ip", "nft", "tc", "nsenter", "unshare", "mkfs.ext4", "e2fsck")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of faults; start and comparison come on top")
    parser.add_argument("--seed", type=int, default=None, help="of the schedule and the data; printed when not given")
    parser.add_argument("--interval", type=float, default=_INTERVAL, help="seconds from one fault to the next")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/curve-chaos"), help="where it lives; emptied")
    parser.add_argument("--keep", action="store_true", help="keep logs and data of a run that passed too")
    parser.add_argument("--clean", action="store_true", help="only remove what an earlier run has left")
    return parser


def _isolate() -> None:
    """New mount and network namespaces for this process and all it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS | _NEW_NETWORK) or libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None):
        raise FailedPrecondition(f"no namespaces: {os.strerror(ctypes.get_errno())}", todo="Run as root")


def _check() -> None:
    if os.geteuid() != 0:
        raise FailedPrecondition("chaos needs root: namespaces, mounts, loop devices", todo="Run it as root")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise FailedPrecondition(f"not installed: {', '.join(missing)}", todo="Run `make packages`")


def _exclusive(directory: Path) -> TextIO:
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InUse("a chaos run is at work", where=str(directory), todo="Wait for its end, or use --dir") from error
    return lock


async def _run(options: Options, report: Report) -> int:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    interrupted = False

    def interrupt() -> None:
        """Once: the removal that follows is not interrupted again."""
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    run = Run(options, report)
    try:
        result = await run.whole()
    except asyncio.CancelledError:
        report.say("interrupted; everything was taken down")
        return 130
    for line in summary(result, options):
        print(line, flush=True)
    return 0 if passed(result) else 1


def _main() -> int:
    arguments = parser().parse_args()
    directory = arguments.dir.absolute()
    _check()
    lock = _exclusive(directory)
    problems = leftovers.clean(directory, delete=True)
    if problems or arguments.clean:
        for problem in problems:
            print(problem, file=sys.stderr)
        return 1 if problems else 0
    # Children are known by this in their environment.
    os.environ[leftovers.MARK] = str(directory)
    _isolate()
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}: python -m e2e.chaos --minutes {arguments.minutes:g} --seed {seed}", flush=True)
    events = directory / "events.jsonl"
    report = Report(events, sys.stdout)
    try:
        code = asyncio.run(_run(Options(directory, arguments.minutes, seed, arguments.interval), report))
    finally:
        report.close()
    if code == 0 and not arguments.keep:
        leftovers.clean(directory, delete=True)
    else:
        print(f"logs and events stay in {directory} until the next run", flush=True)
        for disk in directory.glob("disks/*/backing"):
            disk.unlink()
    lock.close()
    return code


def main() -> None:
    try:
        code = _main()
    except CurveError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.stdout.flush()
    # Threads whose I/O never ended would be waited for.
    os._exit(code)


if __name__ == "__main__":
    main()
