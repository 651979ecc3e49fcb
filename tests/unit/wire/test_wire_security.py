"""Tokens, scopes and mutual TLS on the data port."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from certificates import Authority

from curve_storage.clock import ManualClock
from curve_storage.config import TlsFiles
from curve_storage.errors import ConfigError, CurveError, PermissionDenied, Unauthenticated, Unavailable
from curve_storage.wire.channel import Channel, ChannelPool
from curve_storage.wire.messages import MessageType
from curve_storage.wire.server import Server
from curve_storage.wire.token import CLUSTER_SCOPE, Identity, Keyring, TokenVerifier, volume_scope

INFO, BATCH, PING = MessageType.CHUNK_INFO, MessageType.FENCE, MessageType.PING


@asynccontextmanager
async def guarded(verifier: TokenVerifier, **options: float) -> AsyncIterator[tuple[Server, int]]:
    server = Server(verifier=verifier, **options)  # type: ignore[arg-type]
    server.handle(INFO, lambda request: request.reply(msgspec.json.encode(str(request.identity))), scope="volume")
    server.handle(BATCH, lambda request: request.reply(b"done"), scope="cluster")
    try:
        yield server, await server.start("127.0.0.1", 0)
    finally:
        await server.stop()


async def outcome(channel: Channel, kind: int) -> str:
    try:
        await channel.call(kind, b"", timeout=30)
        return "ok"
    except CurveError as error:
        return f"{error.code}: {error.what}"


async def test_scopes() -> None:
    keyring = Keyring.generate()
    async with guarded(TokenVerifier(keyring)) as (_server, port):
        tokens = {
            "volume": keyring.sign(volume_scope(7), epoch=1, rights="rw", expires=4e9),
            "cluster": keyring.sign(CLUSTER_SCOPE, epoch=0, rights="rw", expires=4e9),
            "strange": keyring.sign("everything", epoch=0, rights="rw", expires=4e9),
            "forged": Keyring.generate().sign(CLUSTER_SCOPE, epoch=0, rights="rw", expires=4e9),
            "expired": keyring.sign(CLUSTER_SCOPE, epoch=0, rights="rw", expires=1),
            "none": b"",
            "rubbish": b"\xff" * 50,
            "long": b"\xff" * 5000,
        }
        found = {}
        for name, token in tokens.items():
            pool = ChannelPool(token=lambda token=token: token, client=name)  # type: ignore[misc]
            channel = pool.channel(f"127.0.0.1:{port}")
            found[name] = [(await outcome(channel, kind)).split(":")[0] for kind in (INFO, BATCH, PING)]
            await pool.close()
    assert found == {
        "volume": ["ok", "permission_denied", "ok"],
        "cluster": ["ok", "ok", "ok"],
        "strange": ["permission_denied", "permission_denied", "ok"],
        **{
            name: ["unauthenticated", "unauthenticated", "ok"]
            for name in ("forged", "expired", "none", "rubbish", "long")
        },
    }


async def test_the_refusal_says_why() -> None:
    keyring = Keyring.generate()
    async with guarded(TokenVerifier(keyring)) as (_server, port):
        expired = keyring.sign(volume_scope(1), epoch=1, rights="r", expires=5.0)
        pool = ChannelPool(token=lambda: expired, client="x")
        assert await outcome(pool.channel(f"127.0.0.1:{port}"), INFO) == "unauthenticated: the token has expired"
        await pool.close()


async def test_expiry_and_renewal_on_a_living_connection() -> None:
    clock = ManualClock()
    keyring = Keyring.generate()

    def sign() -> bytes:
        return keyring.sign(volume_scope(3), epoch=1, rights="rw", expires=clock.wall() + 60)

    token = sign()
    async with guarded(TokenVerifier(keyring, clock)) as (server, port):
        pool = ChannelPool(token=lambda: token, client="x")
        channel = pool.channel(f"127.0.0.1:{port}")
        assert await outcome(channel, INFO) == "ok"
        clock.advance(59)
        assert await outcome(channel, INFO) == "ok"
        clock.advance(2)
        assert (await outcome(channel, INFO)).startswith("unauthenticated: the token has expired")
        assert await outcome(channel, PING) == "ok"
        token = sign()
        assert await outcome(channel, INFO) == "ok"
        assert server.connections == 1, "the new token was presented on the same connection"
        await pool.close()


class SetWrong(ManualClock):
    """Its time of day is `ahead` seconds from the right one."""

    ahead = 0.0

    def wall(self) -> float:
        return super().wall() + self.ahead


@pytest.mark.parametrize("wrong_at_hello", [False, True])
async def test_a_token_refused_while_the_clock_was_wrong_counts_again(wrong_at_hello: bool) -> None:
    """The peer sees nothing wrong with its token: it would be refused until it renews it."""
    clock = SetWrong()
    keyring = Keyring.generate()
    token = keyring.sign(CLUSTER_SCOPE, epoch=0, rights="rw", expires=clock.wall() + 3600)
    posted: list[int] = []
    async with guarded(TokenVerifier(keyring, clock)) as (server, port):
        server.handle(MessageType.RAFT_BATCH, lambda request: posted.append(1), scope="cluster")
        pool = ChannelPool(token=lambda: token, client="x")
        channel = pool.channel(f"127.0.0.1:{port}")
        if not wrong_at_hello:
            assert await outcome(channel, BATCH) == "ok"
        clock.ahead = 5000.0
        for _ in range(3):
            assert (await outcome(channel, BATCH)).startswith("unauthenticated: the token has expired")
        clock.ahead = 0.0
        clock.advance(1.0)
        # One-way messages get no answer that could tell the peer to say HELLO again.
        assert channel.post(MessageType.RAFT_BATCH, b"")
        assert await outcome(channel, BATCH) == "ok"
        assert posted == [1] and server.connections == 1
        clock.advance(3600)
        assert (await outcome(channel, BATCH)).startswith("unauthenticated: the token has expired")
        clock.advance(1.0)
        assert (await outcome(channel, BATCH)).startswith("unauthenticated: the token has expired")
        await pool.close()


async def test_nothing_said_in_time() -> None:
    async with guarded(TokenVerifier(Keyring.generate()), hello_timeout=0.1) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert b"no HELLO in time" in await asyncio.wait_for(reader.read(), 30)
        writer.close()
        assert server.violations == 0


def test_verifier() -> None:
    clock = ManualClock()
    keyring = Keyring.generate()
    verifier = TokenVerifier(keyring, clock)
    token = keyring.sign(volume_scope(9), epoch=4, rights="r", expires=clock.wall() + 10)
    identity = verifier.verify(token)
    assert identity == Identity("volume:9", 4, "r", clock.wall() + 10, 9)
    assert not identity.cluster
    for position in range(len(token)):
        damaged = bytearray(token)
        damaged[position] ^= 0x40
        with pytest.raises(Unauthenticated):
            verifier.verify(damaged)
        with pytest.raises(Unauthenticated):
            verifier.verify(token[:position])
    clock.advance(10)
    with pytest.raises(Unauthenticated, match="expired"):
        verifier.verify(token)


def test_identity_check() -> None:
    reader = Identity("volume:9", 4, "r", 0.0, 9)
    writer = Identity("volume:9", 4, "rw", 0.0, 9)
    reader.check_volume(9, write=False)
    writer.check_volume(9, write=True, epoch=4)
    for identity, volume, epoch in ((reader, 9, 4), (writer, 8, 4), (writer, 9, 5)):
        with pytest.raises(PermissionDenied):
            identity.check_volume(volume, write=True, epoch=epoch)
    Identity(CLUSTER_SCOPE, 0, "rw", 0.0).check_volume(1234, write=True, epoch=9)


def test_keyring_file_and_rotation(tmp_path: Path) -> None:
    clock = ManualClock()
    path = tmp_path / "keyring.json"
    signer = Keyring.generate()
    signer.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    verifier = TokenVerifier(Keyring.load(path, clock), clock)
    old = signer.sign(CLUSTER_SCOPE, epoch=0, rights="rw", expires=4e9)
    verifier.verify(old)
    assert signer.rotate() == "k2"
    new = signer.sign(CLUSTER_SCOPE, epoch=0, rights="rw", expires=4e9)
    with pytest.raises(Unauthenticated, match="not in the keyring"):
        verifier.verify(new)
    signer.save(path)
    verifier.verify(new)  # an unknown key makes it look at the file at once
    verifier.verify(old)
    signer.rotate()
    signer.retire(keep=2)
    assert sorted(signer.keys) == ["k2", "k3"]
    signer.save(path)
    clock.advance(5)
    with pytest.raises(Unauthenticated):
        verifier.verify(old)
    verifier.verify(new)
    path.write_text("{half")
    os.utime(path, (1, 1))
    clock.advance(5)
    verifier.verify(new)  # a broken file does not take the keys away


@pytest.mark.parametrize(
    "text", ["", "[]", '{"active": "k1"}', '{"active": "k2", "keys": {"k1": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}}',
             json.dumps({"active": "k1", "keys": {"k1": "AAAA"}}), '{"active": "k1", "keys": {"k1": "***"}}'],
)  # fmt: skip
def test_bad_keyring_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keyring.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Keyring.load(path)
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        Keyring.load(path)


async def reaches(port: int, files: TlsFiles | None) -> str:
    pool = ChannelPool(token=None, client="x", tls=files)
    try:
        await pool.channel(f"127.0.0.1:{port}").call(PING, b"", timeout=30)
        return "ok"
    except Unavailable:
        return "refused"
    finally:
        await pool.close()


async def test_mutual_tls_follows_rotated_files(tmp_path: Path) -> None:
    old, new = Authority("old"), Authority("new")
    files = old.issue(tmp_path / "server", "chunkserver")
    client = old.issue(tmp_path / "client", "client")
    stranger = new.issue(tmp_path / "stranger", "stranger", trust=old)
    server = Server(verifier=None, tls=files)
    server.handle(MessageType.CHUNK_WRITE, lambda request: request.reply(b"", request.payload), scope="any")
    port = await server.start("127.0.0.1", 0)
    pool = ChannelPool(token=None, client="x", tls=client)
    channel = pool.channel(f"127.0.0.1:{port}")
    data = os.urandom(3_000_000)
    assert (await channel.call(MessageType.CHUNK_WRITE, b"m", data, timeout=60)).payload == data
    assert await reaches(port, client) == "ok"
    assert await reaches(port, stranger) == "refused"
    assert await reaches(port, None) == "refused"

    new.issue(tmp_path / "server", "chunkserver")  # both the certificate and the CA are replaced
    new.issue(tmp_path / "stranger", "stranger")
    assert await reaches(port, client) == "refused"
    assert await reaches(port, stranger) == "ok"
    assert (await channel.call(PING, b"", timeout=30)).meta == b"", "living connections stay"
    new.issue(tmp_path / "client", "client")
    assert await reaches(port, client) == "ok"
    await pool.close()
    await server.stop()


def test_unusable_tls_files(tmp_path: Path) -> None:
    files = Authority().issue(tmp_path, "x")
    files.cert.write_text("nonsense")
    with pytest.raises(ConfigError, match="cannot use this TLS file"):
        ChannelPool(token=None, client="x", tls=files)
