"""Hosts on loopback, each with its own server, pool, log directory and a state machine that keeps its commands."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from curve_storage.clock import SystemClock
from curve_storage.consensus.api import GroupStatus, Membership, Piece, Role
from curve_storage.consensus.config import ConsensusConfig, LogConfig
from curve_storage.consensus.host import Host
from curve_storage.errors import CurveError, Overloaded, Unavailable
from curve_storage.wire.channel import ChannelPool
from curve_storage.wire.server import Server

GROUP = (1 << 32) | 5
SMALL = ConsensusConfig(log=LogConfig(segment_size=1 << 18, max_size=1 << 21), checkpoint_bytes=1 << 17)


class Commands:
    """The list of all commands; its checkpoint is one file, its snapshot that file in small pieces."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "state.json"
        self.commands: list[tuple[int, str]] = []
        self.index = 0
        self.leads = False
        self.blocked = False
        self.restores = 0
        if self.path.exists():
            state = json.loads(self.path.read_text())
            self.commands = [(index, text) for index, text in state["commands"]]
            self.index = state["index"]
        self.durable = self.index

    def durable_index(self) -> int:
        return self.durable

    def apply(self, index: int, term: int, header: bytes, payload: memoryview) -> Any:
        assert index > self.index, "an entry was applied twice"
        self.index = index
        if not header:
            return None
        if header == b"refuse":
            return Overloaded("refused by the state machine")
        self.commands.append((index, header.decode()))
        return index

    def on_role(self, leader: bool, term: int) -> None:
        self.leads = leader

    def on_membership(self, membership: Membership) -> None:
        pass

    def _save(self, index: int) -> None:
        fresh = self.path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump({"index": index, "commands": self.commands}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self.path)

    async def checkpoint(self) -> int:
        while self.blocked:
            await asyncio.sleep(0.01)
        self._save(self.index)
        self.durable = self.index
        return self.index

    async def snapshot(self) -> _Source:
        return _Source(self.index, json.dumps(self.commands).encode())

    async def restore(self) -> _Sink:
        return _Sink(self)


class _Source:
    def __init__(self, index: int, data: bytes) -> None:
        self.index = index
        self._data = data

    async def pieces(self) -> AsyncIterator[Piece]:
        for start in range(0, len(self._data), 1000):
            yield Piece("commands", start, self._data[start : start + 1000])

    def close(self) -> None:
        pass


class _Sink:
    def __init__(self, machine: Commands) -> None:
        self._machine = machine
        self._data = b""

    async def piece(self, piece: Piece) -> None:
        assert piece.offset == len(self._data)
        self._data += bytes(piece.data)

    async def commit(self, index: int) -> None:
        machine = self._machine
        machine.commands = [(at, text) for at, text in json.loads(self._data)]
        machine._save(index)
        machine.index = machine.durable = index
        machine.restores += 1

    def abort(self) -> None:
        pass


class Node:
    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.port = 0
        self.host: Host | None = None
        self.machine: Commands | None = None
        self.fatal: list[CurveError] = []

    async def start(self, membership: Membership | None = None) -> None:
        directory = self.cluster.directory / f"node{self.number}"
        self.server = Server(verifier=None)
        self.pool = ChannelPool(token=None, client=f"node{self.number}")
        self.host = Host(
            self.number, directory / "log", self.server, self.pool, self.cluster, clock=SystemClock(),
            rng=random.Random(self.number), config=self.cluster.config, on_fatal=self.fatal.append,
        )  # fmt: skip
        await self.host.start()
        if membership is not None or GROUP in self.host.known_groups():
            self.machine = Commands(directory / "state")
            self.host.add_group(GROUP, self.machine, membership)
        self.port = await self.server.start("127.0.0.1", self.port)

    async def stop(self) -> None:
        if self.host is None:
            return
        host, self.host = self.host, None
        await host.stop()
        await self.server.stop()
        await self.pool.close()

    async def kill(self) -> None:
        """As SIGKILL does it: no resignation, connections gone, what was not synced is not waited for."""
        assert self.host is not None
        host, self.host = self.host, None
        host._running = False
        if host._timer is not None:
            host._timer.cancel()
        await self.server.stop()
        await self.pool.close()
        await host.stop()
        host._sync.stop()
        host.engine.log.close()

    @property
    def live(self) -> Host:
        assert self.host is not None
        return self.host

    def status(self) -> GroupStatus:
        return self.live.status(GROUP)


class Cluster:
    def __init__(self, directory: Path, config: ConsensusConfig = SMALL) -> None:
        self.directory = directory
        self.config = config
        self.nodes: dict[int, Node] = {}

    def address(self, node: int) -> str | None:
        found = self.nodes.get(node)
        return f"127.0.0.1:{found.port}" if found is not None and found.port else None

    async def add(self, number: int, membership: Membership | None) -> Node:
        node = self.nodes[number] = Node(self, number)
        await node.start(membership)
        return node

    async def start(self, *numbers: int) -> None:
        for number in numbers:
            await self.add(number, Membership(voters=numbers))

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.stop()

    def leader(self) -> Node | None:
        for node in self.nodes.values():
            if node.host is not None and GROUP in node.host.engine.groups and node.status().role is Role.LEADER:
                return node
        return None

    async def wait_leader(self, *, other_than: int = 0) -> Node:
        found: list[Node] = []

        def look() -> bool:
            leader = self.leader()
            if leader is not None and leader.number != other_than:
                found[:] = [leader]
                return True
            return False

        await until(look, "a leader")
        return found[0]

    async def propose(self, header: bytes, payload: bytes = b"") -> Any:
        """As a client does: follows the leader and repeats until it is done."""
        deadline = time.monotonic() + 30
        while True:
            leader = self.leader()
            try:
                if leader is None:
                    raise Unavailable("no leader")
                return await leader.live.propose(GROUP, header, payload)
            except CurveError as error:
                if not error.retryable or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.005)


async def until(condition: Callable[[], Any], what: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s for {what}")
        await asyncio.sleep(0.005)
