"""kopf's part: watching. Every event of a cluster or of what it owns wakes that cluster's worker, nothing more.

Low-level event handlers are used on purpose: they keep no progress, no diff base and no finalizer on the objects, so
there is no second place where a step could be remembered. A restart lists everything, which wakes every cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from curve_operator import names
from curve_operator.metrics import WATCH_EVENTS

Wake = Callable[[str, str], None]

OWNED = (("apps", "v1", "statefulsets"), ("", "v1", "secrets"), ("", "v1", "configmaps"))


def registry(wake: Wake) -> kopf.OperatorRegistry:
    found = kopf.OperatorRegistry()

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=found, id="cluster")
    async def cluster(namespace: str | None, name: str | None, **_: Any) -> None:
        WATCH_EVENTS.labels("cluster").inc()
        if namespace and name:
            wake(namespace, name)

    ours = {names.LABEL_MANAGED_BY: names.FIELD_MANAGER}
    for group, version, plural in OWNED:

        @kopf.on.event(group, version, plural, registry=found, id=f"owned-{plural}", labels=ours)
        async def owned(namespace: str | None, labels: Mapping[str, str], plural: str = plural, **_: Any) -> None:
            WATCH_EVENTS.labels(plural).inc()
            instance = labels.get(names.LABEL_INSTANCE)
            if namespace and instance:
                wake(namespace, instance)

    @kopf.on.login(registry=found, id="login")
    def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)

    return found


def settings() -> kopf.OperatorSettings:
    found = kopf.OperatorSettings()
    found.posting.enabled = False  # events are ours to write, on transitions only
    found.peering.standalone = True  # leadership is the Lease's
    found.scanning.disabled = True  # resources are fixed; needs no right on CRDs
    found.watching.server_timeout = 300
    found.watching.client_timeout = 330
    found.watching.connect_timeout = 10
    return found
