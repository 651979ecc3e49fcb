"""100,000 malformed byte streams against the server: it never fails, takes no memory for them, and goes on serving.

Most go straight into real connection objects of a real server (a socket each would take minutes); some go over TCP.
A failure prints the seed: run again with CURVE_FUZZ_SEED=<seed>.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import struct
import tracemalloc
from typing import Any

import pytest
import uvloop

from curve_storage.units import KiB, MiB
from curve_storage.wire.channel import ChannelPool, _Connector, _Link
from curve_storage.wire.frame import HEADER, MAGIC, VERSION, encode
from curve_storage.wire.messages import ChunkMeta, MessageType, unpack_chunk
from curve_storage.wire.receiver import SHARED_POOL
from curve_storage.wire.server import Request, Server, ServerConnection
from curve_storage.wire.token import CLUSTER_SCOPE, Keyring, TokenVerifier

SEED = int(os.environ.get("CURVE_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
STREAMS = 100_000
META = ChunkMeta(1 << 32 | 5, 77, 3, 1, 1, 4096, 4096, 0, 9, 8).pack()


class Sink:
    """A transport that counts what is written to it."""

    def __init__(self) -> None:
        self.closed = False
        self.written = 0

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 4242)

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def close(self) -> None:
        self.closed = True

    abort = close


def feed(connection: Any, stream: bytes, rng: random.Random) -> None:
    """As the kernel would: in pieces, never more than the buffer offered."""
    position = 0
    pieces = rng.choice((1, 1, 1, 2, 5))
    step = max(1, len(stream) // pieces)
    while position < len(stream) and not connection.transport.closed:
        buffer = connection.get_buffer(-1)
        assert len(buffer) > 0
        piece = stream[position : position + min(step, len(buffer))]
        buffer[: len(piece)] = piece
        connection.buffer_updated(len(piece))
        position += len(piece)


class Fuzzer:
    def __init__(self, rng: random.Random, token: bytes) -> None:
        self.rng = rng
        self.hello = encode(MessageType.HELLO, b"\x82\xa5token\xc4" + bytes([len(token)]) + token + b"\xa6client\xa1f")
        data = rng.randbytes(4 * KiB)
        self.valid = [
            self.hello,
            encode(MessageType.PING, request_id=1),
            encode(MessageType.CHUNK_WRITE, META, data, request_id=2),
            encode(MessageType.CHUNK_READ, META, request_id=3),
            encode(MessageType.CHUNK_WRITE, META, rng.randbytes(40 * KiB), request_id=4),
            encode(MessageType.RAFT_BATCH, rng.randbytes(3000), data, flags=2, request_id=5),
            encode(MessageType.CHUNK_INFO, b"\x80", request_id=6),
        ]

    def stream(self) -> bytes:
        rng = self.rng
        start = self.hello if rng.random() < 0.6 else b""
        return start + rng.choice((self.flipped, self.noise, self.lengths, self.cut, self.fields, self.spliced))()

    def flipped(self) -> bytes:
        frame = bytearray(self.rng.choice(self.valid))
        for _ in range(self.rng.choice((1, 1, 2, 8))):
            frame[self.rng.randrange(min(len(frame), 200))] ^= 1 << self.rng.randrange(8)
        return bytes(frame)

    def noise(self) -> bytes:
        return self.rng.randbytes(self.rng.choice((1, 27, 28, 100, 2000)))

    def lengths(self) -> bytes:
        """Intact in all but lengths that nobody may ask for, or that nothing follows."""
        rng = self.rng
        kind = rng.choice((1, 2, 16, 17, 33, 48, 50, 999))
        meta = rng.choice((0, 100, 64 * KiB, 64 * KiB + 1, 4 * MiB, 4 * MiB + 1, 1 << 31, (1 << 32) - 1))
        payload = rng.choice((0, 1, 4 * MiB, 4 * MiB + 1, 64 * MiB, 1 << 31, (1 << 32) - 1))
        header = HEADER.pack(MAGIC, VERSION, rng.choice((0, 2)), kind, 0, rng.getrandbits(64), meta, payload, 0)
        return header + rng.randbytes(rng.choice((0, 50, 3000)))

    def cut(self) -> bytes:
        frame = self.rng.choice(self.valid)
        return frame[: self.rng.randrange(len(frame))]

    def fields(self) -> bytes:
        """A right checksum over wrong contents: types, flags, statuses and metas at random."""
        rng = self.rng
        return encode(
            rng.choice((0, 1, 2, 3, 16, 17, 18, 32, 48, 51, 65535)),
            rng.randbytes(rng.choice((0, 1, 63, 64, 65, 300))),
            rng.randbytes(rng.choice((0, 0, 10, 4096))),
            flags=rng.choice((0, 0, 1, 2, 3, 255)),
            status=rng.choice((0, 7, 65535)),
            request_id=rng.choice((0, 1, (1 << 64) - 1)),
        )

    def spliced(self) -> bytes:
        one, two = self.rng.choice(self.valid), self.rng.choice(self.valid)
        return one[: self.rng.randrange(len(one))] + two[self.rng.randrange(len(two)) :]


def make_server(keyring: Keyring) -> Server:
    server = Server(verifier=TokenVerifier(keyring))

    def write(request: Request) -> None:
        meta = unpack_chunk(request.meta)
        assert request.identity is not None
        request.identity.check_volume(meta.volume, write=True)
        request.reply(b"", request.payload[:100])

    server.handle(MessageType.CHUNK_WRITE, write, scope="volume")
    server.handle(MessageType.CHUNK_READ, lambda request: request.reply(b"", bytes(100)), scope="volume")
    server.handle(MessageType.RAFT_BATCH, lambda request: None, scope="cluster")
    return server


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_malformed_streams() -> None:
    print(f"CURVE_FUZZ_SEED={SEED}")
    uvloop.run(_malformed_streams())


async def _malformed_streams() -> None:
    rng = random.Random(SEED)
    keyring = Keyring.generate()
    token = keyring.sign(CLUSTER_SCOPE, epoch=0, rights="rw", expires=4e9)
    server = make_server(keyring)
    fuzzer = Fuzzer(rng, token)
    loop = asyncio.get_running_loop()
    port = await server.start("127.0.0.1", 0)
    before = 0
    refused = 0
    for number in range(STREAMS):
        connection, sink = ServerConnection(server, loop), Sink()
        connection.connection_made(sink)  # type: ignore[arg-type]
        feed(connection, fuzzer.stream(), rng)
        connection.flush()
        refused += sink.closed
        connection.connection_lost(None)
        assert (server.inflight, server.inflight_bytes) == (0, 0), number
        if number == STREAMS // 10:
            before = resident()
        if number % 1000 == 0:
            await asyncio.sleep(0)
    assert resident() - before < 48 * MiB, "memory grows with malformed frames"
    assert SHARED_POOL.held <= 32 * MiB
    assert STREAMS // 4 < server.violations <= refused < STREAMS

    for _ in range(1000):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(fuzzer.stream())
        if rng.random() < 0.5:
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 30)
        writer.transport.abort()
    pool = ChannelPool(token=lambda: token, client="honest")
    channel = pool.channel(f"127.0.0.1:{port}")
    data = rng.randbytes(MiB)
    reply = await channel.call(MessageType.CHUNK_WRITE, META, data, timeout=30)
    assert reply.payload == data[:100]
    async with asyncio.timeout(30):
        while server.connections > 1:
            await asyncio.sleep(0.01)
    assert (server.inflight, server.inflight_bytes) == (0, 0)
    await pool.close()
    await server.stop()


def test_malformed_replies() -> None:
    """The client's end survives the same: its calls fail, nothing else happens."""
    print(f"CURVE_FUZZ_SEED={SEED}")

    async def run() -> None:
        rng = random.Random(SEED)
        fuzzer = Fuzzer(rng, b"t")
        loop = asyncio.get_running_loop()
        for number in range(4_000):
            connector = _Connector("192.0.2.1:1", None, "fuzz", None, loop)
            link = _Link(connector, loop)
            link.connection_made(Sink())  # type: ignore[arg-type]
            connector._link = link
            calls = [connector.call(MessageType.CHUNK_READ, META, b"", 1000.0) for _ in range(3)]
            stream = fuzzer.stream() if number % 2 else encode(17, rng.randbytes(9), flags=1, status=9, request_id=1)
            feed(link, stream, rng)
            link.connection_lost(None)
            assert all(call.done() for call in calls)
            for call in calls:
                call.exception()
            assert connector._sweeper is not None
            connector._sweeper.cancel()

    uvloop.run(run())


