"""The keeper's frozen protocol, with real sockets and descriptors, and its behaviour towards bad clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curve_storage.volumehost import keeper as keeper_module
from curve_storage.volumehost import packet
from curve_storage.volumehost.keeper import Keeper


def call(keeper: Keeper, descriptors: list[int] | None = None, **message: Any) -> tuple[dict[str, Any], list[int]]:
    return keeper.handle({"version": 1, **message}, descriptors or [])


def pipe_end() -> tuple[int, int]:
    read, write = os.pipe()
    return read, write


def closed(write: int) -> bool:
    """Whether nobody has the other end of this pipe any more."""
    try:
        os.write(write, b"x")
    except BrokenPipeError:
        return True
    return False


def test_store_get_list_delete() -> None:
    keeper = Keeper()
    read, write = pipe_end()
    assert call(keeper, [read], op="store", name="v", blob={"a": 1})[0] == {"ok": True}
    assert call(keeper, op="list")[0]["names"] == {"v": {"a": 1}}
    assert call(keeper, op="store", name="v", blob=2)[0]["ok"], "a blob alone"
    reply, descriptors = call(keeper, op="get", name="v")
    assert reply == {"ok": True, "blob": 2} and descriptors == [read]
    assert not closed(write)
    assert call(keeper, op="delete", name="v")[0] == {"ok": True, "found": True}
    assert closed(write)
    assert call(keeper, op="delete", name="v")[0] == {"ok": True, "found": False}
    assert not call(keeper, op="get", name="v")[0]["ok"]
    os.close(write)


def test_a_replaced_descriptor_is_closed() -> None:
    keeper = Keeper()
    first, first_write = pipe_end()
    second, second_write = pipe_end()
    call(keeper, [first], op="store", name="v", blob=None)
    call(keeper, [second], op="store", name="v", blob=None)
    assert closed(first_write) and not closed(second_write)
    call(keeper, op="delete", name="v")
    os.close(first_write)
    os.close(second_write)


@pytest.mark.parametrize(
    "message",
    [
        {"version": 2, "op": "list"}, {"op": "list", "version": None}, {"version": 1, "op": "explode"}, {"version": 1},
        {"version": 1, "op": "store"}, {"version": 1, "op": "store", "name": ""},
        {"version": 1, "op": "get", "name": 7}, {"version": 1, "op": "get", "name": "absent"},
    ],
)  # fmt: skip
def test_refusals_say_why_and_close_what_came_along(message: dict[str, Any]) -> None:
    read, write = pipe_end()
    reply, descriptors = Keeper().handle(message, [read])
    assert not reply["ok"] and reply["error"] and descriptors == []
    assert closed(write)
    os.close(write)


def test_a_blob_without_a_descriptor_needs_a_known_name() -> None:
    assert "no descriptor" in call(Keeper(), op="store", name="new", blob=1)[0]["error"]


def test_the_keeper_is_small_and_needs_nothing() -> None:
    source = Path(keeper_module.__file__)
    assert len(source.read_text().splitlines()) < 200
    loaded = subprocess.run(
        [sys.executable, "-c", "import json, sys, curve_storage.volumehost.keeper; print(json.dumps([*sys.modules]))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    foreign = {
        name.partition(".")[0] for name in json.loads(loaded.stdout)
        if name.partition(".")[0] not in sys.stdlib_module_names and not name.startswith(("curve_storage", "__", "_"))
    }  # fmt: skip
    assert not foreign & {"grpc", "structlog", "pydantic", "uvloop", "yaml", "msgspec", "google"}, foreign


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    path = tmp_path / "keeper.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "curve_storage.volumehost.keeper", "--socket", str(path)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    yield path, process
    process.kill()
    process.wait(10)


def ask(path: Path, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> tuple[dict[str, Any], list[int]]:
    deadline = time.monotonic() + 20
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(10)
            try:
                connection.connect(str(path))
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
                continue
            packet.send(connection, {"version": 1, **message}, descriptors)
            received = packet.receive(connection)
            assert received is not None
            return received


def test_descriptors_outlive_their_process(running: tuple[Path, subprocess.Popen[bytes]], tmp_path: Path) -> None:
    path, process = running
    assert os.stat(path).st_mode & 0o777 == 0o600
    read, write = pipe_end()
    assert ask(path, {"op": "store", "name": "v", "blob": {"x": [1]}}, (write,))[0]["ok"]
    os.close(write)
    reply, descriptors = ask(path, {"op": "get", "name": "v"})
    assert reply["blob"] == {"x": [1]}
    os.write(descriptors[0], b"alive")
    os.close(descriptors[0])
    assert os.read(read, 10) == b"alive"
    os.close(read)
    assert ask(path, {"op": "ping"})[0] == {"ok": True, "pid": process.pid, "count": 1}


def test_bad_clients_do_no_harm(running: tuple[Path, subprocess.Popen[bytes]]) -> None:
    path, process = running
    for data in (b"", b"not json", b"[1]", b"{", b'"text"', b"x" * 140_000, json.dumps({"version": 1}).encode()):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            connection.connect(str(path))
            if data:
                connection.send(data)
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(20)]
    for connection in silent:
        connection.connect(str(path))
    os.kill(process.pid, signal.SIGHUP)
    assert ask(path, {"op": "ping"})[0]["pid"] == process.pid
    for connection in silent:
        connection.close()


def test_only_one_keeper_per_socket(running: tuple[Path, subprocess.Popen[bytes]]) -> None:
    path, process = running
    second = subprocess.run(
        [sys.executable, "-m", "curve_storage.volumehost.keeper", "--socket", str(path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert second.returncode != 0 and "another keeper" in second.stderr
    assert ask(path, {"op": "ping"})[0]["pid"] == process.pid
