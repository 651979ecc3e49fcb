"""CA, certificates and token keys: what is made verifies, and every succession keeps old and new valid together."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from curve_operator import keyring, tls
from curve_operator.actions import Plan
from curve_operator.security import data, parse_authority, plan_security, split_pem
from curve_storage.clock import SystemClock
from curve_storage.wire.tls import SERVER_NAME
from curve_storage.wire.token import Keyring as WireKeyring

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def random_bytes(size: int) -> bytes:
    return bytes(range(size))


def handshake(authority: tls.Authority, server: tls.KeyPair, client: tls.KeyPair, name: str, folder: Path) -> None:
    """A mutual TLS handshake in memory; raises ssl.SSLError when either side refuses."""
    contexts = []
    for side, pair in (("server", server), ("client", client)):
        cert, key, ca = (folder / f"{side}.{kind}" for kind in ("crt", "key", "ca"))
        cert.write_bytes(pair.cert)
        key.write_bytes(pair.key)
        ca.write_bytes(authority.bundle())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if side == "server" else ssl.PROTOCOL_TLS_CLIENT)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cafile=str(ca))
        context.load_cert_chain(str(cert), str(key))
        contexts.append(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = contexts[0].wrap_bio(to_server, to_client, server_side=True)
    two = contexts[1].wrap_bio(to_client, to_server, server_hostname=name)
    pending = [two, one]
    for _ in range(20):
        for side in list(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                pass
        if not pending:
            return
    raise AssertionError("the handshake does not end")


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)  # the TLS library checks dates against the real clock


def test_server_and_client_accept_each_other(tmp_path: Path, now: datetime) -> None:
    authority = tls.new_authority("demo", now)
    server = tls.issue(authority, "demo-mds", [SERVER_NAME, "demo-mds-0.demo-mds.curve.svc"], now)
    client = tls.issue(authority, "demo-client", [], now)
    for name in (SERVER_NAME, "demo-mds-0.demo-mds.curve.svc"):
        handshake(authority, server, client, name, tmp_path)
    with pytest.raises(ssl.SSLError):
        handshake(authority, server, client, "elsewhere", tmp_path)
    other = tls.new_authority("other", now)
    with pytest.raises(ssl.SSLError):
        handshake(authority, server, tls.issue(other, "x", [], now), SERVER_NAME, tmp_path)


def test_a_client_cannot_pose_as_a_server(tmp_path: Path, now: datetime) -> None:
    authority = tls.new_authority("demo", now)
    client = tls.issue(authority, "demo-client", [], now)
    with pytest.raises(ssl.SSLError):
        handshake(authority, client, client, SERVER_NAME, tmp_path)


def test_reasons_for_renewal(now: datetime) -> None:
    authority = tls.new_authority("demo", now)
    pair = tls.issue(authority, "x", ["a.b"], now)
    assert tls.renewal_reason(pair.cert, authority, ["a.b"], now) == ""
    assert "lacks the name c.d" in tls.renewal_reason(pair.cert, authority, ["a.b", "c.d"], now)
    assert "ends" in tls.renewal_reason(pair.cert, authority, ["a.b"], now + timedelta(days=300))
    assert "present CA" in tls.renewal_reason(pair.cert, tls.new_authority("y", now), ["a.b"], now)
    assert tls.renewal_reason(b"junk", authority, [], now)


def test_succession_of_the_ca_never_breaks_a_connection(tmp_path: Path, now: datetime) -> None:
    """At every step a peer that has only the step before still verifies."""
    old = tls.new_authority("demo", now)
    assert tls.advance(old, "demo", now) == (old, "")
    late = now + tls.CA_LIFETIME - timedelta(days=700)
    known, reason = tls.advance(old, "demo", late)
    assert reason and known.upcoming is not None and known.current == old.current
    assert tls.advance(known, "demo", late + timedelta(hours=23)) == (known, "")
    taken, reason = tls.advance(known, "demo", late + timedelta(hours=25))
    assert reason and taken.current == known.upcoming and taken.retired == (old.current.cert,)
    before, after = set(split_pem(known.bundle())), set(split_pem(taken.bundle()))
    assert old.current.cert in before & after and taken.current.cert in before & after
    leaf = tls.issue(taken, "x", ["a"], late + timedelta(hours=25))
    assert leaf.certificate.issuer == taken.current.certificate.subject
    ended, reason = tls.advance(taken, "demo", now + tls.CA_LIFETIME + timedelta(days=1))
    assert reason and ended.retired == ()


def test_authority_survives_its_secret(world: Any) -> None:
    world.step()
    secret = world.objects["Secret", "demo-ca"]
    authority = parse_authority(secret)
    assert authority is not None
    assert data(secret, "ca.crt") == authority.bundle()
    secret["data"]["tls.crt"] = "anVuaw=="
    assert parse_authority(secret) is None


def test_certificates_of_the_roles(world: Any) -> None:
    for _ in range(3):
        world.step()
    expected = {
        "demo-etcd-tls": "demo-etcd-c-0.demo-etcd.curve.svc.cluster.local",
        "demo-mds-tls": SERVER_NAME,
        "demo-chunkserver-tls": SERVER_NAME,
    }
    for name, san in expected.items():
        certificate = x509.load_pem_x509_certificate(data(world.objects["Secret", name], "tls.crt"))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert san in names.get_values_for_type(x509.DNSName)
    client = x509.load_pem_x509_certificate(data(world.objects["Secret", "demo-client-tls"], "tls.crt"))
    sans = client.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sans.get_values_for_type(x509.DNSName) == ["demo-client"]


def test_ten_years_of_rounds_renew_everything_in_time(make_world: Any) -> None:
    world = make_world({"storage": {"useAllNodes": True, "directories": [{"path": "/d"}]}})
    for _ in range(150):
        world.later(days=30)
        for _ in range(3):
            plan = Plan()
            plan_security(world.settings, world.observed(), world.now, plan)
            world.carry_out(plan)
        for name in ("demo-mds-tls", "demo-client-tls", "demo-ca"):
            certificate = x509.load_pem_x509_certificate(data(world.objects["Secret", name], "tls.crt"))
            assert certificate.not_valid_after_utc > world.now
        bundle = data(world.objects["Secret", "demo-client-tls"], "ca.crt")
        issuer = x509.load_pem_x509_certificate(data(world.objects["Secret", "demo-mds-tls"], "tls.crt")).issuer
        assert issuer in [x509.load_pem_x509_certificate(pem).subject for pem in split_pem(bundle)]


class TestKeyring:
    def test_the_daemons_can_read_it(self, tmp_path: Path) -> None:
        path = tmp_path / "keyring.json"
        path.write_bytes(keyring.generate(NOW, random_bytes).document())
        assert WireKeyring.load(path, SystemClock()).active == "k1"

    def test_rotation_is_known_first_active_later_forgotten_last(self) -> None:
        ring = keyring.generate(NOW, random_bytes)
        now = NOW
        assert keyring.rotate(ring, now, random_bytes) == (ring, "")
        now += timedelta(days=31)
        ring, reason = keyring.rotate(ring, now, random_bytes)
        assert reason and ring.active == "k1" and set(ring.keys) == {"k1", "k2"}
        assert keyring.rotate(ring, now + timedelta(minutes=59), random_bytes)[1] == ""
        now += timedelta(hours=1)
        ring, reason = keyring.rotate(ring, now, random_bytes)
        assert reason and ring.active == "k2" and set(ring.keys) == {"k1", "k2"}
        assert keyring.rotate(ring, now + timedelta(hours=47), random_bytes)[1] == ""
        ring, reason = keyring.rotate(ring, now + timedelta(hours=49), random_bytes)
        assert reason and ring.active == "k2" and set(ring.keys) == {"k2"}

    def test_history_survives_the_secret(self) -> None:
        ring = keyring.generate(NOW, random_bytes)
        later = NOW + timedelta(days=31)
        ring, _ = keyring.rotate(ring, later, random_bytes)
        assert keyring.parse(ring.document(), ring.history(), later + timedelta(days=1)) == ring

    def test_keys_of_unknown_age_are_not_replaced_at_once(self) -> None:
        ring = keyring.parse(keyring.generate(NOW, random_bytes).document(), "", NOW + timedelta(days=100))
        assert keyring.rotate(ring, NOW + timedelta(days=100), random_bytes)[1] == ""

    @pytest.mark.parametrize("document", [b"{}", b"[]", b"x", b'{"active": "k9", "keys": {"k1": "eA=="}}'])
    def test_a_broken_one_is_left_alone_and_told(self, world: Any, document: bytes) -> None:
        world.step()
        from curve_operator.security import encode

        world.objects["Secret", "demo-keyring"]["data"] = encode({"keyring.json": document})
        plan = world.step()
        assert any("not a keyring" in sentence for sentence in plan.waiting)
        assert data(world.objects["Secret", "demo-keyring"], "keyring.json") == document
