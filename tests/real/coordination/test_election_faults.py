"""Faults around the election, with a real etcd of three members and writers in processes of their own.

Whatever happens, the history in etcd must read as one leader after the other: sorted by revision, the terms of the
accepted writes never go back, a term has one writer, and every acknowledged write is there.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_cluster import EtcdCluster

from curve_storage.coordination.etcd import EtcdClient

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]
WRITER = Path(__file__).with_name("election_writer.py")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd3"), members=3) as cluster:
        yield cluster


class Writer:
    def __init__(self, name: str, directory: Path, endpoints: list[str], prefix: str, *options: str) -> None:
        self.name = name
        self._path = directory / f"{name}.jsonl"
        self._errors = directory / f"{name}.log"
        with self._path.open("wb") as out, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable, str(WRITER), "--endpoints", ",".join(endpoints),
                    "--prefix", prefix, "--name", name, *options,
                ],
                stdout=out, stderr=errors,
            )  # fmt: skip

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        lines = self._path.read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in found if not kinds or event["event"] in kinds]

    def written(self) -> int:
        return len(self.events("written"))

    def log(self) -> str:
        return self._errors.read_text()[-3000:]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


class Scene:
    def __init__(self, cluster: EtcdCluster, directory: Path) -> None:
        self.cluster = cluster
        self.prefix = f"/{uuid.uuid4().hex}/"
        self.writers: list[Writer] = []
        self._directory = directory

    def writer(self, name: str, *options: str, endpoints: list[str] | None = None) -> Writer:
        made = Writer(name, self._directory, endpoints or self.cluster.endpoints, self.prefix, *options)
        self.writers.append(made)
        return made

    async def until(self, condition: Callable[[], Any], what: str, timeout: float = 60) -> Any:
        end = time.monotonic() + timeout
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > end:
                logs = "\n".join(f"{writer.name}: {writer.log()}" for writer in self.writers)
                pytest.fail(f"never happened: {what}\n{logs}")
            await asyncio.sleep(0.05)

    async def writes(self, writer: Writer, more: int = 5) -> None:
        goal = writer.written() + more
        await self.until(lambda: writer.written() >= goal, f"{writer.name} writes")

    async def check(self) -> list[dict[str, Any]]:
        """The history in order of revision; fails when two writers interleave or an acknowledged write is missing."""
        client = EtcdClient(self.cluster.config(self.prefix), deadline=30)
        kvs, now = await client.get_prefix(b"history/")
        await client.close()
        history = []
        for kv in sorted(kvs, key=lambda kv: kv.mod_revision):
            term, name = kv.key.decode().split("/")[1:3]
            assert kv.version == 1, "a write was applied twice"
            history.append({"key": kv.key.decode(), "term": int(term, 16), "name": name, "revision": kv.mod_revision})
        terms = [entry["term"] for entry in history]
        assert terms == sorted(terms), "writes of an older leader were accepted after a newer leader's"
        owners: dict[int, set[str]] = {}
        for entry in history:
            owners.setdefault(entry["term"], set()).add(entry["name"])
        assert all(len(names) == 1 for names in owners.values()), owners
        there = {entry["key"]: entry["revision"] for entry in history}
        for writer in self.writers:
            for event in writer.events("written"):
                if event["revision"] <= now:  # the writers may still be running
                    assert there.get(event["key"]) == event["revision"], "an acknowledged write is missing"
        self.check_times()
        return history

    def check_times(self) -> None:
        """Nobody believes to lead any more once a later leader has been elected (same clock: one machine)."""
        elected = sorted((event["term"], event["at"]) for writer in self.writers for event in writer.events("elected"))
        for writer in self.writers:
            for event in writer.events("leading"):
                later = [at for term, at in elected if term > event["term"]]
                assert not later or event["at"] < min(later), f"{writer.name} still led after its successor's election"


@pytest.fixture
async def scene(three: EtcdCluster, tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(three, tmp_path)
    try:
        yield made
    finally:
        for writer in made.writers:
            writer.end()
        for member in range(3):
            if three.alive(member):
                three.resume(member)
            else:
                three.start(member)
        three.wait_healthy()


async def second_writer(scene: Scene, **options: Any) -> Writer:
    """Starts b and waits until it stands in line behind the leader."""
    writer = scene.writer("b", **options)
    client = EtcdClient(scene.cluster.config(scene.prefix), deadline=30)
    async with asyncio.timeout(60):
        while len((await client.get_prefix(b"leader/"))[0]) < 2:
            await asyncio.sleep(0.05)
    await client.close()
    return writer


async def test_killed_leader(scene: Scene) -> None:
    first = scene.writer("a")
    await scene.writes(first)
    second = await second_writer(scene)
    first.process.kill()
    await scene.writes(second)
    history = await scene.check()
    assert [entry["name"] for entry in history if entry["name"] == "b"] and history[0]["name"] == "a"


async def test_resigned_leader_is_followed_at_once(scene: Scene) -> None:
    first = scene.writer("a", "--ttl", "60")
    await scene.writes(first)
    second = await second_writer(scene)
    first.process.terminate()  # long before its lease of 60 s could expire
    await scene.writes(second)
    assert first.process.wait(30) == 0
    assert first.events("resigned")
    await scene.check()


async def test_killed_standby_changes_nothing(scene: Scene) -> None:
    first = scene.writer("a")
    await scene.writes(first)
    second = await second_writer(scene)
    second.process.kill()
    await asyncio.sleep(4)  # more than its lease
    await scene.writes(first)
    assert len(first.events("elected")) == 1 and not first.events("lost")
    await scene.check()


async def test_etcd_leader_killed(scene: Scene) -> None:
    first = scene.writer("a")
    await scene.writes(first)
    second = await second_writer(scene)
    member = scene.cluster.leader()
    scene.cluster.kill(member)
    before = first.written() + second.written()
    await scene.until(lambda: first.written() + second.written() > before + 20, "writes go on")
    scene.cluster.start(member)
    scene.cluster.wait_healthy()
    before = first.written() + second.written()
    await scene.until(lambda: first.written() + second.written() > before + 20, "writes go on")
    await scene.check()


async def test_etcd_without_majority_and_back(scene: Scene) -> None:
    first = scene.writer("a")
    await scene.writes(first)
    second = await second_writer(scene)
    for member in (0, 1):
        scene.cluster.kill(member)
    await scene.until(lambda: first.events("lost"), "the leader stops by itself")
    assert not second.events("elected")
    for member in (0, 1):
        scene.cluster.start(member)
    scene.cluster.wait_healthy()
    before = first.written() + second.written()
    await scene.until(lambda: first.written() + second.written() > before + 5, "writes go on")
    await scene.check()


async def test_leader_cut_from_etcd(scene: Scene) -> None:
    proxies = [Proxy(address) for address in scene.cluster.endpoints]
    try:
        endpoints = [await proxy.start() for proxy in proxies]
        first = scene.writer("a", endpoints=endpoints)
        await scene.writes(first)
        second = await second_writer(scene)
        for proxy in proxies:
            proxy.cut()
        await scene.writes(second)
        lost = await scene.until(lambda: first.events("lost"), "the cut leader notices")
        assert lost[0]["at"] < second.events("elected")[0]["at"] + 30
        for proxy in proxies:
            proxy.heal()  # what was held back arrives now, late
        await scene.writes(second, 50)
        history = await scene.check()
        assert {entry["name"] for entry in history} == {"a", "b"}
    finally:
        for proxy in proxies:
            await proxy.stop()


async def test_paused_leader(scene: Scene) -> None:
    first = scene.writer("a")
    await scene.writes(first)
    second = await second_writer(scene)
    first.process.send_signal(signal.SIGSTOP)
    await scene.writes(second)
    first.process.send_signal(signal.SIGCONT)
    await scene.until(lambda: first.events("lost"), "the paused leader notices")
    await scene.writes(second, 20)
    await scene.check()


async def test_leader_paused_between_check_and_write(scene: Scene) -> None:
    """The window that no clock closes: only the guard in etcd refuses this write. Without it, it lands."""
    first = scene.writer("a", "--stop-before", "10", "--unguarded")
    await scene.until(lambda: first.events("stopping"), "a stops itself")
    second = scene.writer("b")
    await scene.writes(second)
    first.process.send_signal(signal.SIGCONT)
    refused = (await scene.until(lambda: first.events("refused"), "the late write is refused"))[0]
    assert refused["code"] in ("not_leader", "aborted")
    await scene.until(lambda: first.events("lost"), "the late leader notices")
    history = await scene.check()
    assert refused["key"] not in [entry["key"] for entry in history]
    client = EtcdClient(scene.cluster.config(scene.prefix), deadline=30)
    async with asyncio.timeout(30):
        while (unguarded := await client.get(b"unguarded")) is None:
            await asyncio.sleep(0.05)
    assert unguarded.value.decode() == refused["key"], "the same write without the guard is accepted"
    await client.close()


async def test_two_of_three_candidates_die_in_turn(scene: Scene) -> None:
    writers = {name: scene.writer(name) for name in ("a", "b", "c")}
    for _ in range(2):
        leader = await scene.until(
            lambda: next((one for one in writers.values() if one.written() > 3), None), "someone leads"
        )
        del writers[leader.name]
        leader.process.kill()
    last = next(iter(writers.values()))
    await scene.writes(last)
    history = await scene.check()
    assert len({entry["term"] for entry in history}) >= 3


class Proxy:
    """Forwards TCP to one address until `cut`: then everything sent hangs, as if the network had been unplugged."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    async def stop(self) -> None:
        self.heal()
        for writer in self._writers:
            writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        for source, sink in ((reader, upstream_writer), (upstream_reader, writer)):
            self._writers.add(sink)
            task = asyncio.create_task(self._forward(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._open.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            await self._open.wait()
            sink.close()
