"""What judges a chaos run can fail: the shadow copy, the stalls, the NBD client that repeats, the disk that obeys."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from curve_storage.attach.file_device import FileDevice
from curve_storage.attach.nbd_server import NbdServer
from curve_storage.clock import SystemClock
from curve_storage.errors import Corruption, InvalidArgument
from curve_storage.units import BLOCK_SIZE
from e2e.chaos.faults import Outcome
from e2e.chaos.faulty_device import FaultyDevice, Mode
from e2e.chaos.loads import DirectFile, FioJob, FioLoad, ShadowLoad, direct_access
from e2e.chaos.nbd_client import NbdClient, NbdError
from e2e.chaos.plan import KINDS, Fault
from e2e.chaos.run import Options, Result, passed, summary
from e2e.chaos.shadow import Shadow, Span, content
from e2e.chaos.stalls import Waits

SALT = 3


def shadow() -> Shadow:
    return Shadow([(10, 20)], SALT, "test")


def written(one: Shadow) -> Span:
    """The next write, acknowledged."""
    while (span := one.take()).version is None:
        one.check(span, b"".join(content(SALT, block, one._acknowledged.get(block, 0)) for block in span.blocks))
    one.acknowledge(span)
    return span


def test_what_was_acknowledged_must_be_there() -> None:
    one = shadow()
    span = written(one)
    assert span.version is not None
    read = Span(span.first, 1, None)
    one.check(read, content(SALT, span.first, span.version))
    for wrong, what in (
        (bytes(BLOCK_SIZE), "zeros"),
        (content(SALT, span.first, span.version + 1), "version"),
        (content(SALT, span.first + 1, span.version), f"block {span.first + 1}"),
        (content(SALT + 1, span.first, span.version), "version"),
        (content(SALT, span.first, span.version)[:2048] + bytes(2048), "torn"),
    ):
        with pytest.raises(Corruption, match=what):
            one.check(read, wrong)


def test_a_write_under_way_may_be_there_or_not_but_only_one_of_them_stays() -> None:
    one = shadow()
    while (span := one.take()).version is None:
        one.check(span, bytes(span.count * BLOCK_SIZE))
    assert span.version is not None
    read = Span(span.first, 1, None)
    one.check(read, content(SALT, span.first, span.version))
    with pytest.raises(Corruption):
        one.check(read, bytes(BLOCK_SIZE))


def test_no_block_is_given_to_two() -> None:
    one = Shadow([(0, 64)], SALT, "test")
    taken: set[int] = set()
    for _ in range(4):
        blocks = set(one.take().blocks)
        assert not blocks & taken
        taken |= blocks


def file_of(path: Path, blocks: int) -> Path:
    path.write_bytes(bytes(blocks * BLOCK_SIZE))
    return path


def run_load(path: Path) -> ShadowLoad:
    load = ShadowLoad("shadow", "/v", direct_access(path), Shadow([(0, 64)], SALT, "test"), workers=2, pace=0.0)
    load.start()
    deadline = time.monotonic() + 60
    while load.waits.count < 200 and not load.problems and time.monotonic() < deadline:
        time.sleep(0.01)
    assert load.stop(60)
    return load


def test_a_load_finds_one_changed_byte(tmp_path: Path) -> None:
    path = file_of(tmp_path / "file", 64)
    load = run_load(path)
    load.verify()
    assert not load.problems and load.verified >= 64 * BLOCK_SIZE
    changed = bytearray(path.read_bytes())
    changed[5 * BLOCK_SIZE + 77] ^= 1
    path.write_bytes(changed)
    load.verify()
    assert [problem.lost for problem in load.problems] == [True] and "block 5 " in load.problems[0].what


def test_a_load_reports_an_io_error(tmp_path: Path) -> None:
    path = file_of(tmp_path / "file", 8)  # 56 of the 64 blocks are missing: reads come short

    class Missing(DirectFile):
        def write(self, offset: int, data: bytes) -> None:
            raise OSError(5, "Input/output error")

    load = ShadowLoad("shadow", "/v", lambda _: Missing(path), Shadow([(0, 64)], SALT, "test"), workers=1, pace=0.0)
    load.start()
    load.threads[0].join(60)
    assert load.problems and not load.problems[0].lost


def test_stalls_are_those_of_the_window() -> None:
    waits = Waits()
    waits.note(1.0, 1.01)  # too short to be noted
    waits.note(2.0, 5.0)
    waits.begin(1, 20.0)
    assert waits.longest(0.0, 1.5, 30.0) == 0.0
    assert waits.longest(0.0, 3.0, 30.0) == 3.0
    assert waits.longest(4.0, 6.0, 30.0) == 1.0, "waiting before the fault is not its work"
    assert waits.longest(10.0, 21.0, 23.0) == 3.0, "still under way"
    waits.end(1, 24.0)
    assert waits.longest(10.0, 21.0, 30.0) == 4.0


@pytest.mark.parametrize("text", ["", "slow", "slow x", "eio 0.5", "eio 2 read", "eio 0.5 everything", "ok now"])
def test_a_mode_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no mode"):
        Mode.parse(text.split())


async def test_a_faulty_disk_fails_what_it_is_told(tmp_path: Path) -> None:
    disk = FaultyDevice(FileDevice(file_of(tmp_path / "file", 4)), random.Random(1))
    await disk.write(0, memoryview(b"x" * BLOCK_SIZE))
    disk.mode = Mode.parse(["eio", "1", "write,sync"])
    with pytest.raises(OSError, match="Input/output"):
        await disk.write(0, memoryview(b"y" * BLOCK_SIZE))
    with pytest.raises(OSError, match="Input/output"):
        await disk.flush()
    assert bytes(await disk.read(0, BLOCK_SIZE)) == b"x" * BLOCK_SIZE, "what fails does nothing"
    assert disk.failed == {"read": 0, "write": 1, "sync": 1}
    disk.mode = Mode.parse(["slow", "50"])
    started = asyncio.get_running_loop().time()
    await disk.write(0, memoryview(b"z" * BLOCK_SIZE))
    assert asyncio.get_running_loop().time() - started >= 0.05
    disk.mode = Mode.parse(["ok"])
    await disk.flush()


async def test_nbd_requests_survive_their_server(tmp_path: Path) -> None:
    device = FileDevice(file_of(tmp_path / "file", 16))

    async def server() -> NbdServer:
        made = NbdServer(tmp_path / "sock", device, name="v", description="", clock=SystemClock())
        await made.start()
        return made

    async def call(what: Callable[[], object]) -> object:
        return await asyncio.wait_for(asyncio.to_thread(what), 30)

    first = await server()
    client = NbdClient(tmp_path / "sock", "v", threading.Event())
    await call(lambda: client.write(0, b"a" * BLOCK_SIZE))
    await first.stop()
    waiting = asyncio.ensure_future(call(lambda: client.write(BLOCK_SIZE, b"b" * BLOCK_SIZE)))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    second = await server()
    await waiting
    assert client.reconnects >= 1
    assert await call(lambda: client.read(0, 2 * BLOCK_SIZE)) == b"a" * BLOCK_SIZE + b"b" * BLOCK_SIZE
    with pytest.raises(NbdError):
        await call(lambda: client.read(1 << 30, BLOCK_SIZE))
    client.close()
    await second.stop()


def test_the_verdict() -> None:
    options = Options(Path("/x"), 1, 5, 13)
    done = Outcome(Fault(1, 0.0, KINDS[0], "chunkserver1", 1.0, 0.5), started=10.0, cured=11.0, restored=12.0)
    done.waits = {"/v": 1.5}
    good = Result(outcomes=[done], cleaned=True)
    assert passed(good) and "nothing lost" in summary(good, options)[-1] and "1.50 s" in summary(good, options)[-1]
    for bad in (
        Result(outcomes=[done], cleaned=True, problems=["lost"]),
        Result(outcomes=[done], cleaned=False),
        Result(outcomes=[], cleaned=True),
    ):
        assert not passed(bad) and "FAILED" in summary(bad, options)[-1]


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_fio_finds_one_changed_byte_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    job = FioJob([f"--filename={path}", "--ioengine=psync"], tmp_path / "work", 16 * BLOCK_SIZE, 2000)
    load = FioLoad("fio", "/v", job, dict(os.environ))
    load.start()
    deadline = time.monotonic() + 60
    while job.rounds < 2 and not load.problems and time.monotonic() < deadline:
        time.sleep(0.05)
    assert load.stop(60)
    load.verify()
    assert not load.problems and load.waits.count >= 2 * 16
    changed = bytearray(path.read_bytes())
    changed[5 * BLOCK_SIZE + 1777] ^= 1
    path.write_bytes(changed)
    load.verify()
    assert [problem.lost for problem in load.problems] == [True]
