"""Which nodes exist, and in which zone they are: asked of Kubernetes in a cluster, a fixed list elsewhere."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Protocol

from curve_storage.errors import Unavailable

ZONE_LABEL = "topology.kubernetes.io/zone"
API_DEADLINE = 10.0


class NodeDirectory(Protocol):
    async def exists(self, node: str) -> bool: ...

    async def zone(self, node: str) -> str:
        """Empty when the node has none."""
        ...


class FixedNodes:
    def __init__(self, zones: dict[str, str]) -> None:
        self._zones = zones

    async def exists(self, node: str) -> bool:
        return node in self._zones

    async def zone(self, node: str) -> str:
        return self._zones.get(node, "")


class KubernetesNodes:
    """Reads Node objects with the pod's service account (needs get on nodes)."""

    def __init__(self, api: Any = None, label: str = ZONE_LABEL) -> None:
        if api is None:
            from kubernetes import client, config

            config.load_incluster_config()  # type: ignore[no-untyped-call]
            api = client.CoreV1Api()
        self._api = api
        self._label = label

    async def _labels(self, node: str) -> dict[str, str] | None:
        from kubernetes.client.exceptions import ApiException

        def read() -> dict[str, str] | None:
            try:
                found = self._api.read_node(node, _request_timeout=API_DEADLINE)
            except ApiException as error:
                if error.status == 404:
                    return None
                raise Unavailable(
                    f"Kubernetes refused to read the node: {error.status} {error.reason}",
                    where=node,
                    todo="Check the ClusterRole of the driver: get on nodes",
                ) from error
            return dict(found.metadata.labels or {})

        try:
            return await asyncio.to_thread(read)
        except OSError as error:
            raise Unavailable(f"Kubernetes does not answer: {error}", where=node, todo="It is tried again") from error
        except Exception as error:
            if type(error).__module__.startswith("urllib3"):
                raise Unavailable(
                    f"Kubernetes does not answer: {error}", where=node, todo="It is tried again"
                ) from error
            raise

    async def exists(self, node: str) -> bool:
        return await self._labels(node) is not None

    async def zone(self, node: str) -> str:
        return (await self._labels(node) or {}).get(self._label, "")


def directory(fixed: dict[str, str]) -> NodeDirectory:
    """KubernetesNodes inside a pod unless a fixed list is given."""
    if fixed or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return FixedNodes(fixed)
    return KubernetesNodes()
