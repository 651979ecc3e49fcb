"""The seed: a containerd root into which each image is imported once; nodes get it by hard links."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from curve_storage.errors import Internal
from e2e.box.command import CommandFailed, failure, run
from e2e.box.images import Archive
from e2e.box.oci import copy_without
from e2e.box.places import Places
from e2e.box.progress import Progress
from e2e.box.supervisor import with_parent

START_PATIENCE = 30.0
WITHOUT = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",  # would make a folder on the machine
)


def import_archive(ctr: Path, socket: Path | str, archive: Path) -> None:
    """Imports an OCI archive into a containerd, where pods find it. Layers that it has are not sent again."""
    command = [str(ctr), "--address", str(socket), "--namespace", "k8s.io"]
    present = set(run([*command, "content", "ls", "--quiet"]).split())
    words = [*command, "images", "import", "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            with process.stdin:
                copy_without(archive, process.stdin, present)
        except BrokenPipeError:
            pass  # its own words, below, say why it ended
        output = process.stdout.read().decode(errors="replace")
    if process.returncode != 0:
        raise failure(words, process.returncode, output)


class Seed:
    def __init__(self, places: Places, progress: Progress) -> None:
        self._places = places
        self._progress = progress
        self._list = places.cache / "seed.json"

    def ensure(self, archives: Sequence[Archive]) -> Path:
        """The seed's folder, with these images current in it."""
        wanted = {archive.reference: archive.key for archive in archives}
        present = self._present()
        changed = [archive for archive in archives if present.get(archive.reference) != archive.key]
        if not changed:
            return self._places.seed
        with self._progress.step(f"importing {len(changed)} images"):
            try:
                self._import(changed)
            except CommandFailed:
                # A seed that a crash left in pieces is cheaper made anew than repaired.
                shutil.rmtree(self._places.seed, ignore_errors=True)
                self._list.unlink(missing_ok=True)
                self._import(list(archives))
        self._list.write_text(json.dumps({**present, **wanted}, indent=1))
        return self._places.seed

    def _present(self) -> dict[str, str]:
        if not self._places.seed.is_dir():
            return {}
        try:
            listed: dict[str, str] = json.loads(self._list.read_text())
        except (OSError, ValueError):
            return {}
        return listed

    def _import(self, archives: Sequence[Archive]) -> None:
        self._places.seed.mkdir(parents=True, exist_ok=True)
        ctr = self._places.bin / "ctr"
        with (
            tempfile.TemporaryDirectory(prefix="curve-seed-") as state,
            _Containerd(self._places, Path(state)) as socket,
        ):
            for archive in archives:
                import_archive(ctr, socket, archive.path)


class _Containerd:
    """A containerd without CRI on the seed, in a mount namespace of its own; it dies with this process."""

    def __init__(self, places: Places, state: Path) -> None:
        self._places = places
        self._state = state
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Path:
        socket = self._state / "containerd.sock"
        config = self._state / "config.toml"
        config.write_text(
            f"""version = 3
root = "{self._places.seed}"
state = "{self._state}/run"
disabled_plugins = [{", ".join(map(json.dumps, WITHOUT))}]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
"""
        )
        unshare = ["unshare", "--mount", "--propagation", "private", "--"]
        log = (self._state / "log").open("ab")
        self._process = subprocess.Popen(
            [*with_parent(), *unshare, str(self._places.bin / "containerd"), "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()
        end = time.monotonic() + START_PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            try:
                run([self._places.bin / "ctr", "--address", socket, "version"], timeout=10)
                return socket
            except CommandFailed:
                time.sleep(0.1)
        text = (self._state / "log").read_text()[-2000:]
        self.__exit__()
        raise Internal(f"containerd does not start: {text}", where=str(self._places.seed), todo="Remove this folder.")

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
