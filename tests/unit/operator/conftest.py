"""A pretended Kubernetes for plans: objects appear as they are applied, pods and the MDS say what a test tells them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from curve_operator import keyring, manifests, names, tls
from curve_operator.actions import (
    Apply,
    CreatePool,
    IssueCertificate,
    Plan,
    Scale,
    SetFinalizers,
    StoreAuthority,
    StoreKeyring,
)
from curve_operator.interpret import interpret
from curve_operator.models.status import ClusterStatus
from curve_operator.observed import NO_MDS, ChunkserverView, MdsView, Observed, PoolView
from curve_operator.placement import Node
from curve_operator.plan import make_plan
from curve_operator.report import make_status
from curve_operator.security import authority_data, encode
from curve_operator.settings import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)
IMAGE = "curve:test"


SETTLED: dict[str, dict[str, Any]] = {}


class World:
    def __init__(self, spec: Mapping[str, Any], nodes: int = 3, zones: Callable[[int], str] | None = None) -> None:
        self.now = START
        self.resource: dict[str, Any] = {
            "metadata": {
                "name": "demo",
                "namespace": "curve",
                "uid": "uid-1",
                "generation": 1,
                "resourceVersion": "1",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": dict(spec),
        }
        self.nodes = [
            Node(f"n{index}", {"topology.kubernetes.io/zone": zones(index)} if zones else {}) for index in range(nodes)
        ]
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.mds: MdsView = NO_MDS
        self.volumes: tuple[str, ...] = ()
        self.answers: dict[str, str] = {}
        self.pools_made: list[CreatePool] = []
        self._addresses = 0

    @property
    def settings(self) -> Settings:
        return interpret(self.resource, default_image=IMAGE)

    def observed(self) -> Observed:
        return Observed(self.resource, self.objects, self.pods, self.nodes, self.mds, self.volumes, self.answers)

    def plan(self) -> Plan:
        return make_plan(self.settings, self.observed(), self.now)[0]

    def step(self) -> Plan:
        """One round: the plan, carried out as the actor would."""
        settings, observed = self.settings, self.observed()
        plan, where = make_plan(settings, observed, self.now)
        self.carry_out(plan)
        status = make_status(settings, observed, plan, where, self.now)
        self.resource["status"] = status.dump()
        return plan

    def carry_out(self, plan: Plan) -> None:
        for action in plan.actions:
            self._do(self.settings, action)

    def status(self) -> ClusterStatus:
        return ClusterStatus.model_validate(self.resource["status"])

    def _do(self, settings: Settings, action: Any) -> None:
        match action:
            case Apply(manifest=manifest):
                key = (manifest["kind"], manifest["metadata"]["name"])
                live = copy.deepcopy(dict(manifest))
                before = self.objects.get(key, {})
                live["status"] = before.get("status", {})
                live["metadata"]["generation"] = before.get("metadata", {}).get("generation", 0) + 1
                self.objects[key] = live
            case Scale(name=name, replicas=replicas):
                self.objects["StatefulSet", name]["spec"]["replicas"] = replicas
            case StoreAuthority(authority=authority):
                values = authority_data(authority or tls.new_authority(settings.name, self.now))
                self._secret(settings, settings.ca_secret, values)
            case IssueCertificate():
                if action.keep:
                    pair = tls.KeyPair(*action.keep)
                else:
                    pair = tls.issue(action.authority, action.common_name, list(action.sans), self.now)
                values = {"ca.crt": action.authority.bundle(), "tls.crt": pair.cert, "tls.key": pair.key}
                self._secret(settings, action.secret, values)
            case StoreKeyring(document=document, history=history):
                if document:
                    ring, _ = keyring.rotate(keyring.parse(document, history, self.now), self.now, random_bytes)
                else:
                    ring = keyring.generate(self.now, random_bytes)
                self._secret(settings, settings.keyring_secret, {"keyring.json": ring.document()}, ring.history())
            case CreatePool():
                self.pools_made.append(action)
            case SetFinalizers(finalizers=finalizers):
                self.resource["metadata"]["finalizers"] = list(finalizers)

    def _secret(self, settings: Settings, name: str, values: dict[str, bytes], history: str = "") -> None:
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": names.labels(settings.name, "secret")},
            "data": encode(values),
        }
        if history:
            manifest["metadata"]["annotations"] = {names.ANNOTATION_KEYRING: history}  # type: ignore[index]
        self.objects["Secret", name] = manifests.complete(settings, manifest)

    def run(self, name: str, ready: bool = True) -> None:
        """The StatefulSet's pods follow its template, and are ready or not."""
        item = self.objects["StatefulSet", name]
        wanted = item["spec"]["replicas"]
        item["status"] = {
            "observedGeneration": item["metadata"]["generation"],
            "replicas": wanted,
            "updatedReplicas": wanted,
            "readyReplicas": wanted if ready else 0,
            "currentRevision": "r",
            "updateRevision": "r",
        }
        component = item["metadata"]["labels"][names.LABEL_COMPONENT]
        self.pods = [pod for pod in self.pods if pod["owner"] != name]
        for index in range(wanted):
            self.pods.append(
                {
                    "owner": name,
                    "metadata": {
                        "name": f"{name}-{index}",
                        "labels": {names.LABEL_COMPONENT: component, names.LABEL_DAEMON: name},
                    },
                    "spec": {"nodeName": (item["metadata"].get("annotations") or {}).get(names.ANNOTATION_NODE, "n0")},
                    "status": {
                        "phase": "Running",
                        "podIP": self._address(),
                        "conditions": [
                            {
                                "type": "Ready",
                                "status": str(ready),
                                "lastTransitionTime": self.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
                            }
                        ],
                    },
                }
            )

    def _address(self) -> str:
        self._addresses += 1
        return f"10.0.{self._addresses >> 8}.{self._addresses & 255}"

    def run_all(self) -> None:
        for kind, name in list(self.objects):
            if kind == "StatefulSet":
                self.run(name)

    def chunkservers(self) -> list[str]:
        return sorted(
            name
            for (kind, name), item in self.objects.items()
            if kind == "StatefulSet" and item["metadata"]["labels"][names.LABEL_COMPONENT] == "chunkserver"
        )

    def register(self, *, only: int | None = None, pool: bool = False, **more: Any) -> None:
        """The MDS answers and knows the running chunkservers (the first `only` of them)."""
        found = []
        for number, name in enumerate(self.chunkservers()[:only], 1):
            address = next(pod["status"]["podIP"] for pod in self.pods if pod["owner"] == name)
            annotations = self.objects["StatefulSet", name]["metadata"]["annotations"]
            found.append(
                ChunkserverView(
                    id=number,
                    address=f"{address}:8200",
                    server=annotations[names.ANNOTATION_NODE],
                    zone=annotations[names.ANNOTATION_ZONE],
                    physical_pool="default",
                    online=True,
                    state="normal",
                    format_percent=100,
                    disk_path="/data",
                    version="0.1.0",
                )
            )
        view = MdsView(
            cluster_id="c-1", health="healthy", leader="demo-mds-0", chunkservers=tuple(found), versions=("0.1.0",)
        )
        if pool:
            one = PoolView("default", 3, 24, 24, 3 << 40, 1 << 40)
            view = replace(view, pools=(one,), copysets=24, copysets_healthy=24, copysets_available=24)
        self.mds = replace(view, **more)

    def settle(self) -> None:
        """From nothing to a cluster that serves; the way there is walked once per specification."""
        key = json.dumps([self.resource["spec"], len(self.nodes)])
        if key not in SETTLED:
            for _ in range(4):
                self.step()
                self.run_all()
            self.register(pool=True)
            self.later(minutes=1)
            self.step()
            SETTLED[key] = copy.deepcopy(self.__dict__)
        self.__dict__.update(copy.deepcopy(SETTLED[key]))

    def later(self, **delta: float) -> None:
        self.now += timedelta(**delta)


def random_bytes(size: int) -> bytes:
    return bytes(range(size))


DIRECTORIES = {"storage": {"useAllNodes": True, "directories": [{"path": "/d0", "size": "4Gi"}]}}


@pytest.fixture
def make_world() -> type[World]:
    return World


@pytest.fixture
def world() -> World:
    return World(DIRECTORIES)
