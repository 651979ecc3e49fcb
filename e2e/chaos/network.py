"""The run's network: a namespace per process of the cluster, joined by a bridge in the namespace of the run itself.

The run is in a mount namespace of its own, so the files that name the namespaces end with its last process. A pulled
cable is the bridge's end set down; what goes one way only, or is lost by chance, is dropped by nftables in the
namespace; a slow cable is a token bucket (the kernel need not have netem).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from e2e.box.command import run

BRIDGE = "chaos"
NETWORK = "10.199.0"
HUB_ADDRESS = f"{NETWORK}.1"
_NFT = "nftables is not installed: run `python -m e2e.box packages`"


@dataclass(frozen=True)
class Seat:
    """The place of one process, or of one node, in the network. file: names its namespace."""

    name: str
    number: int
    file: Path

    @property
    def address(self) -> str:
        return f"{NETWORK}.{10 + self.number}"

    @property
    def cable(self) -> str:
        """The bridge's end."""
        return f"cable{self.number}"

    def inside(self, *command: str, stdin: str | None = None) -> str:
        return run(["nsenter", f"--net={self.file}", "--", *command], stdin=stdin, timeout=60, todo=_NFT)


def create_hub() -> None:
    """In the namespace of this process, which must be a new one."""
    _ip(
        "link set lo up",
        f"link add {BRIDGE} type bridge",
        f"addr add {HUB_ADDRESS}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
    )


def create_seats(names: list[str], directory: Path) -> dict[str, Seat]:
    """A namespace with a cable for each name. directory: for the files that name them."""
    directory.mkdir(parents=True, exist_ok=True)
    seats = {}
    for number, name in enumerate(names, 1):
        seat = Seat(name, number, directory / name)
        seat.file.touch()
        run(["unshare", f"--net={seat.file}", "true"])
        _ip(
            f"link add {seat.cable} type veth peer name eth0 netns {seat.file}",
            f"link set {seat.cable} master {BRIDGE} up",
        )
        lines = ["link set lo up", f"addr add {seat.address}/24 dev eth0", "link set eth0 up"]
        seat.inside("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
        seats[name] = seat
    return seats


def remove(seat: Seat) -> None:
    """The file does not name the namespace any more; it ends with its last process."""
    run(["umount", seat.file])


def _ip(*lines: str) -> None:
    run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")


def pull(seat: Seat) -> None:
    _ip(f"link set {seat.cable} down")


def plug(seat: Seat) -> None:
    _ip(f"link set {seat.cable} up")


def drop(seat: Seat, *, incoming: bool, outgoing: bool, percent: int = 100) -> None:
    """Silently, `percent` of the packets that come in from the cable or go out to it."""
    chance = "" if percent >= 100 else f"numgen random mod 100 < {percent} "
    rules = ["add table inet chaos", "flush table inet chaos"]
    for wanted, hook, direction in ((incoming, "input", "iifname"), (outgoing, "output", "oifname")):
        if wanted:
            rules.append(f"add chain inet chaos {hook} {{ type filter hook {hook} priority 0; policy accept; }}")
            rules.append(f"add rule inet chaos {hook} {direction} eth0 {chance}drop")
    seat.inside("nft", "-f", "-", stdin="\n".join(rules) + "\n")


def slow(seat: Seat, kilobits: int) -> None:
    """What the seat sends leaves at this rate, and waits up to 400 ms in the queue before it is dropped."""
    seat.inside(*f"tc qdisc replace dev eth0 root tbf rate {kilobits}kbit burst 16kb latency 400ms".split())


def heal(seat: Seat) -> None:
    """Everything of the above undone; nothing to undo is fine."""
    plug(seat)
    seat.inside("nft", "-f", "-", stdin="add table inet chaos\ndelete table inet chaos\n")
    if " tbf " in seat.inside("tc", "qdisc", "show", "dev", "eth0"):
        seat.inside("tc", "qdisc", "del", "dev", "eth0", "root")
