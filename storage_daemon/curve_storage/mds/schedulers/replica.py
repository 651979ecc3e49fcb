"""Brings the number of members to the pool's number of replicas."""

from __future__ import annotations

from curve_storage.mds.view import Group, Step, StepKind, View

NAME = "replica"


def replica(view: View) -> list[Step]:
    steps: list[Step] = []
    for group in view.noticed():
        if not view.idle(group):
            continue
        if len(group.members) < group.replicas and view.has_quorum(group):
            target = view.target_for(group, group.members)
            if target:
                steps.append(
                    view.take(Step(group.key, StepKind.ADD_PEER, target, scheduler=NAME, why="too few replicas"))
                )
        elif len(group.members) > group.replicas and view.has_quorum(group):
            surplus = _surplus(view, group)
            steps.append(view.take(Step(group.key, StepKind.REMOVE_PEER, surplus, scheduler=NAME, why="surplus")))
    return steps


def _surplus(view: View, group: Group) -> int:
    """The member that is missed least: not online, draining, in a zone used twice, on the fullest chunkserver; the
    leader only when it is the only choice."""

    def rank(member: int) -> tuple[bool, bool, bool, bool, int]:
        node = view.nodes.get(member)
        if node is None:
            return (True, True, True, True, 0)
        others = [view.nodes[m].zone for m in group.members if m != member and m in view.nodes]
        return (not node.online, node.draining, node.zone in others, member != group.leader, view.load.get(member, 0))

    return max(group.members, key=rank)
