"""A playground per test module, and its complete removal."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from curve_storage.cli.playground import Playground, PlaygroundOptions, node
from curve_storage.cli.playground.processes import alive
from curve_storage.units import GiB

UP_TIMEOUT = 180.0

CurveCommand = Callable[..., "subprocess.CompletedProcess[str]"]


def log_tails(directory: Path) -> str:
    out = []
    for log in sorted((directory / "logs").glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-8:]
        out.append(f"--- {log.name}\n" + "\n".join(line[:400] for line in lines))
    return "\n".join(out)


@pytest.fixture(scope="session", autouse=True)
def own_mounts() -> None:
    """A mount namespace of its own: a namespace that others on this machine make would hold our mounts after umount."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive, private = 0x20000, 0x4000, 0x40000
    if os.geteuid() == 0 and (
        libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, recursive | private, None)
    ):
        pytest.fail(f"no mount namespace: {os.strerror(ctypes.get_errno())}")


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Playground]:
    """Running when the test begins (one without root has no volume host), gone without a trace afterwards.
    POOL_SIZE of the module: bytes per chunkserver."""
    directory = tmp_path_factory.mktemp("pg", numbered=True)
    shared = Playground(directory, lambda text: print(text, flush=True))
    options = PlaygroundOptions(pool_size=getattr(request.module, "POOL_SIZE", 5 * GiB))
    try:
        asyncio.run(shared.up(options, timeout=UP_TIMEOUT))
        yield shared
    finally:
        processes = shared.processes() if shared.exists else []
        print(log_tails(directory))
        problems = asyncio.run(shared.down(delete=True))
        assert not problems
        assert not [known for known in processes if alive(known)]
        assert not node.loops_under(directory) and not node.fuse_mounts(directory)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def curve(playground: Playground) -> CurveCommand:
    """Runs the command against the module's playground: curve("volume", "list") → CompletedProcess."""
    environment = {
        **os.environ,
        "CURVE_CLIENT_CONFIG": str(playground.directory / "client.yaml"),
        "CURVE_VOLUMEHOST": str(playground.layout().host_socket),
    }

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "curve_storage.cli.main", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert "Traceback" not in done.stderr, done.stderr
        if check:
            assert done.returncode == 0, f"curve {' '.join(arguments)}: {done.stderr}"
        return done

    return run
