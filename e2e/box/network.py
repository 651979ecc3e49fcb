"""The box's network: a namespace for the control plane with a bridge, one per node, nothing in the machine's own.

Nodes are 10.232.0.11 and up, the control plane is 10.232.0.1, pods of node N are 10.233.N.0/24. All routes are
static. A partition is the node's cable pulled out of the bridge.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from e2e.box.command import CommandFailed, run
from e2e.box.places import NAME

NAMESPACES = Path("/run/netns")
BRIDGE = "curve-box"
CONTROL_PLANE = "10.232.0.1"
POD_NETWORK = "10.233.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
MTU = "1500"


@dataclass(frozen=True)
class NodeNetwork:
    """Addresses and names of node number `number`, counted from 1."""

    number: int

    @property
    def name(self) -> str:
        return f"{NAME}-{self.number}"

    @property
    def address(self) -> str:
        return f"10.232.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        return f"10.233.{self.number}.0/24"

    @property
    def cable(self) -> str:
        """The end at the bridge."""
        return f"cable{self.number}"

    @property
    def namespace(self) -> Path:
        return NAMESPACES / self.name


def control_plane_namespace() -> Path:
    return NAMESPACES / NAME


def _ip(namespace: str, *lines: str) -> None:
    """Commands of ip(8), inside a namespace, in one call."""
    run(["ip", "-n", namespace, "-batch", "-"], stdin="\n".join(lines) + "\n")


def create_control_plane() -> None:
    run(["ip", "netns", "add", NAME])
    _ip(
        NAME,
        "link set lo up",
        f"link add {BRIDGE} type bridge",
        f"addr add {CONTROL_PLANE}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
    )


def create_node(node: NodeNetwork, all_nodes: list[NodeNetwork]) -> None:
    """The node's namespace, its cable, and the routes to and from its pods."""
    run(["ip", "netns", "add", node.name])
    _ip(
        NAME,
        f"link add {node.cable} mtu {MTU} type veth peer name eth0 netns {node.name}",
        f"link set {node.cable} master {BRIDGE} up",
        f"route replace {node.pods} via {node.address}",
    )
    others = [other for other in all_nodes if other != node]
    _ip(
        node.name,
        "link set lo up",
        f"addr add {node.address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {CONTROL_PLANE}",
        *(f"route add {other.pods} via {other.address}" for other in others),
    )


def partition(node: NodeNetwork) -> None:
    _ip(NAME, f"link set {node.cable} down")


def heal(node: NodeNetwork) -> None:
    _ip(NAME, f"link set {node.cable} up")


def is_partitioned(node: NodeNetwork) -> bool:
    try:
        links = json.loads(run(["ip", "-n", NAME, "-j", "link", "show", node.cable]))
    except CommandFailed:
        return False  # a stopped node has no cable
    return "UP" not in links[0]["flags"]


def namespaces() -> list[str]:
    """The box's namespaces that exist, by our names alone."""
    if not NAMESPACES.is_dir():
        return []
    return sorted(file.name for file in NAMESPACES.iterdir() if is_ours(file.name))


def is_ours(name: str) -> bool:
    return name == NAME or (name.startswith(f"{NAME}-") and name.removeprefix(f"{NAME}-").isdecimal())


def remove(name: str) -> None:
    run(["ip", "netns", "delete", name])


def processes_in(names: list[str]) -> set[int]:
    """Processes whose network namespace is one of `names`, whatever control group they are in."""
    wanted = set()
    for name in names:
        status = os.stat(NAMESPACES / name)
        wanted.add((status.st_dev, status.st_ino))
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                status = os.stat(folder / "ns/net")
            except OSError:
                continue
            if (status.st_dev, status.st_ino) in wanted:
                found.add(int(folder.name))
    return found
