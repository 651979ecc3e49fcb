"""Replaces members on chunkservers that are offline for good, and replicas that are lost or corrupt."""

from __future__ import annotations

from dataclasses import replace

from curve_storage.mds.view import Group, Step, StepKind, View

NAME = "recover"


def recover(view: View) -> list[Step]:
    """Copysets with the fewest live members come first: they are nearest to losing data."""
    steps: list[Step] = []
    for group in sorted(_damaged(view), key=lambda g: (len(view.alive(g)) - len(g.members), g.key)):
        dead = [m for m in group.members if _dead(view, group, m)]
        if not view.has_quorum(group):
            continue  # only its members coming back can help
        old = dead[0]
        remaining = [m for m in group.members if m != old]
        if len(group.members) > group.replicas:
            steps.append(view.take(Step(group.key, StepKind.REMOVE_PEER, old, scheduler=NAME, why="surplus, offline")))
            continue
        target = view.target_for(group, remaining)
        if target:
            steps.append(
                view.take(Step(group.key, StepKind.CHANGE_PEER, target, old, NAME, "its chunkserver is offline"))
            )
        elif old in group.lost and view.nodes[old].takes_replicas and len(remaining) > 1:
            # Nowhere else to go: the replica leaves the group, is deleted, and the replica scheduler adds it anew.
            steps.append(view.take(Step(group.key, StepKind.REMOVE_PEER, old, scheduler=NAME, why="replica is lost")))
    return steps


def _damaged(view: View) -> list[Group]:
    return [g for g in view.noticed() if view.idle(g) and any(_dead(view, g, m) for m in g.members)]


def _dead(view: View, group: Group, member: int) -> bool:
    node = view.nodes.get(member)
    return node is None or node.offline or member in group.lost


def stuck(view: View) -> list[Group]:
    """Damaged copysets that no chunkserver can take, for the health report."""
    found = []
    # A chunkserver that is only busy is not missing.
    free = View(view.nodes, view.groups, per_node=1 << 30, on=view.on, led=view.led, attention=view.attention)
    for group in _damaged(view):
        dead = next(m for m in group.members if _dead(view, group, m))
        remaining = [m for m in group.members if m != dead]
        anywhere = replace(group, ghosts=frozenset())
        if len(group.members) <= group.replicas and not free.target_for(anywhere, remaining):
            found.append(group)
    return found
