"""Curve on the box, as a user installs it: three Helm releases, images named in values."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from curve_storage.units import GiB
from e2e.box import images
from e2e.box.box import Box
from e2e.box.progress import Progress

NAMESPACE = "curve-system"
CLUSTER = "curve"
STORAGE_CLASS = "curve-block"
XFS_CLASS = "curve-block-xfs"
CHARTS = Path(__file__).resolve().parents[2] / "charts"
HEALTHY_PATIENCE = 300.0
DISK = 6 * GiB
"""Bytes that each node's chunkserver takes at once."""
ROOM = 3 * DISK
"""Bytes of the machine's disk that an installation takes, on three nodes."""
OVER_PROVISIONING = "20"


def split(reference: str) -> dict[str, str]:
    """An image reference as the charts' {registry, repository, tag}."""
    registry, _, rest = reference.partition("/")
    repository, _, tag = rest.rpartition(":")
    return {"registry": registry, "repository": repository, "tag": tag}


def storage_class(name: str, filesystem: str) -> dict[str, Any]:
    return {
        "name": name,
        "default": name == STORAGE_CLASS,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
        "allowVolumeExpansion": True,
        "mountOptions": [],
        "parameters": {"csi.storage.k8s.io/fstype": filesystem, "onDelete": "purge"},
    }


def values(names: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Chart → values for the box. names: short → full image name (`images.references()`)."""
    product = split(names["curve"])
    return {
        "curve-operator": {"image": product},
        "curve-cluster": {
            "name": CLUSTER,
            "spec": {
                "image": names["curve"],
                "etcd": {"image": names["etcd"]},
                # a hundred claims of 1 GiB fit; what they promise is hardly written
                "mds": {"config": {"over_provisioning": OVER_PROVISIONING}},
                "storage": {
                    "useAllNodes": True,
                    "directories": [{"path": "/var/lib/curve/disk0", "size": f"{DISK // GiB}Gi"}],
                },
            },
            "storageClasses": [storage_class(STORAGE_CLASS, "ext4"), storage_class(XFS_CLASS, "xfs")],
        },
        "curve-csi": {
            "image": product,
            "cluster": {"name": CLUSTER},
            "sidecars": {
                "provisioner": {"image": split(names["csi-provisioner"])},
                "attacher": {"image": split(names["csi-attacher"])},
                "resizer": {"image": split(names["csi-resizer"])},
            },
        },
    }


class Installation:
    """The three releases on one box. Every method may be repeated."""

    def __init__(self, box: Box, progress: Progress) -> None:
        self._box = box
        self._progress = progress
        self._values = values(images.references())

    def install(self) -> None:
        """Installs or upgrades everything and returns when the cluster is healthy and every node serves volumes."""
        self.install_operator()
        with self._progress.step("helm upgrade --install curve-cluster"):
            self._release("curve-cluster")
        self._box.wait("CurveCluster healthy", self.healthy, HEALTHY_PATIENCE)
        with self._progress.step("helm upgrade --install curve-csi"):
            self._release("curve-csi")
        self._box.wait("CSI driver on every node", self.driver_ready, HEALTHY_PATIENCE)

    def install_operator(self) -> None:
        """The operator alone; returns at once."""
        with self._progress.step("helm upgrade --install curve-operator"):
            self._release("curve-operator")

    def has_operator(self) -> bool:
        return "curve-operator" in self._box.helm("list", "--namespace", NAMESPACE, "--short").split()

    def _release(self, chart: str) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(self._values[chart], file)
            file.flush()
            self._box.helm(
                "upgrade", "--install", chart, CHARTS / chart, "--namespace", NAMESPACE, "--create-namespace",
                "--values", file.name, "--wait=false",
            )  # fmt: skip

    def change(self, chart: str, **changed: Any) -> None:
        """Upgrades one release with other values of its top level and returns when its pods run with them."""
        self._values[chart].update(changed)
        self._release(chart)
        self._box.wait(f"{chart} rolled out", self.rolled_out, HEALTHY_PATIENCE)
        self._box.wait("CSI driver on every node", self.driver_ready, HEALTHY_PATIENCE)

    def rolled_out(self) -> bool:
        """Every DaemonSet that updates by itself runs the present template on every node."""
        for item in self._box.get("daemonsets", "-n", NAMESPACE)["items"]:
            if item["spec"]["updateStrategy"]["type"] == "OnDelete":
                continue
            status = item["status"]
            if status.get("observedGeneration") != item["metadata"]["generation"]:
                return False
            if status.get("updatedNumberScheduled", 0) < status["desiredNumberScheduled"]:
                return False
            if status.get("numberAvailable", 0) < status["desiredNumberScheduled"]:
                return False
        return True

    def uninstall(self) -> None:
        """In the order that lets finalizers work: driver, cluster (waits until it is gone), operator."""
        for chart in ("curve-csi", "curve-cluster"):
            self._box.helm("uninstall", chart, "--namespace", NAMESPACE, "--ignore-not-found")
        self._box.wait("CurveCluster gone", self._gone, HEALTHY_PATIENCE)
        self._box.helm("uninstall", "curve-operator", "--namespace", NAMESPACE, "--ignore-not-found")

    def _gone(self) -> bool:
        return not self._box.get("curvecluster", "-n", NAMESPACE)["items"]

    def cluster(self) -> dict[str, Any]:
        found: dict[str, Any] = self._box.get("curvecluster", CLUSTER, "-n", NAMESPACE)
        return found

    def healthy(self) -> bool:
        status = self.cluster().get("status", {})
        return str(status.get("health", "")).lower() == "healthy"

    def driver_ready(self) -> bool:
        nodes = len(self._box.get("nodes")["items"])
        for kind in ("curve-csi-node", "curve-volumehost", "curve-keeper"):
            status = self._box.get("daemonset", kind, "-n", NAMESPACE)["status"]
            if status.get("numberReady", 0) < nodes:
                return False
        controller = self._box.get("deployment", "curve-csi-controller", "-n", NAMESPACE)["status"]
        if not controller.get("availableReplicas"):
            return False
        drivers = [
            driver["name"]
            for node in self._box.get("csinodes")["items"]
            for driver in node["spec"].get("drivers") or []
        ]
        return drivers.count("block.csi.curve.io") >= nodes
