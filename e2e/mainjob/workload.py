"""Claims and pods that use the storage, as a user writes them."""

from __future__ import annotations

from typing import Any

from e2e.box import images
from e2e.box.box import Box
from e2e.box.command import CommandFailed
from e2e.mainjob.install import STORAGE_CLASS

DEFAULT = "default"


def claim(
    name: str,
    size: str = "1Gi",
    *,
    mode: str = "ReadWriteOnce",
    block: bool = False,
    storage_class: str = STORAGE_CLASS,
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": DEFAULT},
        "spec": {
            "accessModes": [mode],
            "storageClassName": storage_class,
            "volumeMode": "Block" if block else "Filesystem",
            "resources": {"requests": {"storage": size}},
        },
    }


def pod(
    name: str, volume_claim: str, script: str, *, node: str = "", block: bool = False, restart: str = "Never"
) -> dict[str, Any]:
    """A pod of the workload image with the claim at /data (or /dev/data); it ends when `script` does."""
    container: dict[str, Any] = {
        "name": "main",
        "image": images.references()["curve-workload"],
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-ec", script],
    }
    if block:
        container["volumeDevices"] = [{"name": "data", "devicePath": "/dev/data"}]
    else:
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    spec: dict[str, Any] = {
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": 2,
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": volume_claim}}],
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": DEFAULT}, "spec": spec}


class Workload:
    """Helps a test or the main job to run pods and look at them."""

    def __init__(self, box: Box) -> None:
        self._box = box

    def phase(self, name: str) -> str:
        return str(self._box.get("pod", name, "-n", DEFAULT)["status"].get("phase", ""))

    def bound(self, name: str) -> bool:
        return bool(self._box.get("pvc", name, "-n", DEFAULT)["status"].get("phase") == "Bound")

    def ready(self, name: str) -> bool:
        conditions = self._box.get("pod", name, "-n", DEFAULT)["status"].get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def finish(self, name: str, patience: float = 180.0) -> str:
        """Waits for the pod's end and returns what it printed. Raises AssertionError with the log of a failed one."""
        self._box.wait(f"pod {name} done", lambda: self.phase(name) in ("Succeeded", "Failed"), patience)
        text = self.logs(name)
        if self.phase(name) != "Succeeded":
            raise AssertionError(f"pod {name} failed: {text[-2000:]}")
        return text

    def logs(self, name: str) -> str:
        try:
            return self._box.kubectl("logs", name, "-n", DEFAULT)
        except CommandFailed as error:
            return error.output

    def run(self, name: str, *command: str, timeout: float = 120.0) -> str:
        return self._box.kubectl("exec", name, "-n", DEFAULT, "--", *command, timeout=timeout)

    def delete(self, *names: str, force: bool = False) -> None:
        flags = ["--force", "--grace-period=0"] if force else []
        self._box.kubectl("delete", "-n", DEFAULT, "--ignore-not-found", "--timeout=120s", *flags, *names, timeout=150)
