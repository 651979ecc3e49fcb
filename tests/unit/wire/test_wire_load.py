"""Limits, deadlines, back-pressure and reconnection of the data-plane protocol, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from curve_storage.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Overloaded,
    Unavailable,
    Unimplemented,
)
from curve_storage.units import KiB, MiB
from curve_storage.wire.channel import Channel, ChannelPool
from curve_storage.wire.frame import HEADER, HEADER_SIZE, REPLY, encode
from curve_storage.wire.messages import MessageType, unpack_chunk
from curve_storage.wire.server import Request, Server

WRITE, READ, INFO = MessageType.CHUNK_WRITE, MessageType.CHUNK_READ, MessageType.CHUNK_INFO


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Channel]:
    port = await server.start("127.0.0.1", 0)
    pool = ChannelPool(token=None, client="test")
    try:
        yield pool.channel(f"127.0.0.1:{port}")
    finally:
        await pool.close()
        await server.stop()


async def until(condition: Callable[[], bool], timeout: float = 30) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


async def test_overloaded_by_count_is_said_at_once() -> None:
    held: list[Request] = []
    server = Server(verifier=None, max_inflight=4)
    server.handle(INFO, held.append, scope="any")
    async with serving(server) as channel:
        calls = [channel.call(INFO, b"%d" % number, timeout=60) for number in range(10)]
        await until(lambda: sum(call.done() for call in calls) == 6)
        assert [call.done() for call in calls] == [False] * 4 + [True] * 6
        for call in calls[4:]:
            with pytest.raises(Overloaded):
                await call
        await channel.call(MessageType.PING, b"", timeout=30)
        for request in held[:4]:
            request.reply(request.meta)
        assert [bytes((await call).meta) for call in calls[:4]] == [b"0", b"1", b"2", b"3"]
        held.clear()
        again = channel.call(INFO, b"x", timeout=60)
        await until(lambda: bool(held))
        held[0].reply(b"y")
        assert (await again).meta == b"y"
    assert server.inflight == 0 and server.refused == 6


@pytest.mark.parametrize("size", [8 * KiB, MiB])
async def test_overloaded_by_bytes(size: int) -> None:
    held: list[Request] = []
    server = Server(verifier=None, max_inflight_bytes=3 * size)
    server.handle(WRITE, held.append, scope="any")
    data = b"d" * size
    async with serving(server) as channel:
        calls = [channel.call(WRITE, b"", data, timeout=60) for _ in range(6)]
        await until(lambda: sum(call.done() for call in calls) == 3)
        assert server.inflight_bytes == 3 * size
        for request in held:
            assert request.payload == data
            request.reply(b"ok")
        assert [bytes((await call).meta) for call in calls[:3]] == [b"ok"] * 3
        for call in calls[3:]:
            with pytest.raises(Overloaded):
                await call
    assert (server.inflight, server.inflight_bytes) == (0, 0)


async def test_a_lone_request_over_the_byte_limit_is_served() -> None:
    server = Server(verifier=None, max_inflight_bytes=KiB)
    server.handle(WRITE, lambda request: request.reply(b"%d" % len(request.payload)), scope="any")
    async with serving(server) as channel:
        assert (await channel.call(WRITE, b"", bytes(MiB), timeout=30)).meta == b"%d" % MiB


async def test_deadlines() -> None:
    held: list[Request] = []
    server = Server(verifier=None)
    server.handle(INFO, held.append, scope="any")
    async with serving(server) as channel:
        await channel.call(MessageType.PING, b"", timeout=30)
        late = channel.call(INFO, b"late", timeout=0.1)
        patient = channel.call(INFO, b"patient", timeout=60)
        with pytest.raises(DeadlineExceeded) as caught:
            await late
        assert caught.value.where == channel.address
        await until(lambda: len(held) == 2)
        for request in held:
            request.reply(request.meta)  # the first of them too late
        assert (await patient).meta == b"patient"
        abandoned = channel.call(INFO, b"", timeout=60)
        abandoned.cancel()
        await until(lambda: len(held) == 3)
        held[2].reply()
        held.clear()
        assert (await channel.call(MessageType.PING, b"", timeout=30)).meta == b""


async def test_deadline_while_connecting() -> None:
    with socket.socket() as silent:  # accepts nothing: the backlog is full after a few connections
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
            fillers.append(filler)
        pool = ChannelPool(token=None, client="test")
        with pytest.raises(DeadlineExceeded):
            await pool.channel(f"127.0.0.1:{silent.getsockname()[1]}").call(INFO, b"", timeout=0.2)
        await pool.close()
        for filler in fillers:
            filler.close()


async def test_handler_mistakes() -> None:
    server = Server(verifier=None)

    def broken(request: Request) -> None:
        raise ZeroDivisionError("oops")

    def twice(request: Request) -> None:
        request.reply(b"one")
        with pytest.raises(Internal, match="twice"):
            request.reply(b"two")

    server.handle(INFO, broken, scope="any")
    server.handle(READ, lambda request: request.reply(b"", bytes(5 * MiB)), scope="any")
    server.handle(WRITE, twice, scope="any")
    server.handle(
        MessageType.CHUNK_DELETE, lambda request: request.reply(unpack_chunk(request.meta).pack()), scope="any"
    )
    async with serving(server) as channel:
        with pytest.raises(Internal, match="ZeroDivisionError"):
            await channel.call(INFO, b"", timeout=30)
        with pytest.raises(Internal, match="reply is too large"):
            await channel.call(READ, b"", timeout=30)
        assert (await channel.call(WRITE, b"", timeout=30)).meta == b"one"
        with pytest.raises(InvalidArgument, match="malformed meta"):
            await channel.call(MessageType.CHUNK_DELETE, b"short", timeout=30)
        with pytest.raises(Unimplemented):
            await channel.call(MessageType.FENCE, b"", timeout=30)
        with pytest.raises(InvalidArgument, match="over the limit"):
            await channel.call(WRITE, b"", bytes(4 * MiB + 1), timeout=30)
        with pytest.raises(InvalidArgument, match="over the limit"):
            await channel.call(INFO, bytes(64 * KiB + 1), timeout=30)
    assert server.inflight == 0


async def test_connection_lost_and_made_again() -> None:
    held: list[Request] = []
    server = Server(verifier=None)
    server.handle(INFO, held.append, scope="any")
    port = await server.start("127.0.0.1", 0)
    pool = ChannelPool(token=None, client="test")
    channel = pool.channel(f"127.0.0.1:{port}")
    call = channel.call(INFO, b"", timeout=60)
    await until(lambda: bool(held))
    await server.stop()
    with pytest.raises(Unavailable, match="connection lost"):
        await call
    held[0].reply(b"to nobody")
    with pytest.raises(Unavailable, match="cannot connect") as caught:
        await channel.call(INFO, b"", timeout=60)
    assert caught.value.where == channel.address and caught.value.todo
    assert channel.post(INFO, b"") is False
    second = Server(verifier=None)
    second.handle(INFO, lambda request: request.reply(b"back"), scope="any")
    await second.start("127.0.0.1", port)
    async with asyncio.timeout(30):
        while True:
            try:
                assert (await channel.call(INFO, b"", timeout=10)).meta == b"back"
                break
            except Unavailable:
                await asyncio.sleep(0.02)
    await pool.close()
    with pytest.raises(Unavailable, match="closed"):
        await channel.call(INFO, b"", timeout=10)
    await second.stop()


async def test_posts_arrive_in_order() -> None:
    seen: list[int] = []
    server = Server(verifier=None, max_inflight=1)
    server.handle(MessageType.RAFT_BATCH, lambda request: seen.append(int(bytes(request.meta))), scope="cluster")
    async with serving(server) as channel:
        assert channel.post(MessageType.RAFT_BATCH, b"-1") is False  # only begins to connect
        await until(lambda: channel.connected)
        for number in range(500):
            payload = [b"x" * 100, bytes(number * 300)]
            while not channel.post(MessageType.RAFT_BATCH, b"%d" % number, payload):
                await asyncio.sleep(0)  # too much queued
        await until(lambda: len(seen) == 500)
    assert seen == list(range(500))


async def test_large_metas() -> None:
    sizes: list[tuple[int, int]] = []
    server = Server(verifier=None)
    server.handle(
        MessageType.RAFT_BATCH, lambda request: sizes.append((len(request.meta), len(request.payload))), scope="any"
    )
    wanted = [(70_000, 0), (4 * MiB, 10), (100_000, 6 * MiB), (3, 3), (128 * KiB, 40 * KiB)]
    async with serving(server) as channel:
        await channel.call(MessageType.PING, b"", timeout=30)
        for meta, payload in wanted:
            assert channel.post(MessageType.RAFT_BATCH, bytes(meta), bytes(payload))
            await until(lambda: not channel._connectors[0]._link.paused)  # type: ignore[union-attr]
        await channel.call(MessageType.PING, b"", timeout=30)
    assert sizes == wanted


async def test_a_client_that_does_not_read_is_not_served_further() -> None:
    served = 0
    data = bytes(MiB)

    def read(request: Request) -> None:
        nonlocal served
        served += 1
        request.reply(b"", data)

    server = Server(verifier=None)
    server.handle(READ, read, scope="any")
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    total = 200
    for number in range(total):
        writer.write(encode(READ, bytes(1000), request_id=number + 1))  # 200 KB: more than one receive buffer
    await until(lambda: served > 0)
    for _ in range(50):
        await asyncio.sleep(0.01)
    assert served < total, "requests went on being served although nobody reads the replies"
    reader._transport.resume_reading()  # type: ignore[attr-defined]
    for number in range(total):
        header = HEADER.unpack(await asyncio.wait_for(reader.readexactly(HEADER_SIZE), 30))
        assert (header[5], header[2], header[7]) == (number + 1, REPLY, MiB)
        assert await reader.readexactly(MiB) == data
    writer.close()
    await server.stop()


async def test_a_server_that_does_not_read_is_not_sent_without_end() -> None:
    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KiB)  # else the kernel takes as much as it likes
    deaf = await asyncio.start_server(ignore, sock=listening)
    pool = ChannelPool(token=None, client="test")
    channel = pool.channel(f"127.0.0.1:{deaf.sockets[0].getsockname()[1]}")
    data = bytes(4 * MiB)
    first = channel.call(WRITE, b"", data, timeout=60)
    await until(lambda: channel.connected)
    refused = 0
    calls = []
    for _ in range(60):
        calls.append(channel.call(WRITE, b"", data, timeout=60))
        await asyncio.sleep(0)
        refused += calls[-1].done()
    assert refused > 30
    with pytest.raises(Overloaded):
        await calls[-1]
    assert channel.post(MessageType.RAFT_BATCH, b"") is False
    await pool.close()
    await asyncio.gather(first, *calls, return_exceptions=True)
    deaf.close()


async def test_several_connections() -> None:
    peers = set()
    server = Server(verifier=None)

    def handler(request: Request) -> None:
        peers.add(request.peer)
        request.reply()

    server.handle(INFO, handler, scope="any")
    port = await server.start("127.0.0.1", 0)
    pool = ChannelPool(token=None, client="test", connections=3)
    channel = pool.channel(f"127.0.0.1:{port}")
    await asyncio.gather(*[channel.call(INFO, b"", timeout=30) for _ in range(9)])
    assert len(peers) == 3
    await pool.drop(f"127.0.0.1:{port}")
    await until(lambda: server.connections == 0)
    assert pool.channel(f"127.0.0.1:{port}") is not channel
    await pool.close()
    await server.stop()


async def test_connection_limit_and_silent_connections() -> None:
    server = Server(verifier=None, max_connections=2)
    port = await server.start("127.0.0.1", 0)
    kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    await until(lambda: server.connections == 2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    header = HEADER.unpack(await asyncio.wait_for(reader.readexactly(HEADER_SIZE), 30))
    assert header[2] == REPLY and header[5] == 0
    assert b"too many connections" in await asyncio.wait_for(reader.read(), 30)
    for _reader, one in [*kept, (reader, writer)]:
        one.close()
    await server.stop()


async def test_a_stalled_frame_ends_the_connection() -> None:
    server = Server(verifier=None, stall_timeout=0.5)
    server.handle(WRITE, lambda request: request.reply(), scope="any")
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(encode(WRITE, b"", bytes(MiB), request_id=1)[:1000])
    await until(lambda: server.inflight_bytes == MiB)
    assert await asyncio.wait_for(reader.read(), 30) == b""
    assert (server.inflight, server.inflight_bytes) == (0, 0)
    writer.close()
    await server.stop()
