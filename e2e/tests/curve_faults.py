"""What the fault tests do to the installed product: kill its processes and watch a verifying fio meanwhile."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curve_storage.units import MiB
from e2e.box.box import Box
from e2e.mainjob.install import NAMESPACE
from e2e.mainjob.workload import Workload, claim, pod

SIZE = 48 * MiB
FIO = (
    "fio --name=verify --directory=/data --size={size} --rw=randwrite --bs=4k --ioengine=libaio --iodepth=4 --direct=1 "
    "--fallocate=native --time_based --runtime={seconds} --verify=crc32c --verify_fatal=1 --do_verify=1 "
    "--output-format=json --output=/tmp/fio.json && cat /tmp/fio.json"
)


@dataclass(frozen=True)
class Process:
    pid: int  # as the machine counts
    command: str
    name: str  # as in /proc/PID/comm


def container_processes(box: Box, name: str, container: str = "") -> list[Process]:
    """The processes of a pod's container, found by its control group; lowest number first."""
    status = box.get("pod", name, "-n", NAMESPACE)["status"]
    ids = [
        each["containerID"].rpartition("/")[2]
        for each in status["containerStatuses"]
        if container in ("", each["name"]) and each.get("containerID")
    ]
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            groups = (entry / "cgroup").read_text()
            if any(one in groups for one in ids):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append(Process(int(entry.name), command, (entry / "comm").read_text().strip()))
        except OSError:
            continue
    return sorted(found, key=lambda process: process.pid)


def kill_main(box: Box, name: str, container: str = "") -> Process:
    """kill -9 of a container's first process; everything in the container goes with it."""
    victim = container_processes(box, name, container)[0]
    os.kill(victim.pid, signal.SIGKILL)
    return victim


def data_processes(box: Box, host: str) -> list[Process]:
    """Those that serve a volume, of the volume host's pod `host`."""
    return [process for process in container_processes(box, host) if process.name.startswith("curve-vol-")]


def pods(box: Box, component: str, node: str = "") -> list[dict[str, Any]]:
    """The product's pods of a component (label app.kubernetes.io/component), on one node or all."""
    items = box.get("pods", "-n", NAMESPACE, "-l", f"app.kubernetes.io/component={component}")["items"]
    return [item for item in items if node in ("", item["spec"].get("nodeName"))]


def pod_name(item: dict[str, Any]) -> str:
    return str(item["metadata"]["name"])


class VerifiedLoad:
    """A pod that runs fio with verification on a volume of its own; `result` is its longest request in seconds."""

    def __init__(self, box: Box, name: str, node: str, seconds: int) -> None:
        self._work = Workload(box)
        self._box = box
        self.name = name
        self.seconds = seconds
        box.apply(claim(name), pod(name, name, FIO.format(seconds=seconds, size=SIZE), node=node))

    def await_writing(self) -> None:
        def writing() -> bool:
            script = "cat /proc/[0-9]*/io 2>/dev/null | awk '/^write_bytes/ {n += $2} END {print n}'"
            return int(self._work.run(self.name, "sh", "-c", script) or 0) > MiB  # laying out the file writes nothing

        self._box.wait(f"fio in pod {self.name} writes", writing, 180, every=0.5)

    def result(self, patience: float = 300.0) -> float:
        text = self._work.finish(self.name, self.seconds + patience)
        job = json.loads(text[text.index("{") :])["jobs"][0]
        assert job["error"] == 0 and job["total_err" if "total_err" in job else "error"] == 0, text[-2000:]
        assert job["write"]["total_ios"] > 50, "fio hardly wrote: the fault would have been missed"
        return float(job["write"]["clat_ns"]["max"]) / 1e9

    def remove(self) -> None:
        self._work.delete(f"pod/{self.name}", f"pvc/{self.name}", force=False)
