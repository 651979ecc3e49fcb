"""Empties chunkservers that are being drained, and evens out the number of copysets per chunkserver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curve_storage.mds.view import Group, Node, Step, StepKind, View

NAME = "copyset"


def drain(view: View) -> list[Step]:
    steps: list[Step] = []
    for group in view.noticed():
        if not view.idle(group):
            continue
        for member in group.members:
            if member in view.nodes and view.nodes[member].draining and view.has_quorum(group):
                target = view.target_for(group, [m for m in group.members if m != member])
                if target:
                    steps.append(view.take(_replace(view, group, member, target, "its chunkserver is being drained")))
                break
    return steps


def balance(view: View, tolerance: float) -> list[Step]:
    """Moves replicas from fuller to emptier chunkservers while that makes the spread smaller.

    A spread of max(1, tolerance × average) is left alone. One replica at a time leaves or enters a chunkserver, and
    nothing is moved while a copyset of the pool is not whole.
    """
    steps: list[Step] = []
    pools = {node.physical_pool for node in view.nodes.values()}
    noticed = view.noticed()
    for pool in sorted(pools):
        nodes = [n for n in view.nodes.values() if n.physical_pool == pool and n.takes_replicas]
        if len(nodes) >= 2 and all(_whole(view, g) for g in noticed if g.physical_pool == pool):
            steps += _balance_pool(view, nodes, tolerance)
    return steps


def _balance_pool(view: View, nodes: list[Node], tolerance: float) -> list[Step]:
    spread = max(1.0, tolerance * sum(view.load[n.id] for n in nodes) / len(nodes))
    emptiest: dict[str, int] = {}
    for node in nodes:
        emptiest[node.zone] = min(emptiest.get(node.zone, view.load[node.id]), view.load[node.id])
    leaving = {step.old for step in view.steps.values() if step.kind is StepKind.CHANGE_PEER}
    steps: list[Step] = []
    for source in sorted(nodes, key=lambda n: (-view.load[n.id], n.id)):
        if source.id in leaving:
            continue
        least = view.places(source.physical_pool).least()
        if least is None or view.load[source.id] - least <= spread:
            break  # the rest is as even as it need be, or waits for a chunkserver that can take more
        step = _move(view, source, spread, emptiest, least)
        if step is not None:
            steps.append(view.take(step))
            leaving.add(source.id)
    return steps


def _move(view: View, source: Node, spread: float, emptiest: Mapping[str, int], least: int) -> Step | None:
    """The move to the emptiest chunkserver reachable; copysets led by the source go last. emptiest: the least load of a
    chunkserver per zone at the beginning of the round, to pass quickly over zones that offer nothing; least: the load
    of the emptiest that can take a replica."""
    best: tuple[int, bool, Group, int] | None = None
    floor = view.load[source.id] - spread  # a target must be below this to be worth a move
    for group in view.groups_on(source.id):
        if not view.idle(group) or group.physical_pool != source.physical_pool:
            continue
        remaining = [m for m in group.members if m != source.id]
        used = {view.nodes[m].zone for m in remaining if m in view.nodes}
        if not any(load < floor for zone, load in emptiest.items() if zone not in used or group.zones < group.replicas):
            continue
        target = view.target_for(group, remaining, below=int(-(-floor // 1)))
        if not target or not _keeps_zones(view, group, source, remaining, target):
            continue
        rank = (view.load[target], group.leader == source.id)
        if best is None or rank < best[:2]:
            best = (*rank, group, target)
            if rank == (least, False):
                break  # none can be better
    if best is None:
        return None
    return _replace(view, best[2], source.id, best[3], "evens out the copysets")


def _replace(view: View, group: Group, old: int, target: int, why: str) -> Step:
    """A leader hands over before it leaves its copyset, so that writes do not wait for an election."""
    if group.leader == old:
        heirs = [m for m in view.alive(group) if m != old and not view.nodes[m].draining]
        if heirs:
            heir = min(heirs, key=lambda m: (not view.nodes[m].settled, m))
            return Step(group.key, StepKind.TRANSFER_LEADER, heir, scheduler=NAME, why=why)
    return Step(group.key, StepKind.CHANGE_PEER, target, old, NAME, why)


def _keeps_zones(view: View, group: Group, source: Node, remaining: Sequence[int], target: int) -> bool:
    zones = {view.nodes[m].zone for m in remaining if m in view.nodes}
    return len(zones | {view.nodes[target].zone}) >= min(group.zones, len(zones | {source.zone}))


def _whole(view: View, group: Group) -> bool:
    return len(group.members) >= group.replicas and all(
        m in view.nodes and not view.nodes[m].offline and m not in group.lost for m in group.members
    )
