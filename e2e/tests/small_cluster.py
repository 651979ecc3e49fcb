"""A second CurveCluster on the box, as small as one can be: one node, one replica, no CSI driver.

It is made and deleted in seconds, so that tests of the operator need not touch the cluster of the main job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2e.box import images
from e2e.box.box import Box
from e2e.box.command import CommandFailed
from e2e.mainjob.install import NAMESPACE as OPERATOR_NAMESPACE

NAMESPACE = "curve-check"
HEALTHY_PATIENCE = 180.0
CLIENT = """mds: [{name}-mds-0.{name}-mds.{namespace}.svc:6700]
tls: {{ca: /etc/curve/tls/ca.crt, cert: /etc/curve/tls/tls.crt, key: /etc/curve/tls/tls.key}}
"""
# Runs in the MDS's pod, which has certificates and the product: writes or compares 1 MiB of a volume.
TRANSFER = """
import asyncio, random, sys
from pathlib import Path
from curve_storage.client import BlockVolume, Cluster, load_client_config

async def main(action, path):
    pattern = random.Random(path).randbytes(1 << 20)
    cluster = Cluster(load_client_config(Path("/tmp/client.yaml")))
    volume = await BlockVolume.open(cluster, path=path, patience=60.0)
    if action == "write":
        await volume.write(0, pattern)
    same = bytes(await volume.read(0, len(pattern))) == pattern
    await volume.close()
    await cluster.close()
    print("same" if same else "different")

asyncio.run(main(*sys.argv[1:]))
"""


class SmallCluster:
    """folder: of the cluster's data below /var/lib/curve of the box's first node. spec: changes of the resource's."""

    def __init__(self, box: Box, name: str, **spec: Any) -> None:
        self._box = box
        self.name = name
        self.node = box.nodes()[0].name
        self._spec = spec

    @property
    def folder(self) -> Path:
        """The cluster's data as the machine sees it."""
        return self._box.places.box / self.node / "curve" / self.name

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    def create(self) -> None:
        """Returns at once."""
        names = images.references()
        inside = f"/var/lib/curve/{self.name}"
        spec = {
            "image": names["curve"],
            "nodes": [self.node],
            "dataDir": f"{inside}/daemons",
            "etcd": {"count": 1, "image": names["etcd"]},
            "mds": {"count": 1},
            "storage": {
                "nodes": [self.node],
                "directories": [{"path": f"{inside}/disk", "size": "2Gi"}],
                "pool": {"replicas": 1, "copysets": 4},
            },
            **self._spec,
        }
        self._box.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {
                "apiVersion": "operator.curve.io/v1",
                "kind": "CurveCluster",
                "metadata": {"name": self.name, "namespace": NAMESPACE},
                "spec": spec,
            },
        )

    def resource(self) -> dict[str, Any]:
        """Empty when there is none."""
        text = self._box.kubectl("get", "curvecluster", self.name, "-n", NAMESPACE, "--ignore-not-found", "-o", "json")
        found: dict[str, Any] = json.loads(text) if text.strip() else {}
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.resource().get("status", {})
        return found

    def condition(self, kind: str) -> dict[str, Any]:
        return next((each for each in self.status().get("conditions", []) if each["type"] == kind), {})

    def workloads(self) -> dict[str, int]:
        """StatefulSet → replicas wanted."""
        items = self._box.get("statefulsets", "-n", NAMESPACE, "-l", f"app.kubernetes.io/instance={self.name}")["items"]
        return {item["metadata"]["name"]: item["spec"]["replicas"] for item in items}

    def await_healthy(self) -> None:
        self._box.wait(
            f"cluster {self.name} healthy", lambda: self.status().get("health") == "Healthy", HEALTHY_PATIENCE
        )

    def delete(self) -> None:
        """Asks for it and returns at once."""
        self._box.kubectl("delete", "curvecluster", self.name, "-n", NAMESPACE, "--wait=false", "--ignore-not-found")

    def patch(self, body: dict[str, Any]) -> None:
        self._box.kubectl("patch", "curvecluster", self.name, "-n", NAMESPACE, "--type=merge", "-p", json.dumps(body))

    def await_gone(self) -> None:
        """The resource and, by Kubernetes' own collection, the pods."""
        selector = f"app.kubernetes.io/instance={self.name}"
        self._box.wait(f"cluster {self.name} gone", lambda: not self.resource(), 180)
        self._box.wait(
            f"pods of {self.name} gone",
            lambda: not self._box.get("pods", "-n", NAMESPACE, "-l", selector)["items"],
            180,
        )

    def remove(self) -> None:
        """With everything it holds, whatever state it is in."""
        if self.resource():
            self.patch({"spec": {"cleanupConfirm": "Confirm"}})
            self.delete()
            self.await_gone()

    def events(self) -> list[str]:
        """`Type Reason: message` of every event about the cluster."""
        items = self._box.get("events", "-n", NAMESPACE, "--field-selector", f"involvedObject.name={self.name}")[
            "items"
        ]
        return [f"{item['type']} {item['reason']}: {item['message']}" for item in items]

    def run(self, *command: str) -> str:
        """A command in the MDS's pod, with a client file at /tmp/client.yaml."""
        text = CLIENT.format(name=self.name, namespace=NAMESPACE)
        script = 'printf %s "$0" > /tmp/client.yaml; export CURVE_CLIENT_CONFIG=/tmp/client.yaml; exec "$@"'
        return self._box.kubectl(
            "exec", f"{self.name}-mds-0", "-n", NAMESPACE, "--", "sh", "-c", script, text, *command
        )

    def transfer(self, action: str, path: str) -> str:
        """write or compare a pattern in a volume: same, different."""
        return self.run("python", "-c", TRANSFER, action, path).strip()


def active_operator(box: Box) -> str:
    """Name of the pod that holds the Lease; empty when nobody does."""
    try:
        lease = box.get("lease", "curve-operator", "-n", OPERATOR_NAMESPACE)
    except CommandFailed:
        return ""
    return str(lease["spec"].get("holderIdentity") or "")
