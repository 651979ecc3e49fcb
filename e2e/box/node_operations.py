"""A node of the running box, for tests and people: power, cable, commands inside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from curve_storage.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from e2e.box import cgroups, network, seed, sweep
from e2e.box.command import Argument, CommandFailed, run
from e2e.box.control import Control
from e2e.box.node import CONTAINERD_SOCKET, PROGRAMS, Node

START_PATIENCE = 60.0


class BoxNode:
    """One node. `stop` is a power cut: nothing is told, everything dies at once; its disks are kept for `start`."""

    def __init__(self, node: Node, all_nodes: list[Node], control: Control) -> None:
        self._node = node
        self._all = all_nodes
        self._control = control

    @property
    def name(self) -> str:
        return self._node.name

    @property
    def address(self) -> str:
        return self._node.net.address

    @property
    def data(self) -> Path:
        """The node's folder on the machine; `curve` in it is the node's /var/lib/curve."""
        return self._node.data

    def running(self) -> bool:
        return any(process["name"] == self.name and process["alive"] for process in self._control.processes())

    def start(self) -> None:
        """Power on; returns when the node's containerd answers. Without effect on a running node."""
        if self.running():
            return
        self._clean()
        network.create_node(self._node.net, [node.net for node in self._all])
        cgroups.create(f"{self._node.group}/system")
        self._control.start(self._node.process())
        self._await_containerd()

    def stop(self) -> None:
        """Power off. Without effect on a stopped node."""
        lost = sweep.file_systems_of(self._node.group)
        self._control.stop(self.name)
        self._clean(lost)

    def reboot(self) -> None:
        self.stop()
        self.start()

    def partition(self) -> None:
        """Cuts the node off from the control plane and the other nodes; what runs on it runs on."""
        network.partition(self._node.net)

    def heal(self) -> None:
        network.heal(self._node.net)

    def partitioned(self) -> bool:
        return network.is_partitioned(self._node.net)

    def run(self, *command: Argument, timeout: float = 60.0, stdin: str | None = None) -> str:
        """Standard output of a command inside the node: its mounts, processes, network and name."""
        words: Sequence[Argument] = ["nsenter", "--target", str(self.init()), "--all", "--wdns=/", "--", *command]
        return run(words, timeout=timeout, stdin=stdin)

    def crictl_socket(self) -> Path:
        """The node's containerd socket, as seen from the machine."""
        return Path(f"/proc/{self.init()}/root{CONTAINERD_SOCKET}")

    def load_image(self, archive: Path) -> None:
        """Imports an OCI archive; a running pod keeps the image it was started from."""
        seed.import_archive(self._node.places.bin / "ctr", self.crictl_socket(), archive)

    def init(self) -> int:
        """The machine's number of the node's process 1. Raises Unavailable when the node is off."""
        for process in self._control.processes():
            if process["name"] == self.name and process["alive"]:
                pid = process["pid"]
                try:
                    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                except OSError:
                    children = []
                if children:
                    return int(children[0])
        raise Unavailable("the node is off", where=self.name, todo=f"Run `python -m e2e.box node start {self.name}`.")

    def _clean(self, lost: set[int] | None = None) -> None:
        """What a dead node leaves in the kernel: dying processes, loop devices, namespace, control groups."""
        cgroups.kill(self._node.group)
        if complaints := sweep.detach_loops(self.data, lost or set()):
            raise FailedPrecondition("; ".join(complaints), where=self.name, todo="Close what uses it, then repeat.")
        if self.name in network.namespaces():
            network.remove(self.name)
        cgroups.remove(self._node.group)

    def _await_containerd(self) -> None:
        end = time.monotonic() + START_PATIENCE
        while time.monotonic() < end:
            try:
                run([self._node.places.bin / "ctr", "--address", self.crictl_socket(), "version"], timeout=10)
                return
            except (CommandFailed, Unavailable):
                time.sleep(0.1)
        raise DeadlineExceeded(
            "containerd does not answer",
            where=self.name,
            todo=f"Look at `python -m e2e.box logs {self.name}` and `… logs {self.name}-containerd`.",
        )

    @property
    def programs(self) -> str:
        """Where kubectl, ctr and the others lie inside the node."""
        return PROGRAMS
