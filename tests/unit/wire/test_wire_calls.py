from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from curve_storage.errors import ChunkNotExist, NotLeader, Unauthenticated, Unavailable, Unimplemented
from curve_storage.units import MiB
from curve_storage.wire.channel import Channel, ChannelPool
from curve_storage.wire.messages import MessageType
from curve_storage.wire.server import Request, Server
from curve_storage.wire.token import Keyring, TokenVerifier, volume_scope


@asynccontextmanager
async def connected(server: Server, token: bytes | None = None) -> AsyncIterator[Channel]:
    port = await server.start("127.0.0.1", 0)
    pool = ChannelPool(token=(lambda: token) if token is not None else None, client="test")
    try:
        yield pool.channel(f"127.0.0.1:{port}")
    finally:
        await pool.close()
        await server.stop()


@pytest.mark.parametrize("size", [0, 1, 4096, 32767, 32768, 200_000, 4 * MiB])
async def test_echo(size: int) -> None:
    server = Server(verifier=None)
    server.handle(MessageType.CHUNK_WRITE, lambda r: r.reply(r.meta, r.payload), scope="any")
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    async with connected(server) as channel:
        replies = await asyncio.gather(
            *[channel.call(MessageType.CHUNK_WRITE, b"m%d" % n, data, timeout=30) for n in range(5)]
        )
        for number, reply in enumerate(replies):
            assert reply.meta == b"m%d" % number
            assert reply.payload == data
        split = await channel.call(MessageType.CHUNK_WRITE, b"", [data[:100], data[100:]], timeout=30)
        assert split.payload == data
    assert server.inflight == 0 and server.inflight_bytes == 0


async def test_errors_travel_whole() -> None:
    server = Server(verifier=None)

    def handler(request: Request) -> None:
        raise NotLeader("go away", leader="7", where="copyset 3", todo="Ask 7")

    server.handle(MessageType.CHUNK_READ, handler, scope="any")
    server.handle(MessageType.CHUNK_INFO, lambda r: r.fail(ChunkNotExist("none")), scope="any")
    async with connected(server) as channel:
        with pytest.raises(NotLeader) as caught:
            await channel.call(MessageType.CHUNK_READ, b"", timeout=10)
        error = caught.value
        assert (error.what, error.where, error.todo, error.leader) == ("go away", "copyset 3", "Ask 7", "7")
        with pytest.raises(ChunkNotExist):
            await channel.call(MessageType.CHUNK_INFO, b"", timeout=10)


async def test_token_needed() -> None:
    keyring = Keyring.generate()
    server = Server(verifier=TokenVerifier(keyring))
    server.handle(MessageType.CHUNK_INFO, lambda r: r.reply(b"ok"), scope="volume")
    async with connected(server) as channel:
        with pytest.raises(Unauthenticated):
            await channel.call(MessageType.CHUNK_INFO, b"", timeout=10)
        await channel.call(MessageType.PING, b"", timeout=10)
    good = keyring.sign(volume_scope(4), epoch=1, rights="rw", expires=4e9)
    async with connected(server, good) as channel:
        assert (await channel.call(MessageType.CHUNK_INFO, b"", timeout=10)).meta == b"ok"


async def test_a_server_whose_handlers_are_not_there_yet_asks_to_repeat() -> None:
    """A chunkserver listens before it is registered; its peers and clients must not take that for the end."""
    server = Server(verifier=None)
    server.not_ready = "the chunkserver is starting"
    async with connected(server) as channel:
        with pytest.raises(Unavailable, match="is starting"):
            await channel.call(MessageType.CHUNK_READ, b"", timeout=30)
        server.handle(MessageType.CHUNK_READ, lambda request: request.reply(b"here"), scope="any")
        server.not_ready = ""
        assert (await channel.call(MessageType.CHUNK_READ, b"", timeout=30)).meta == b"here"
        with pytest.raises(Unimplemented):
            await channel.call(MessageType.CHUNK_INFO, b"", timeout=30)
