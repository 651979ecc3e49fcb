"""Parts of a chunkserver without its process: pool without a thread, inline executor, a host of one member."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curve_storage.chunkserver import commands
from curve_storage.chunkserver.chunk_directory import OpenFiles
from curve_storage.chunkserver.config import PoolConfig
from curve_storage.chunkserver.copyset import Copyset, Surroundings, create_directory
from curve_storage.chunkserver.copysets import Copysets
from curve_storage.chunkserver.disk_state import DiskMonitor
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.consensus.api import GroupStatus, Membership, Role
from curve_storage.errors import Aborted, NotFound, NotLeader
from curve_storage.units import MiB
from curve_storage.wire.messages import ChunkMeta

GROUP = (1 << 32) | 7


class InlineExecutor(Executor):
    """Runs the work at once, in the calling thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class FakeHost:
    """consensus.api.ConsensusHost of one member that commits at once; `leading` can be switched off."""

    def __init__(self, node_id: int = 1) -> None:
        self.node_id = node_id
        self.leading = True
        self.leased = True
        self.leader_elsewhere = 0
        self.machines: dict[int, Any] = {}
        self.memberships: dict[int, Membership] = {}
        self.logs: dict[int, list[tuple[bytes, bytes]]] = {}
        self.changes: list[tuple[int, tuple[int, ...]]] = []
        self.transfers: list[tuple[int, int]] = []
        self.change_state: dict[int, str] = {}

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def known_groups(self) -> list[int]:
        return sorted(self.memberships)

    def add_group(self, group: int, machine: Any, membership: Membership | None = None) -> None:
        self.machines[group] = machine
        self.memberships.setdefault(group, membership or Membership(voters=(self.node_id,)))
        log = self.logs.setdefault(group, [])
        for index in range(machine.durable_index() + 1, len(log) + 1):
            machine.apply(index, 1, log[index - 1][0], memoryview(log[index - 1][1]))
        machine.on_membership(self.memberships[group])
        machine.on_role(self.leading, 1)

    async def remove_group(self, group: int) -> None:
        self.machines.pop(group, None)
        self.memberships.pop(group, None)
        self.logs.pop(group, None)

    def propose(self, group: int, header: bytes, payload: Any = b"") -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if group not in self.machines:
            future.set_exception(NotFound("no such group"))
        elif not self.leading:
            future.set_exception(NotLeader("not the leader", leader=str(self.leader_elsewhere)))
        else:
            log = self.logs[group]
            log.append((bytes(header), bytes(payload)))
            machine, index = self.machines[group], len(log)

            def commit() -> None:
                result = machine.apply(index, 1, log[index - 1][0], memoryview(log[index - 1][1]))
                if not future.cancelled():
                    future.set_result(result)

            asyncio.get_running_loop().call_soon(commit)
        return future

    def lease_valid(self, group: int) -> bool:
        return self.leading and self.leased

    async def read_barrier(self, group: int) -> None:
        if not self.leading:
            raise Aborted("leadership lost")

    def status(self, group: int) -> GroupStatus:
        membership = self.memberships[group]
        return GroupStatus(
            group=group,
            role=Role.LEADER if self.leading else Role.FOLLOWER,
            term=1,
            leader=self.node_id if self.leading else self.leader_elsewhere,
            commit=len(self.logs[group]),
            applied=len(self.logs[group]),
            first_index=1,
            last_index=len(self.logs[group]),
            membership=membership,
            change=self.change_state.get(group, "none"),
        )

    def statuses(self) -> list[GroupStatus]:
        return [self.status(group) for group in sorted(self.machines)]

    def change_members(self, group: int, voters: tuple[int, ...]) -> None:
        self.changes.append((group, voters))

    def transfer_leader(self, group: int, to: int) -> None:
        self.transfers.append((group, to))


class Disk:
    """One data directory and what belongs to it, up to the copysets."""

    def __init__(self, root: Path, files: int = 8, reserve: int = 0, open_limit: int = 64) -> None:
        self.root = root
        self.failures: list[Exception] = []
        self.open_limit = open_limit
        self.config = PoolConfig(size=files * 17 * MiB, first_batch=files, ready=2, reserve=reserve)
        self.open()

    def open(self) -> None:
        self.pool = ChunkPool(self.root / "pool", self.config, self.failures.append)
        self.monitor = DiskMonitor(self.root, self.pool, self.failures.append)
        self.files = OpenFiles(self.open_limit)
        self.around = Surroundings(self.pool, self.files, InlineExecutor(), self.monitor, self.failures.append)
        self.copysets = Copysets(self.root, self.around, trash_retention=300)
        self.pool.scan(self.copysets.count_chunk_files())
        self.settle()

    def settle(self) -> None:
        while self.pool.step():
            pass

    def path(self, group: int = GROUP) -> Path:
        return self.copysets.path(group)

    def create(self, group: int = GROUP) -> Copyset:
        create_directory(self.path(group), group)
        return Copyset(self.path(group), group, self.around)

    def load(self, group: int = GROUP) -> Copyset:
        return Copyset(self.path(group), group, self.around)


def chunk_meta(
    chunk: int,
    offset: int,
    length: int,
    seq: int,
    *,
    epoch: int = 1,
    generation: int = 1,
    low: int = 1,
    volume: int = 5,
) -> ChunkMeta:
    return ChunkMeta(GROUP, chunk, volume, epoch, generation, offset, length, 0, seq, low)


def write_command(chunk: int, offset: int, data: bytes, seq: int, **keys: int) -> tuple[bytes, bytes]:
    return commands.WRITE_PREFIX + chunk_meta(chunk, offset, len(data), seq, **keys).pack(), data


def discard_command(chunk: int, offset: int, length: int, seq: int, **keys: int) -> tuple[bytes, bytes]:
    return commands.DISCARD_PREFIX + chunk_meta(chunk, offset, length, seq, **keys).pack(), b""


def delete_command(chunk: int, seq: int, **keys: int) -> tuple[bytes, bytes]:
    return commands.DELETE_PREFIX + chunk_meta(chunk, 0, 16 * MiB, seq, **keys).pack(), b""


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> Iterator[None]:
    """Chunk files are really allocated: what a test leaves would fill the disk of the machine."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def parts() -> SimpleNamespace:
    """The names above, for test modules (they are not importable from here)."""
    return SimpleNamespace(
        GROUP=GROUP,
        Disk=Disk,
        FakeHost=FakeHost,
        InlineExecutor=InlineExecutor,
        chunk_meta=chunk_meta,
        write=write_command,
        discard=discard_command,
        delete=delete_command,
    )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "data")
    yield made
    assert not made.failures
