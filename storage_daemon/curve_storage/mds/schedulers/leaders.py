"""Evens out the number of leaders per chunkserver.

A leader moves from a chunkserver to another member of the copyset. Where a single move does not help, a chain does: a
→ b for one copyset and b → c for another. Searching for the shortest such chain from the fullest chunkserver to one
with at least two leaders less, until there is none, reaches the best distribution that the memberships allow, and
moves nothing when it is reached.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from curve_storage.mds.view import Group, Step, StepKind, View

NAME = "leader"


def leaders(view: View, limit: int) -> list[Step]:
    """At most `limit` moves under way per pool."""
    steps: list[Step] = []
    pools: dict[int, list[Group]] = {}
    for group in view.groups.values():
        pools.setdefault(group.key[0], []).append(group)
    for pool, groups in sorted(pools.items()):
        running = sum(
            1 for step in view.steps.values() if step.copyset[0] == pool and step.kind is StepKind.TRANSFER_LEADER
        )
        steps += _even_out(view, groups, limit - running)
    return steps


def _even_out(view: View, groups: Sequence[Group], limit: int) -> list[Step]:
    count: dict[int, int] = {}
    led: dict[int, dict[tuple[int, int], Group]] = {}
    for group in groups:
        for member in group.members:
            if _can_lead(view, group, member):
                count.setdefault(member, 0)
        step = view.steps.get(group.key)
        moving = step is not None and step.kind is StepKind.TRANSFER_LEADER
        leader = step.target if step is not None and moving else group.leader
        if leader:
            count[leader] = count.get(leader, 0) + 1
        if group.leader and step is None and not group.changing:
            led.setdefault(group.leader, {})[group.key] = group
    steps: list[Step] = []
    exhausted: set[int] = set()
    while len(steps) < limit:
        sources = [n for n in count if n not in exhausted]
        if not sources:
            break
        # A chunkserver that is drained or whose disk is failing gives its leaders away whatever the counts.
        source = max(sources, key=lambda n: (not _wanted(view, n) and bool(led.get(n)), count[n], -n))
        chain = _chain(view, led, count, source)
        if not chain or len(steps) + len(chain) > max(limit, len(chain) if not steps else 0):
            exhausted.add(source)
            continue
        for group, here, there in chain:
            del led[here][group.key]
            steps.append(view.take(Step(group.key, StepKind.TRANSFER_LEADER, there, scheduler=NAME, why="evens out")))
        count[source] -= 1
        count[chain[-1][2]] += 1
    return steps


def _chain(
    view: View, led: dict[int, dict[tuple[int, int], Group]], count: dict[int, int], source: int
) -> list[tuple[Group, int, int]]:
    """The shortest chain of moves (group, from, to) from `source` to a node with two leaders less; empty when none."""
    forced = not _wanted(view, source)
    goal = count[source] - 2
    came: dict[int, tuple[Group, int]] = {}
    queue = deque([source])
    while queue:
        here = queue.popleft()
        neighbours = sorted(
            ((count[m], m, group) for group in led.get(here, {}).values() for m in group.members
             if m != here and m != source and m not in came and _can_lead(view, group, m)),
            key=lambda item: item[:2],
        )  # fmt: skip
        for load, node, group in neighbours:
            if node in came:
                continue
            came[node] = (group, here)
            if load <= goal or forced:
                chain: list[tuple[Group, int, int]] = []
                while node != source:
                    via, previous = came[node]
                    chain.append((via, previous, node))
                    node = previous
                return list(reversed(chain))
            queue.append(node)
    return []


def _wanted(view: View, node: int) -> bool:
    known = view.nodes.get(node)
    return known is not None and known.online and not known.draining and known.writable


def _can_lead(view: View, group: Group, member: int) -> bool:
    return _wanted(view, member) and view.nodes[member].settled and member not in group.lost
