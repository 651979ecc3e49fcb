"""What the cluster's Secrets need: the CA and its succession, certificates of the roles, the token keyring. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from curve_operator import keyring, names, tls
from curve_operator.actions import IssueCertificate, Plan, StoreAuthority, StoreKeyring
from curve_operator.observed import Observed
from curve_operator.settings import Settings
from curve_storage.wire.tls import SERVER_NAME

CLUSTER_DOMAIN = "cluster.local"


def plan_security(settings: Settings, observed: Observed, now: datetime, plan: Plan) -> None:
    """The random bytes of a new key are drawn by whoever acts; here only the need for one is decided."""
    _plan_keyring(settings, observed, now, plan)
    if not settings.tls:
        return
    secret = observed.get("Secret", settings.ca_secret)
    authority = parse_authority(secret) if secret else None
    if authority is None:
        what = "it cannot be read" if secret else "the cluster has none"
        plan.add(StoreAuthority(None, f"a certificate authority is made: {what}"))
        return
    step, reason = tls.advance(authority, settings.name, now)
    if reason:
        plan.add(StoreAuthority(step, reason))
    for role, common_name, sans in roles(settings):
        name = settings.client_secret if role == "client" else settings.tls_secret(role)
        held = observed.get("Secret", name)
        cert, key = data(held, "tls.crt"), data(held, "tls.key")
        why = tls.renewal_reason(cert, step, sans, now) if cert and key else "there is none"
        if why:
            plan.add(IssueCertificate(step, name, common_name, tuple(sans), role, f"certificate of {role}: {why}"))
        elif data(held, "ca.crt") != step.bundle():
            plan.add(
                IssueCertificate(
                    step,
                    name,
                    common_name,
                    tuple(sans),
                    role,
                    f"trust bundle of {role}: the CAs changed",
                    keep=(cert, key),
                )
            )


def roles(settings: Settings) -> list[tuple[str, str, list[str]]]:
    """(role, common name, SANs): every name a peer may use, and the one our own clients check. A client has none."""
    namespace = settings.namespace
    found: list[tuple[str, str, list[str]]] = []
    if not settings.etcd.external:
        # members by name: etcd looks up a peer's names and finds its address among them
        hosts = [settings.etcd_host(index) for index in range(settings.etcd.count)]
        found.append(("etcd", f"{settings.name}-etcd", [*_both(hosts), "localhost", "127.0.0.1"]))
    service = f"{settings.mds_service}.{namespace}.svc"
    hosts = [*(settings.mds_host(index) for index in range(settings.mds.count)), service, f"*.{service}"]
    found.append(("mds", f"{settings.name}-mds", [SERVER_NAME, *_both(hosts), "localhost", "127.0.0.1"]))
    service = f"{settings.name}-chunkserver.{namespace}.svc"
    sans = [SERVER_NAME, *_both([f"*.{service}"]), "localhost", "127.0.0.1"]
    found.append(("chunkserver", f"{settings.name}-chunkserver", sans))
    found.append(("client", f"{settings.name}-client", []))
    return found


def _both(hosts: list[str]) -> list[str]:
    return [name for host in hosts for name in (host, f"{host}.{CLUSTER_DOMAIN}")]


def _plan_keyring(settings: Settings, observed: Observed, now: datetime, plan: Plan) -> None:
    secret = observed.get("Secret", settings.keyring_secret)
    document = data(secret, "keyring.json")
    if not document:
        plan.add(StoreKeyring("the cluster has no token keys yet"))
        return
    history = ((secret or {}).get("metadata", {}).get("annotations") or {}).get(names.ANNOTATION_KEYRING, "")
    try:
        ring = keyring.parse(document, history, now)
    except (ValueError, KeyError, TypeError):
        plan.wait(
            f"Secret {settings.keyring_secret} is not a keyring: restore it, or delete it and restart all daemons"
        )
        return
    if not history:
        plan.add(StoreKeyring("the age of the token keys is noted", ring.document(), ring.history()))
        return
    # whether a step is due does not depend on the key drawn; the actor repeats it with real randomness
    _, reason = keyring.rotate(ring, now, lambda size: bytes(size))
    if reason:
        plan.add(StoreKeyring(reason, document, history))


def parse_authority(secret: Mapping[str, Any]) -> tls.Authority | None:
    cert, key = data(secret, "tls.crt"), data(secret, "tls.key")
    if not cert or not key:
        return None
    try:
        current = tls.KeyPair(cert, key)
        _ = current.certificate
        upcoming = None
        if data(secret, "next.crt") and data(secret, "next.key"):
            upcoming = tls.KeyPair(data(secret, "next.crt"), data(secret, "next.key"))
            _ = upcoming.certificate
    except ValueError:
        return None
    return tls.Authority(current, upcoming, tuple(split_pem(data(secret, "retired.crt"))))


def authority_data(authority: tls.Authority) -> dict[str, bytes]:
    found = {"tls.crt": authority.current.cert, "tls.key": authority.current.key, "ca.crt": authority.bundle()}
    if authority.upcoming:
        found.update({"next.crt": authority.upcoming.cert, "next.key": authority.upcoming.key})
    if authority.retired:
        found["retired.crt"] = b"".join(authority.retired)
    return found


def split_pem(bundle: bytes) -> list[bytes]:
    end = b"-----END CERTIFICATE-----\n"
    return [part + end for part in bundle.split(end) if part.strip()]


def data(secret: Mapping[str, Any] | None, key: str) -> bytes:
    """Decoded value; empty when it is missing or not base64."""
    text = ((secret or {}).get("data") or {}).get(key) or ""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def encode(values: Mapping[str, bytes]) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in values.items()}
