"""Identity on disk, configuration, tokens, addresses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from curve_storage import twin_file
from curve_storage.chunkserver import identity
from curve_storage.chunkserver.addresses import AddressBook
from curve_storage.chunkserver.atomic_file import seal, unseal, write_atomic
from curve_storage.chunkserver.cluster_token import ClusterToken
from curve_storage.chunkserver.config import ChunkServerConfig
from curve_storage.clock import ManualClock
from curve_storage.config import load
from curve_storage.errors import ConfigError, Corruption, FailedPrecondition, InUse, Unauthenticated
from curve_storage.units import MiB
from curve_storage.wire.token import Keyring, TokenVerifier


def test_a_first_start_and_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    first = identity.load(data)
    assert not first.registered
    assert identity.load(data) == first, "a crash before the registration keeps the UUID"
    registered = first.registered_as(7, "s3cret", "cluster", where="here")
    identity.save(data, registered)
    assert identity.load(data) == registered
    assert (registered.chunkserver_id, registered.secret, registered.cluster_id) == (7, "s3cret", "cluster")
    assert os.stat(data / identity.FILE).st_mode & 0o077 == 0, "the secret is nobody else's"


def test_a_directory_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    identity.load(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(FailedPrecondition, match=r"holiday\.jpg"):
        identity.load(other)
    assert os.listdir(other) == ["holiday.jpg"]


def test_a_damaged_identity_is_not_believed(tmp_path: Path) -> None:
    identity.save(tmp_path, identity.Identity("uuid", 7, "secret", "cluster"))
    path = tmp_path / identity.FILE
    text = path.read_text()
    for damaged in (text.replace("7", "8"), text[:-9], "", "[]", "{}", "null", text.replace("secret", "Secret", 1)):
        path.write_text(damaged)
        twin_file.copy_of(path).write_text(damaged)
        with pytest.raises(Corruption, match="damaged"):
            identity.load(tmp_path)
    body = twin_file.encode({"version": 99, "uuid": "u"})
    path.write_bytes(body)
    with pytest.raises(FailedPrecondition, match="format 99"):
        identity.load(tmp_path)


def test_any_flipped_bit_of_the_identity_is_repaired_from_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # thousands of files
    mine = identity.Identity("uuid", 7, "secret", "cluster")
    identity.save(tmp_path, mine)
    path = tmp_path / identity.FILE
    good = path.read_bytes()
    for target in (path, twin_file.copy_of(path)):
        for bit in range(8 * len(good)):
            rotten = bytearray(good)
            rotten[bit // 8] ^= 1 << bit % 8
            target.write_bytes(rotten)
            assert identity.load(tmp_path) == mine
            assert target.read_bytes() == good
    for target in (path, twin_file.copy_of(path)):
        target.unlink()
        assert identity.check(tmp_path, mine) == [str(target)]
        assert identity.check(tmp_path, mine) == []


def test_a_disk_of_another_cluster_or_number_is_refused() -> None:
    mine = identity.Identity("uuid", 7, "secret", "one")
    assert mine.registered_as(7, "", "one", where="here") == mine
    with pytest.raises(FailedPrecondition, match="belongs to cluster one"):
        mine.registered_as(7, "secret", "two", where="here")
    with pytest.raises(FailedPrecondition, match="is chunkserver 7"):
        mine.registered_as(8, "secret", "one", where="here")


def test_one_process_per_directory(tmp_path: Path) -> None:
    held = identity.lock(tmp_path)
    with pytest.raises(InUse):
        identity.lock(tmp_path)
    os.close(held)
    os.close(identity.lock(tmp_path))


def test_sealed_files_are_whole_or_refused(tmp_path: Path) -> None:
    sealed = seal(b"12345678", b"body")
    assert unseal(b"12345678", sealed, where="x") == b"body"
    for position in range(len(sealed)):
        broken = bytearray(sealed)
        broken[position] ^= 1
        with pytest.raises(Corruption):
            unseal(b"12345678", bytes(broken), where="x")
        with pytest.raises(Corruption):
            unseal(b"12345678", sealed[:position], where="x")
    path = tmp_path / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


def test_configuration(tmp_path: Path) -> None:
    path = tmp_path / "chunkserver.yaml"
    path.write_text(
        yaml.safe_dump({"data": "/disk", "mds": ["a:6700"], "pool": {"size": "75%"}, "log": {"segment_size": "8Mi"}})
    )
    config = load(ChunkServerConfig, path, {"CURVE_LISTEN": "127.0.0.1:1", "CURVE_POOL__FIRST_BATCH": "3"})
    assert config.pool.size == "75%"
    assert (config.log.segment_size, config.listen, config.pool.first_batch) == (8 * MiB, "127.0.0.1:1", 3)
    for wrong in (
        {"data": "/disk", "mds": []},
        {"data": "/disk", "mds": ["a:1"], "colour": "blue"},
        {"data": "/disk", "mds": ["a:1"], "pool": {"size": "much"}},
        {"data": "/disk", "mds": ["a:1"], "log": {"segment_size": "8Xi"}},
    ):
        path.write_text(yaml.safe_dump(wrong))
        with pytest.raises(ConfigError, match=r"chunkserver\.yaml"):
            load(ChunkServerConfig, path, {})


def test_the_cluster_token_is_renewed_and_follows_the_keyring(tmp_path: Path) -> None:
    clock = ManualClock()
    keyring = Keyring.generate()
    file = tmp_path / "keyring"
    keyring.save(file)
    token = ClusterToken(Keyring.load(file, clock), clock)
    verifier = TokenVerifier(Keyring.load(file, clock), clock)
    first = token()
    assert token() is first
    assert verifier.verify(first).cluster
    clock.advance(700)
    second = token()
    assert second != first
    keyring.rotate()
    keyring.save(file)
    clock.advance(2)
    third = token()
    assert third != second
    assert verifier.verify(third).cluster
    for _ in range(20):
        clock.advance(500)
        assert verifier.verify(token()).cluster


def test_addresses_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "addresses.json"
    book = AddressBook(path)
    assert book.address(1) is None
    book.update({1: "a:1", 2: "b:2"})
    book.update({2: "b:3"})
    again = AddressBook(path)
    assert (again.address(1), again.address(2), again.address(3)) == ("a:1", "b:3", None)
    path.write_text("{broken")
    assert AddressBook(path).address(1) is None


def test_an_address_leads_to_the_node_that_has_it_now(tmp_path: Path) -> None:
    """A chunkserver with a new disk registers anew at its old address: frames for the old one must not go there."""
    book = AddressBook(tmp_path / "addresses.json")
    book.update({1: "a:8200", 2: "b:8200"})
    book.update({5: "a:8200"})
    assert book.address(1) is None and book.address(5) == "a:8200" and book.address(2) == "b:8200"
    assert AddressBook(tmp_path / "addresses.json").address(1) is None


def test_a_cluster_token_signed_while_the_clock_was_wrong_is_replaced() -> None:
    """It would be refused by everybody, and the chunkserver be mute, until its renewal."""
    keyring = Keyring.generate()

    class Wrong(ManualClock):
        ahead = -5000.0

        def wall(self) -> float:
            return super().wall() + self.ahead

    clock, right = Wrong(), ManualClock()
    token, verifier = ClusterToken(keyring, clock), TokenVerifier(keyring, right)
    with pytest.raises(Unauthenticated):
        verifier.verify(token())
    clock.ahead = 0.0
    assert verifier.verify(token()).cluster
    assert token() is token()
    clock.ahead = 5000.0
    token()
    clock.ahead = 0.0
    assert verifier.verify(token()).expires < right.wall() + 3700
