"""Reasons of daemons that run and are not ready: asked of the daemon itself, and shown in the cluster's status."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from curve_operator import readiness
from curve_storage.telemetry.http import HttpEndpoint

REASON = "etcd does not answer at e1:2379: no route"


def pod(name: str, *, ready: bool = False, phase: str = "Running") -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    return {"metadata": {"name": name}, "status": {"phase": phase, "podIP": "127.0.0.1", "conditions": conditions}}


async def test_the_daemon_is_asked_for_its_reason() -> None:
    reasons: list[str | None] = [REASON]
    endpoint = HttpEndpoint("127.0.0.1", 0, CollectorRegistry(), lambda: None, lambda: reasons[0])
    port = await endpoint.start()
    try:
        pods = [pod("a"), pod("b", ready=True), pod("c", phase="Pending")]
        assert await readiness.complaints(pods, port) == {"a": REASON}
        reasons[0] = None
        assert await readiness.complaints(pods, port) == {}
    finally:
        await endpoint.stop()
    assert await readiness.complaints(pods, port) == {}, "nobody listens there any more"


@pytest.mark.parametrize("external", [True, False])
def test_the_status_names_it_and_what_to_do(make_world: Any, external: bool) -> None:
    etcd = {"endpoints": ["e1:2379"]} if external else {}
    world = make_world({"etcd": etcd, "storage": {"useAllNodes": True, "directories": [{"path": "/d"}]}})
    for _ in range(3):
        world.step()
        world.run_all()
    world.run("demo-mds", ready=False)
    world.answers = {"demo-mds-0": REASON}
    world.step()
    condition = next(item for item in world.status().conditions if item.type == "MdsReady")
    assert f"demo-mds-0: {REASON}" in condition.message
    assert ("correct spec.etcd.endpoints" in condition.message) == external
