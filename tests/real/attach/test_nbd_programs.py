"""The NBD server against the programs people use: nbdinfo, nbdcopy, qemu-img, qemu-io, fio."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MiB = 1 << 20
SIZE = 64 * MiB
pytestmark = [pytest.mark.timeout(180)]


class Server:
    def __init__(self, folder: Path, *options: str) -> None:
        self.file = folder / "device"
        self.socket = folder / "nbd.sock"
        self.uri = f"nbd+unix:///?socket={self.socket}"
        with open(self.file, "wb") as file:
            file.truncate(SIZE)
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "curve_storage.volumehost.volume_process", "--backend", "nbd", "--path", "/demo",
                "--control", str(folder / "control"), "--nbd-socket", str(self.socket), "--device-file", str(self.file),
                *options,
            ],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self.socket.exists():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(tmp_path, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait(10)


def command(*parts: str | Path, ok: bool = True) -> str:
    if shutil.which(str(parts[0])) is None:
        pytest.fail(f"{parts[0]} is not installed (apt-get install libnbd-bin qemu-utils fio)")
    done = subprocess.run([str(part) for part in parts], capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) is ok, f"{parts}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_nbdinfo(serve: Callable[..., Server]) -> None:
    server = serve()
    (export,) = json.loads(command("nbdinfo", "--json", server.uri))["exports"]
    assert export["export-size"] == SIZE and export["description"] == "Curve volume 0"
    for name, expected in {
        "is_read_only": False, "can_flush": True, "can_fua": True, "can_trim": True, "can_zero": True,
        "can_multi_conn": True, "can_df": True, "can_cache": True,
    }.items():  # fmt: skip
        assert export[name] is expected, name
    assert (export["block_size_preferred"], export["block_size_maximum"]) == (4096, 32 * MiB)
    assert "demo" in command("nbdinfo", "--list", server.uri)
    assert "structured" in command("nbdinfo", server.uri)
    command("nbdinfo", f"nbd+unix:///absent?socket={server.socket}", ok=False)


def test_nbdcopy_there_and_back(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(SIZE - 8 * MiB) + bytes(8 * MiB))
    command("nbdcopy", "--connections=4", source, server.uri)
    assert server.file.read_bytes() == source.read_bytes()
    command("nbdcopy", "--request-size=1048576", server.uri, back)
    assert back.read_bytes() == source.read_bytes()


def test_qemu_img_and_qemu_io(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    source = tmp_path / "source"
    source.write_bytes(os.urandom(SIZE))
    command("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri)
    assert "identical" in command("qemu-img", "compare", "-f", "raw", "-F", "raw", source, server.uri)
    script = [
        "write -P 0x11 4096 65536", "write -P 0x22 513 3000", "write -f -P 0x33 1M 4M", "write -z 8M 1M",
        "discard 16M 8M", "flush",
        "read -P 0x22 513 3000", "read -P 0x11 4096 65536", "read -P 0x33 1M 4M", "read -P 0 8M 1M", "read -P 0 16M 8M",
    ]  # fmt: skip
    out = command("qemu-io", "-f", "raw", *[part for line in script for part in ("-c", line)], server.uri)
    assert "Pattern verification failed" not in out and out.count("read ") >= 5
    data = server.file.read_bytes()
    original = source.read_bytes()
    assert data[:513] == original[:513] and data[3513:4096] == original[3513:4096]
    assert data[24 * MiB :] == original[24 * MiB :]
    assert server.file.stat().st_blocks * 512 <= SIZE - 7 * MiB, "the discard freed nothing"


def test_fio_verifies(serve: Callable[..., Server]) -> None:
    if "nbd" not in command("fio", "--enghelp"):
        pytest.skip("this fio was built without its nbd engine")
    server = serve("--device-delay", "0.001")
    out = command(
        "fio", "--name=v", "--ioengine=nbd", f"--uri={server.uri}", f"--size={SIZE}", "--rw=randwrite",
        "--bsrange=4k-512k", "--blockalign=4k", "--iodepth=16", "--io_size=48m", "--verify=crc32c", "--do_verify=1",
        "--output-format=json",
    )  # fmt: skip
    job = json.loads(out[out.index("{") :])["jobs"][0]
    assert job["error"] == 0 and job["read"]["total_ios"] > 0


def test_read_only_export(serve: Callable[..., Server]) -> None:
    server = serve("--read-only")
    (export,) = json.loads(command("nbdinfo", "--json", server.uri))["exports"]
    assert export["is_read_only"] is True and export["can_trim"] is False
    command("nbdcopy", server.uri, "null:")


def test_refusals_keep_the_connection(serve: Callable[..., Server]) -> None:
    """Beyond the end, unknown commands and too long reads are answered with errors; what follows works."""
    server = serve()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(server.socket))
        stream = connection.makefile("rb")
        assert stream.read(18) == b"NBDMAGICIHAVEOPT\0\3"
        connection.sendall(struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", 1, 0))
        assert struct.unpack(">QH", stream.read(10))[0] == SIZE
        request = struct.Struct(">IHHQQI")

        def ask(command_number: int, offset: int, length: int, payload: bytes = b"") -> int:
            connection.sendall(request.pack(0x25609513, 0, command_number, 99, offset, length) + payload)
            magic, error, cookie = struct.unpack(">IIQ", stream.read(16))
            assert (magic, cookie) == (0x67446698, 99)
            return int(error)

        assert ask(0, SIZE - 512, 4096) == 22
        assert ask(1, SIZE - 512, 4096, bytes(4096)) == 28
        assert ask(1, SIZE - 512, 2 * MiB, bytes(2 * MiB)) == 28, "a large payload is read off, too"
        assert ask(77, 0, 512) == 22
        assert ask(0, 0, 33 * MiB) == 75
        assert ask(4, SIZE, 4096) == 28
        assert ask(1, 0, 4, b"good") == 0
        connection.sendall(request.pack(0x25609513, 0, 0, 99, 0, 4))
        assert stream.read(20)[16:] == b"good"
        connection.sendall(b"garbage" * 8)
        assert stream.read(1) == b"", "a peer that speaks something else is hung up on"
    command("nbdinfo", "--size", server.uri)


def test_many_requests_in_flight_from_many_connections(serve: Callable[..., Server]) -> None:
    server = serve("--device-delay", "0.01")
    request = struct.Struct(">IHHQQI")
    connections = []
    for _ in range(4):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(str(server.socket))
        stream = connection.makefile("rb")
        stream.read(18)
        connection.sendall(struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", 1, 0))
        stream.read(10)
        connections.append((connection, stream))
    for number, (connection, _) in enumerate(connections):
        for block in range(600):  # more than one connection may have in hand
            offset = (number * 600 + block) * 4096
            payload = struct.pack("<Q", offset) * 512
            connection.sendall(request.pack(0x25609513, 0, 1, block, offset, 4096) + payload)
    for connection, stream in connections:
        cookies = set()
        for _ in range(600):
            magic, error, cookie = struct.unpack(">IIQ", stream.read(16))
            assert (magic, error) == (0x67446698, 0)
            cookies.add(cookie)
        assert cookies == set(range(600))
        connection.sendall(request.pack(0x25609513, 0, 2, 0, 0, 0))
        assert stream.read(1) == b""
        connection.close()
    data = server.file.read_bytes()
    for block in range(2400):
        assert data[block * 4096 : block * 4096 + 8] == struct.pack("<Q", block * 4096)
