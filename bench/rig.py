"""A cluster to measure: a playground of its own, volumes attached to it, and its processes by name.

Everything lies in one directory `curve-bench-*` that its maker holds locked. A benchmark that was killed leaves its
directory unlocked: the next one takes such playgrounds down, by their mark, ends processes that carry the directory's
name as their mark, and only then makes its own.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from curve_storage.cli.playground import Playground, PlaygroundOptions
from curve_storage.cli.playground.processes import Identity, end, marked

PREFIX = "curve-bench-"
_LOCK = "owner"
UP_TIMEOUT = 180.0

Say = Callable[[str], None]


def progress(prefix: str = "") -> Say:
    """Lines on stderr with the seconds since now."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {prefix}{text}", file=sys.stderr, flush=True)

    return say


def require(*programs: str) -> None:
    """Ends the program when it is not root's or lacks one of `programs`."""
    missing = [] if os.geteuid() == 0 else ["root"]
    missing += [program for program in programs if shutil.which(program) is None]
    if missing:
        sys.exit(f"bench: needs {' and '.join(missing)}; `make tools` installs what Debian packages have")


@contextmanager
def workspace(parent: Path | None, say: Say) -> Iterator[Path]:
    """A directory for one run, removed with everything in it. parent None: the directory for temporary files."""
    root = parent if parent is not None else Path(tempfile.gettempdir())
    sweep(root, say)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    with (directory / _LOCK).open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def mark_of(directory: Path) -> str:
    """What processes of other systems, started for the run in `directory`, carry in their environment."""
    return directory.name


def sweep(root: Path, say: Say) -> list[Path]:
    """Takes down what killed benchmarks have left in `root`; returns the directories that are gone."""
    gone = []
    for directory in sorted(root.glob(f"{PREFIX}*")):
        try:
            owner = (directory / _LOCK).open("r+")
        except OSError:
            continue  # made by something else
        with owner:
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # a benchmark that runs
            say(f"removing what a killed benchmark has left in {directory}")
            end(marked(mark_of(directory)))
            for made in sorted(directory.glob("playground*")):
                for problem in asyncio.run(Playground(made).down(delete=True)):
                    say(f"warning: {problem}")
            shutil.rmtree(directory, ignore_errors=True)
            gone.append(directory)
    return gone


class Rig:
    """A running playground. Use `rig(...)`."""

    def __init__(self, playground: Playground) -> None:
        self.playground = playground

    def curve(self, *arguments: str) -> str:
        """Output of the `curve` command. Raises RuntimeError with its words when it fails."""
        layout = self.playground.layout()
        environment = {
            **os.environ,
            "CURVE_CLIENT_CONFIG": str(layout.client_file),
            "CURVE_VOLUMEHOST": str(layout.host_socket),
        }
        done = subprocess.run(
            [sys.executable, "-m", "curve_storage.cli.main", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        if done.returncode:
            raise RuntimeError(f"curve {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def attach(self, target: str, gibibytes: int, path: str | None = None) -> str:
        """Creates and attaches a volume; target: fuse | nbd. Returns the loop device, or the NBD socket."""
        path = path or f"/bench-{target}"
        self.curve("volume", "create", path, "--size", f"{gibibytes}Gi")
        return self.curve("volume", "attach", path, *(("--nbd",) if target == "nbd" else ()))

    def remove(self, target: str, path: str | None = None) -> None:
        path = path or f"/bench-{target}"
        self.curve("volume", "detach", path)
        self.curve("volume", "delete", path, "--force")

    def processes(self) -> dict[Identity, str]:
        """Names as the playground has them; a volume's data process and its spare are both "volume"."""
        state = self.playground.layout().state
        noted = {state.identity(name): name for name in state.processes}
        return {known: noted.get(known, "volume") for known in self.playground.processes()}


@contextmanager
def rig(directory: Path, say: Say, *, pool_size: int, volumehost: bool = True) -> Iterator[Rig]:
    """A healthy cluster of three chunkservers in `directory`/playground, down again afterwards."""
    playground = Playground(directory / "playground", say)
    try:
        asyncio.run(playground.up(PlaygroundOptions(pool_size=pool_size, volumehost=volumehost), timeout=UP_TIMEOUT))
        yield Rig(playground)
    finally:
        for problem in asyncio.run(playground.down(delete=True)):
            say(f"warning: {problem}")
