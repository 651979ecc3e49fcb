"""What schedulers see: a picture of the cluster at one moment. Plain data, so that decisions can be simulated."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping
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


Keys = Collection[CopysetKey]


@dataclass(slots=True)
class View:
    """nodes, groups: what there is. on, led: copysets by member, and by leader; attention: all copysets that may need
    another member or have no leader, and perhaps more. Where these three are not given they are made of the groups. In
    a large cluster they are given, and `groups` makes a group when it is asked for.

    steps: what is under way already, one per copyset at most; `copying` counts replicas on their way to a node.
    """

    nodes: dict[int, Node]
    groups: Mapping[CopysetKey, Group]
    steps: dict[CopysetKey, Step] = field(default_factory=dict)
    per_node: int = 1
    on: Mapping[int, Keys] | None = None
    led: Mapping[int, Keys] | None = None
    attention: Keys | None = None
    load: dict[int, int] = field(default_factory=dict)  # copysets per node, as if all steps were done
    copying: dict[int, int] = field(default_factory=dict)
    _places: dict[str, Places] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on is None or self.led is None:
            on: dict[int, list[CopysetKey]] = {}
            led: dict[int, list[CopysetKey]] = {}
            for group in self.groups.values():
                for member in group.members:
                    on.setdefault(member, []).append(group.key)
                if group.leader:
                    led.setdefault(group.leader, []).append(group.key)
            self.on, self.led = on, led
        self.load = dict.fromkeys(self.nodes, 0)
        for node, keys in self.on.items():
            self.load[node] = len(keys)
        self.copying = {}
        for step in self.steps.values():
            self._count(step)

    def _count(self, step: Step) -> None:
        if step.kind in (StepKind.ADD_PEER, StepKind.CHANGE_PEER):
            self.copying[step.target] = self.copying.get(step.target, 0) + 1
            self._add(step.target, 1)
        if step.kind is StepKind.REMOVE_PEER:
            self._add(step.target, -1)
        if step.kind is StepKind.CHANGE_PEER:
            self._add(step.old, -1)

    def _add(self, number: int, change: int) -> None:
        before = self.load.get(number, 0)
        self.load[number] = before + change
        node = self.nodes.get(number)
        places = self._places.get(node.physical_pool) if node is not None else None
        if node is not None and places is not None:
            places.move(node, before, self.load[number], self._takes(node))

    def _takes(self, node: Node) -> bool:
        return node.takes_replicas and self.copying.get(node.id, 0) < self.per_node

    def take(self, step: Step) -> Step:
        """Counts a step as under way, so that the rest of the round sees it."""
        self.steps[step.copyset] = step
        self._count(step)
        return step

    def groups_on(self, node: int) -> Iterable[Group]:
        assert self.on is not None
        return (self.groups[key] for key in sorted(self.on.get(node, ())))

    def groups_led(self, node: int) -> Iterable[Group]:
        """By what is said of the leader; whether it is online is another question."""
        assert self.led is not None
        return (self.groups[key] for key in sorted(self.led.get(node, ())))

    def noticed(self) -> list[Group]:
        """All groups that may need another member, in order."""
        return [self.groups[key] for key in sorted(self.groups if self.attention is None else self.attention)]

    def idle(self, group: Group) -> bool:
        """It can be changed now: a leader that is online, no change and no step under way."""
        return bool(group.leader) and not group.changing and group.key not in self.steps

    def alive(self, group: Group) -> list[int]:
        return [m for m in group.members if m in self.nodes and self.nodes[m].online and m not in group.lost]

    def has_quorum(self, group: Group) -> bool:
        return len(self.alive(group)) > len(group.members) // 2

    def places(self, physical_pool: str) -> Places:
        """Where replicas can go now."""
        found = self._places.get(physical_pool)
        if found is None:
            found = self._places[physical_pool] = Places()
            for node in self.nodes.values():
                if node.physical_pool == physical_pool and self._takes(node):
                    found.zones.setdefault(node.zone, []).append((self.load.get(node.id, 0), node.id))
            for ranked in found.zones.values():
                ranked.sort()
        return found

    def target_for(self, group: Group, remaining: Iterable[int], *, below: int | None = None) -> int:
        """The node to get a new replica beside `remaining`; 0 when there is none. below: only nodes with fewer
        copysets.

        Zones: the copyset must reach its number of zones; a zone that is used already is taken only when the others
        suffice. Then a server not used yet, then the fewest copysets.
        """
        keep = [self.nodes[m] for m in remaining if m in self.nodes]
        used_zones = {node.zone for node in keep}
        used_servers = {node.server for node in keep if node.server}
        strict = group.zones - len(used_zones) >= group.replicas - len(keep)
        best: tuple[bool, bool, int, int] | None = None
        for zone, ranked in self.places(group.physical_pool).zones.items():
            used = zone in used_zones
            if used and strict:
                continue
            for load, number in ranked:
                if below is not None and load >= below:
                    break
                if number in group.members or number in group.ghosts:
                    continue
                rank = (used, self.nodes[number].server in used_servers, load, number)
                if best is None or rank < best:
                    best = rank
                if not rank[1]:
                    break  # the best of its zone
        return best[3] if best else 0


@dataclass(slots=True)
class Places:
    """Nodes that can take a replica now, by zone: (copysets, node), the emptiest first."""

    zones: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def move(self, node: Node, before: int, after: int, takes: bool) -> None:
        ranked = self.zones.setdefault(node.zone, [])
        at = bisect_left(ranked, (before, node.id))
        if at < len(ranked) and ranked[at] == (before, node.id):
            del ranked[at]
        if takes:
            insort(ranked, (after, node.id))

    def least(self) -> int | None:
        """The fewest copysets of a node that can take one more; None when there is none."""
        return min((ranked[0][0] for ranked in self.zones.values() if ranked), default=None)
