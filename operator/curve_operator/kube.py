"""A small Kubernetes client: the handful of calls an operator makes, asynchronous, with deadlines.

The official client is synchronous and most of an operator's memory; kopf finds the credentials for both of us.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import kopf

from curve_storage.errors import (
    Aborted,
    AlreadyExists,
    ConfigError,
    CurveError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)

Manifest = dict[str, Any]

TIMEOUT = 20.0
TOKEN_LIFE = 60.0
"""Seconds after which a mounted service-account token is read again; the kubelet renews it."""

RESOURCES: dict[tuple[str, str], str] = {
    ("v1", "ConfigMap"): "configmaps",
    ("v1", "Event"): "events",
    ("v1", "Node"): "nodes",
    ("v1", "PersistentVolume"): "persistentvolumes",
    ("v1", "PersistentVolumeClaim"): "persistentvolumeclaims",
    ("v1", "Pod"): "pods",
    ("v1", "Secret"): "secrets",
    ("v1", "Service"): "services",
    ("apps/v1", "StatefulSet"): "statefulsets",
    ("batch/v1", "Job"): "jobs",
    ("coordination.k8s.io/v1", "Lease"): "leases",
    ("operator.curve.io/v1", "CurveCluster"): "curveclusters",
    ("policy/v1", "PodDisruptionBudget"): "poddisruptionbudgets",
}
CLUSTER_SCOPED = {"nodes", "persistentvolumes"}


class Kube:
    """Use as `async with connect() as kube`."""

    def __init__(self, info: kopf.ConnectionInfo, session: aiohttp.ClientSession) -> None:
        self._info = info
        self._session = session
        self._token = info.token
        self._token_read = time.monotonic()

    async def get(self, api: str, kind: str, name: str, namespace: str = "") -> Manifest | None:
        try:
            return await self._call("GET", _path(api, kind, namespace, name))
        except NotFound:
            return None

    async def list(self, api: str, kind: str, namespace: str = "", selector: str = "") -> list[Manifest]:
        """Every object, read in pages."""
        items: list[Manifest] = []
        token = ""
        while True:
            query = {"limit": "500"}
            if selector:
                query["labelSelector"] = selector
            if token:
                query["continue"] = token
            answer = await self._call("GET", _path(api, kind, namespace), query=query)
            for item in answer.get("items") or []:
                items.append({"apiVersion": api, "kind": kind, **item})
            token = answer.get("metadata", {}).get("continue", "")
            if not token:
                return items

    async def apply(self, manifest: Manifest, manager: str) -> Manifest:
        """Server-side apply; fields that others own and this manifest names are taken over."""
        metadata = manifest["metadata"]
        path = _path(manifest["apiVersion"], manifest["kind"], metadata.get("namespace", ""), metadata["name"])
        query = {"fieldManager": manager, "force": "true"}
        return await self._call("PATCH", path, manifest, "application/apply-patch+yaml", query)

    async def create(self, manifest: Manifest) -> Manifest:
        path = _path(manifest["apiVersion"], manifest["kind"], manifest["metadata"].get("namespace", ""))
        return await self._call("POST", path, manifest)

    async def replace(self, manifest: Manifest) -> Manifest:
        """Fails with Aborted when the object has changed since it was read."""
        metadata = manifest["metadata"]
        path = _path(manifest["apiVersion"], manifest["kind"], metadata.get("namespace", ""), metadata["name"])
        return await self._call("PUT", path, manifest)

    async def patch(
        self, api: str, kind: str, name: str, namespace: str, body: Any, *, subresource: str = ""
    ) -> Manifest:
        """Merge patch; lists are replaced whole."""
        path = _path(api, kind, namespace, name) + (f"/{subresource}" if subresource else "")
        return await self._call("PATCH", path, body, "application/merge-patch+json")

    async def delete(self, api: str, kind: str, name: str, namespace: str = "") -> None:
        """An object that is gone already is success."""
        try:
            await self._call("DELETE", _path(api, kind, namespace, name), {"propagationPolicy": "Background"})
        except NotFound:
            pass

    async def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        query: dict[str, str] | None = None,
    ) -> Manifest:
        headers = {"Accept": "application/json"}
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            data = json.dumps(body)
        token = self._bearer()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        url = self._info.server.rstrip("/") + path
        try:
            async with self._session.request(method, url, params=query, data=data, headers=headers) as response:
                text = await response.text()
                if response.status >= 400:
                    raise _error(response.status, text, path)
                answer = json.loads(text) if text else {}
                return answer if isinstance(answer, dict) else {}
        except TimeoutError as error:
            raise DeadlineExceeded("the API server did not answer in time", where=path) from error
        except aiohttp.ClientError as error:
            raise Unavailable(f"the API server cannot be reached: {error}", where=self._info.server) from error

    def _bearer(self) -> str | None:
        """The token of the service account is read again every minute: the kubelet replaces it every hour."""
        if self._info.token and time.monotonic() - self._token_read > TOKEN_LIFE:
            fresh = kopf.login_with_service_account(settings=kopf.OperatorSettings())
            if fresh is not None and fresh.server == self._info.server:
                self._token = fresh.token
            self._token_read = time.monotonic()
        return self._token


@asynccontextmanager
async def connect() -> AsyncIterator[Kube]:
    """From the pod's service account or the user's kubeconfig. Raises ConfigError when there is neither."""
    settings = kopf.OperatorSettings()
    info = kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
    if info is None:
        raise ConfigError(
            "no Kubernetes credentials", where="service account, $KUBECONFIG", todo="Run in a pod or set KUBECONFIG"
        )
    connector = aiohttp.TCPConnector(ssl=_ssl(info), limit=32)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Kube(info, session)


def _ssl(info: kopf.ConnectionInfo) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=str(info.ca_path) if info.ca_path else None,
        cadata=base64.b64decode(info.ca_data).decode() if info.ca_data else None,
    )
    # CAs made before RFC 5280 strictness (minikube, old kubeadm) lack key identifiers
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if info.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if info.certificate_path and info.private_key_path:
        context.load_cert_chain(str(info.certificate_path), str(info.private_key_path))
    elif info.certificate_data and info.private_key_data:
        with tempfile.TemporaryDirectory() as directory:
            cert, key = Path(directory) / "cert", Path(directory) / "key"
            cert.write_bytes(base64.b64decode(info.certificate_data))
            key.touch(mode=0o600)
            key.write_bytes(base64.b64decode(info.private_key_data))
            context.load_cert_chain(str(cert), str(key))
    return context


def _path(api: str, kind: str, namespace: str = "", name: str = "") -> str:
    plural = RESOURCES[api, kind]
    base = "/api/v1" if api == "v1" else f"/apis/{api}"
    if namespace and plural not in CLUSTER_SCOPED:
        base += f"/namespaces/{namespace}"
    return f"{base}/{plural}/{name}" if name else f"{base}/{plural}"


_BY_STATUS: dict[int, type[CurveError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Aborted,
    410: Aborted,
    422: InvalidArgument,
}


def _error(status: int, text: str, path: str) -> CurveError:
    reason = message = ""
    try:
        document = json.loads(text)
        message, reason = document.get("message", ""), document.get("reason", "")
    except (ValueError, AttributeError):
        message = text[:200]
    if reason == "AlreadyExists":
        return AlreadyExists(message, where=path)
    todo = "Grant the operator's service account this right" if status == 403 else ""
    return _BY_STATUS.get(status, Unavailable)(message or f"HTTP {status}", where=path, todo=todo)


async def pause(seconds: float, wake: asyncio.Event) -> bool:
    """Sleep until `wake` is set or the time is over; True when it was set. Clears it."""
    try:
        await asyncio.wait_for(wake.wait(), seconds)
    except TimeoutError:
        return False
    wake.clear()
    return True
