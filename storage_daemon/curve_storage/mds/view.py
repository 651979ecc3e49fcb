"""What schedulers see: a picture of the cluster at one moment. Plain data, so that decisions can be simulated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from curve_storage.mds.state import CopysetKey


class StepKind(Enum):
    TRANSFER_LEADER = "transfer_leader"
    ADD_PEER = "add_peer"
    REMOVE_PEER = "remove_peer"
    CHANGE_PEER = "change_peer"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to be done to one copyset. target: the new member, the new leader, or the member to remove; old: the
    member that CHANGE_PEER replaces."""

    copyset: CopysetKey
    kind: StepKind
    target: int
    old: int = 0
    scheduler: str = ""
    why: str = ""

    def __str__(self) -> str:
        match self.kind:
            case StepKind.CHANGE_PEER:
                return f"replace chunkserver {self.old} by {self.target}"
            case StepKind.ADD_PEER:
                return f"add chunkserver {self.target}"
            case StepKind.REMOVE_PEER:
                return f"remove chunkserver {self.target}"
            case StepKind.TRANSFER_LEADER:
                return f"move the leader to chunkserver {self.target}"


@dataclass(frozen=True, slots=True)
class Node:
    """A chunkserver. online: heard of lately. offline: given up. draining: to be emptied. writable: its disk takes
    new data. settled: online for long enough to be given leaders."""

    id: int
    zone: str
    server: str = ""
    physical_pool: str = "default"
    online: bool = True
    offline: bool = False
    draining: bool = False
    writable: bool = True
    settled: bool = True

    @property
    def takes_replicas(self) -> bool:
        return self.online and not self.draining and self.writable


@dataclass(frozen=True, slots=True)
class Group:
    """A copyset. leader: 0 when there is none that is online. lost: members whose replica is gone or corrupt. ghosts:
    nodes that still hold a replica although they are not members."""

    key: CopysetKey
    members: tuple[int, ...]
    leader: int
    replicas: int = 3
    zones: int = 3
    physical_pool: str = "default"
    changing: bool = False
    lost: frozenset[int] = frozenset()
    ghosts: frozenset[int] = frozenset()


@dataclass(slots=True)
class View:
    """steps: what is under way already, one per copyset at most; `copying` counts replicas on their way to a node."""

    nodes: dict[int, Node]
    groups: dict[CopysetKey, Group]
    steps: dict[CopysetKey, Step] = field(default_factory=dict)
    per_node: int = 1
    load: dict[int, int] = field(default_factory=dict)  # copysets per node, as if all steps were done
    copying: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.load = dict.fromkeys(self.nodes, 0)
        for group in self.groups.values():
            for member in group.members:
                self.load[member] = self.load.get(member, 0) + 1
        self.copying = {}
        for step in self.steps.values():
            self._count(step)

    def _count(self, step: Step) -> None:
        if step.kind in (StepKind.ADD_PEER, StepKind.CHANGE_PEER):
            self.copying[step.target] = self.copying.get(step.target, 0) + 1
            self.load[step.target] = self.load.get(step.target, 0) + 1
        if step.kind is StepKind.REMOVE_PEER:
            self.load[step.target] = self.load.get(step.target, 0) - 1
        if step.kind is StepKind.CHANGE_PEER:
            self.load[step.old] = self.load.get(step.old, 0) - 1

    def take(self, step: Step) -> Step:
        """Counts a step as under way, so that the rest of the round sees it."""
        self.steps[step.copyset] = step
        self._count(step)
        return step

    def idle_groups(self) -> Iterable[Group]:
        """Groups that can be changed now: a leader that is online, no change and no step under way."""
        for group in self.groups.values():
            if group.leader and not group.changing and group.key not in self.steps:
                yield group

    def alive(self, group: Group) -> list[int]:
        return [m for m in group.members if m in self.nodes and self.nodes[m].online and m not in group.lost]

    def has_quorum(self, group: Group) -> bool:
        return len(self.alive(group)) > len(group.members) // 2

    def target_for(self, group: Group, remaining: Iterable[int], *, below: int | None = None) -> int:
        """The node to get a new replica beside `remaining`; 0 when there is none. below: only nodes with fewer
        copysets.

        Zones: the copyset must reach its number of zones; a zone that is used already is taken only when the others
        suffice.
        """
        keep = [self.nodes[m] for m in remaining if m in self.nodes]
        used_zones = {node.zone for node in keep}
        used_servers = {node.server for node in keep if node.server}
        missing_zones = group.zones - len(used_zones)
        missing_replicas = group.replicas - len(keep)
        best: tuple[bool, bool, int, int] | None = None
        for node in self.nodes.values():
            if not node.takes_replicas or node.physical_pool != group.physical_pool or node.id in group.members:
                continue
            if node.id in group.ghosts:
                continue
            if self.copying.get(node.id, 0) >= self.per_node:
                continue
            load = self.load.get(node.id, 0)
            if below is not None and load >= below:
                continue
            if node.zone in used_zones and missing_zones >= missing_replicas:
                continue
            rank = (node.zone in used_zones, node.server in used_servers, load, node.id)
            if best is None or rank < best:
                best = rank
        return best[3] if best else 0
