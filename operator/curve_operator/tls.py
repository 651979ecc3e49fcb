"""The cluster's own certificate authority: certificates of daemons and clients, their renewal, and the CA's succession.

Times are aware datetimes passed in.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFETIME = timedelta(days=3650)
CA_RENEW_BEFORE = timedelta(days=730)
CA_OVERLAP = timedelta(days=1)
"""How long every daemon gets to read the new CA before certificates are signed by it."""
LEAF_LIFETIME = timedelta(days=365)
LEAF_RENEW_BEFORE = timedelta(days=120)
SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class KeyPair:
    """PEM."""

    cert: bytes
    key: bytes

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.cert)


@dataclass(frozen=True)
class Authority:
    """current signs; upcoming is already trusted and takes over after CA_OVERLAP; retired are still trusted."""

    current: KeyPair
    upcoming: KeyPair | None = None
    retired: tuple[bytes, ...] = ()

    def bundle(self) -> bytes:
        parts = [self.current.cert, *([self.upcoming.cert] if self.upcoming else []), *self.retired]
        return b"".join(part if part.endswith(b"\n") else part + b"\n" for part in parts)


def new_authority(cluster: str, now: datetime) -> Authority:
    return Authority(_self_signed(cluster, now))


def advance(authority: Authority, cluster: str, now: datetime) -> tuple[Authority, str]:
    """The next step of the CA's succession and its reason; an empty reason: nothing to do yet."""
    retired = tuple(pem for pem in authority.retired if x509.load_pem_x509_certificate(pem).not_valid_after_utc > now)
    current = authority.current.certificate
    if authority.upcoming is not None:
        made = authority.upcoming.certificate.not_valid_before_utc + SKEW
        if now - made >= CA_OVERLAP:
            step = Authority(authority.upcoming, None, (authority.current.cert, *retired))
            return step, "the new CA is known everywhere: it signs from now on"
    elif current.not_valid_after_utc - now < CA_RENEW_BEFORE:
        step = Authority(authority.current, _self_signed(cluster, now), retired)
        return step, f"the CA ends at {current.not_valid_after_utc:%Y-%m-%d}: its successor is made known"
    if retired != authority.retired:
        return Authority(authority.current, authority.upcoming, retired), "an old CA has ended"
    return authority, ""


def issue(authority: Authority, name: str, sans: list[str], now: datetime) -> KeyPair:
    """sans: DNS names and IP addresses of a server, which is a client of others too; none: a client only."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key(authority.current.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    ca = authority.current.certificate
    entries: list[x509.GeneralName] = []
    for san in dict.fromkeys(sans or [name]):
        try:
            entries.append(x509.IPAddress(ipaddress.ip_address(san)))
        except ValueError:
            entries.append(x509.DNSName(san))
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if sans else [])]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(min(now + LEAF_LIFETIME, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(entries), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_authority_key(ca), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _pair(certificate, key)


def renewal_reason(cert: bytes, authority: Authority, sans: list[str], now: datetime) -> str:
    """Why a certificate must be made anew; empty when it is good."""
    try:
        certificate = x509.load_pem_x509_certificate(cert)
    except ValueError:
        return "it cannot be read"
    try:
        certificate.verify_directly_issued_by(authority.current.certificate)
    except Exception:
        return "it was not signed by the present CA"
    if certificate.not_valid_after_utc - now < LEAF_RENEW_BEFORE:
        return f"it ends at {certificate.not_valid_after_utc:%Y-%m-%d}"
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    present = {str(name.value) for name in extension}
    lacking = [san for san in sans if san not in present]
    return f"it lacks the name {lacking[0]}" if lacking else ""


def _self_signed(cluster: str, now: datetime) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "curve"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{cluster} CA {now:%Y%m%d}"[:64]),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def _authority_key(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
