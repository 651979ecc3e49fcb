"""Carry out a plan. One failed action does not stop the others; what failed goes into the status."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from curve_operator import keyring, manifests, names, tls
from curve_operator.actions import (
    Action,
    Apply,
    CreatePool,
    IssueCertificate,
    Plan,
    Scale,
    SetFinalizers,
    StoreAuthority,
    StoreKeyring,
)
from curve_operator.kube import Kube
from curve_operator.mds_view import POOL_TIMEOUT, MdsConnection
from curve_operator.observed import Observed
from curve_operator.security import authority_data, encode
from curve_operator.settings import Settings
from curve_storage.errors import CurveError
from curve_storage.proto import mds_pb2 as pb
from curve_storage.telemetry import logs

log = logs.get("curve_operator.act")


async def act(
    kube: Kube, mds: MdsConnection, settings: Settings, observed: Observed, plan: Plan, now: datetime
) -> tuple[list[str], bool]:
    """Returns the errors, each with what was tried, and whether anything became different by it."""
    errors = []
    different = False
    for action in plan.actions:
        log.info("action", cluster=f"{settings.namespace}/{settings.name}", do=_title(action), reason=action.reason)
        try:
            different |= await _do(kube, mds, settings, observed, action, now)
        except CurveError as error:
            log.warning("action failed", do=_title(action), error=str(error))
            errors.append(f"{_title(action)}: {error}")
    return errors, different


def _title(action: Action) -> str:
    match action:
        case Apply(manifest=manifest):
            return f"apply {manifest['kind']} {manifest['metadata']['name']}"
        case Scale(name=name, replicas=replicas):
            return f"scale StatefulSet {name} to {replicas}"
        case IssueCertificate(secret=secret):
            return f"write Secret {secret}"
        case StoreAuthority():
            return "write the certificate authority"
        case StoreKeyring():
            return "write the token keyring"
        case CreatePool(name=name):
            return f"create pool {name}"
        case SetFinalizers():
            return "set finalizers"


async def _do(
    kube: Kube, mds: MdsConnection, settings: Settings, observed: Observed, action: Action, now: datetime
) -> bool:
    """False: the API server found nothing to change."""
    match action:
        case Apply(manifest=manifest):
            before = observed.get(manifest["kind"], manifest["metadata"]["name"]) or {}
            after = await kube.apply(dict(manifest), names.FIELD_MANAGER)
            return _version(before) != _version(after)
        case Scale(name=name, replicas=replicas):
            scale = {"spec": {"replicas": replicas}}
            await kube.patch("apps/v1", "StatefulSet", name, settings.namespace, scale)
        case StoreAuthority(authority=authority):
            values = authority_data(authority or tls.new_authority(settings.name, now))
            await _secret(kube, settings, settings.ca_secret, "ca", values)
        case IssueCertificate():
            if action.keep is None:
                pair = tls.issue(action.authority, action.common_name, list(action.sans), now)
            else:
                pair = tls.KeyPair(*action.keep)
            values = {"ca.crt": action.authority.bundle(), "tls.crt": pair.cert, "tls.key": pair.key}
            await _secret(kube, settings, action.secret, action.component, values)
        case StoreKeyring(document=document, history=history):
            if not document:
                ring = keyring.generate(now, secrets.token_bytes)
            else:
                ring = keyring.parse(document, history, now)
                ring, _ = keyring.rotate(ring, now, secrets.token_bytes)
            values = {"keyring.json": ring.document()}
            annotations = {names.ANNOTATION_KEYRING: ring.history()}
            await _secret(kube, settings, settings.keyring_secret, "keyring", values, annotations)
        case CreatePool():
            secret = observed.get("Secret", settings.client_secret)
            client = await mds.client(settings, secret)
            await client.topology.CreatePool(
                pb.CreatePoolRequest(
                    name=action.name,
                    physical_pool=action.name,
                    poolset="default",
                    replicas=action.replicas,
                    zones=action.zones,
                    copysets=action.copysets,
                    scatter_width=action.scatter_width,
                ),
                timeout=POOL_TIMEOUT,
            )
        case SetFinalizers(finalizers=finalizers):
            metadata = observed.resource["metadata"]
            # with the version: a finalizer that someone added meanwhile must not be lost
            version = metadata["resourceVersion"]
            body: dict[str, Any] = {"metadata": {"finalizers": list(finalizers), "resourceVersion": version}}
            api = f"{names.GROUP}/{names.VERSION}"
            await kube.patch(api, names.KIND, settings.name, settings.namespace, body)
    return True


def _version(item: Mapping[str, Any]) -> str:
    return str((item.get("metadata") or {}).get("resourceVersion", ""))


async def _secret(
    kube: Kube,
    settings: Settings,
    name: str,
    component: str,
    values: dict[str, bytes],
    annotations: dict[str, str] | None = None,
) -> None:
    manifest: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": name,
            "labels": names.labels(settings.name, component),
            "annotations": annotations or {},
        },
        "data": encode(values),
    }
    await kube.apply(manifests.complete(settings, manifest), names.FIELD_MANAGER)
