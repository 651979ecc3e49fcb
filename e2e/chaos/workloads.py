"""The volumes of a run and the verified loads on them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE, MiB
from e2e.box.command import run
from e2e.chaos.loads import FioJob, FioLoad, Load, ShadowLoad, direct_access, nbd_access
from e2e.chaos.shadow import Shadow
from e2e.chaos.world import World

RAW, FILES, NBD, NBD_FIO = "/raw", "/files", "/nbd", "/nbd-fio"
VOLUMES = (RAW, FILES, NBD, NBD_FIO)
RESILIENT = (RAW, FILES, NBD)
"""Volumes whose data process may be replaced: fio's NBD client takes a closed connection for an I/O error."""

_FIO_SIZE = 2 * MiB
_FIO_RATE = 60
_WORKERS = 3
_PACE = 0.05
_PER_CHUNK = CHUNK_SIZE // BLOCK_SIZE
# Several chunks, so several copysets; one area crosses from one chunk into the next.
_AREAS = [(n * _PER_CHUNK + 100, 256) for n in (8, 15, 30, 63)] + [(40 * _PER_CHUNK - 64, 128)]
_FILE_BLOCKS = 4096
_WRITE_BACK = 120.0
_SETUP = 180.0


@dataclass
class Workloads:
    """device: of the volume with the file system, mounted at `folder`."""

    loads: list[Load]
    device: str
    folder: Path

    def finish(self) -> list[str]:
        """Unmount and check the file system; a sentence for each thing that is wrong."""
        done = subprocess.run(["umount", self.folder], capture_output=True, text=True, timeout=_WRITE_BACK)
        if done.returncode:
            return [f"{self.folder}: {done.stderr.strip()}"]
        checked = subprocess.run(
            ["e2fsck", "-fn", self.device], capture_output=True, text=True, errors="replace", timeout=_WRITE_BACK
        )
        if checked.returncode:
            return [f"e2fsck -fn of the volume {FILES}: {checked.stdout.strip()[-500:]}"]
        return []


async def create(world: World, seed: int) -> Workloads:
    """Volumes created, attached, and one with a file system; the loads are not started."""
    attached = dict(zip(VOLUMES, await asyncio.gather(*(_attach(world, volume) for volume in VOLUMES)), strict=True))
    device = attached[FILES]["device"]
    folder = world.directory / "files"
    await asyncio.to_thread(_make_filesystem, device, folder)
    fio = {key: value for key, value in os.environ.items() if not key.startswith("CURVE_")}
    work = world.directory / "fio"

    def job(name: str, *target: str) -> FioJob:
        return FioJob(list(target), work / name, _FIO_SIZE, _FIO_RATE)

    def shadow(name: str, number: int, areas: list[tuple[int, int]]) -> Shadow:
        return Shadow(areas, seed * 16 + number, name)

    socket = attached[NBD_FIO]["nbd_socket"]
    loads: list[Load] = [
        FioLoad("fio raw", RAW, job("raw", f"--filename={attached[RAW]['device']}", "--ioengine=libaio"), fio),
        FioLoad("fio files", FILES, job("files", f"--filename={folder / 'fio'}", "--ioengine=libaio"), fio),
        FioLoad("fio nbd", NBD_FIO, job("nbd", "--ioengine=nbd", f"--uri=nbd+unix:///nbd-fio?socket={socket}"), fio),
        ShadowLoad(
            "shadow raw", RAW, direct_access(Path(attached[RAW]["device"])), shadow("raw", 1, _AREAS),
            workers=_WORKERS, pace=_PACE,
        ),
        ShadowLoad(
            "shadow files", FILES, direct_access(folder / "shadow"), shadow("files", 2, [(0, _FILE_BLOCKS)]),
            workers=_WORKERS, pace=_PACE,
        ),
        ShadowLoad(
            "shadow nbd", NBD, nbd_access(Path(attached[NBD]["nbd_socket"]), "nbd"), shadow("nbd", 3, _AREAS),
            workers=_WORKERS, pace=_PACE,
        ),
    ]  # fmt: skip
    return Workloads(loads, device, folder)


async def _attach(world: World, volume: str) -> dict[str, str]:
    answer: dict[str, str] = {}

    async def created() -> str | None:
        """Once more is harmless."""
        await world.curve("volume", "create", volume, "--size", "1Gi")
        return None

    async def attached() -> str | None:
        nonlocal answer
        nbd = ["--nbd"] if volume in (NBD, NBD_FIO) else []
        answer = json.loads(await world.curve("volume", "attach", volume, *nbd, "--output", "json"))
        return None

    # On a busy machine an election may be going on: a command says so, and is given again.
    await world.until(f"{volume} to be created", _SETUP, created)
    await world.until(f"{volume} to be attached", _SETUP, attached)
    return answer


def _make_filesystem(device: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    options = ["-q", "-m", "0", "-N", "1024", "-J", "size=8", "-E", "lazy_itable_init=0,nodiscard"]
    run(["mkfs.ext4", *options, device], timeout=300)
    run(["mount", "-t", "ext4", "-o", "noatime", device, folder], timeout=120)
    with (folder / "shadow").open("wb") as file:
        for _ in range(_FILE_BLOCKS // 256):
            file.write(bytes(256 * BLOCK_SIZE))
        file.flush()
        os.fsync(file.fileno())


def first_problem(loads: list[Load]) -> str | None:
    return next((problem.what for load in loads for problem in load.problems), None)