@pytest.mark.parametrize("authenticated", [False, True])
async def test_no_memory_before_the_checks(authenticated: bool) -> None:
    """A header alone must not make the server allocate what it announces, unless it is admitted and within limits."""
    keyring = Keyring.generate()
    token = keyring.sign(CLUSTER_SCOPE, epoch=0, rights="rw", expires=4e9)
    server = make_server(keyring)
    fuzzer = Fuzzer(random.Random(1), token)
    loop = asyncio.get_running_loop()
    headers = [
        HEADER.pack(MAGIC, VERSION, 0, kind, 0, 1, meta, payload, 0)
        for kind in (16, 48, 50)
        for meta, payload in (((1 << 32) - 1, 0), (5 * MiB, 0), (0, (1 << 32) - 1), (0, 65 * MiB))
    ]
    if not authenticated:
        headers += [HEADER.pack(MAGIC, VERSION, 0, 48, 0, 1, 4 * MiB, 0, 0)]
        headers += [encode(16, META, bytes(4 * MiB), request_id=1)[: HEADER.size + len(META) + 10]]
    tracemalloc.start()
    try:
        for header in headers:
            connection, sink = ServerConnection(server, loop), Sink()
            connection.connection_made(sink)  # type: ignore[arg-type]
            stream = (fuzzer.hello if authenticated else b"") + header
            tracemalloc.reset_peak()
            base = tracemalloc.get_traced_memory()[0]
            held = SHARED_POOL.held
            feed(connection, stream, random.Random(0))
            assert tracemalloc.get_traced_memory()[1] - base < 100 * KiB
            assert SHARED_POOL.held == held
            connection.connection_lost(None)
    finally:
        tracemalloc.stop()


def test_header_layout() -> None:
    assert HEADER.size == 28
    frame = encode(16, b"meta", b"payload", flags=1, status=2, request_id=3)
    magic, version, flags, kind, status, request_id, meta, payload, _crc = struct.unpack("<HBBHHQIII", frame[:28])
    assert (magic, version, flags, kind, status, request_id, meta, payload) == (0xC57E, 1, 1, 16, 2, 3, 4, 7)
    assert frame[28:] == b"metapayload"
