"""Evens out the number of leaders per chunkserver.

A leader moves from a chunkserver to another member of the copyset. Where a single move does not help, a chain does: a
→ b for one copyset and b → c for another. Searching for the shortest such chain from the fullest chunkserver to one
with at least two leaders less, until there is none, reaches the best distribution that the memberships allow, and
moves nothing when it is reached.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from curve_storage.mds.view import Group, Step, StepKind, View

NAME = "leader"


def leaders(view: View, limit: int, pool: int = 0) -> list[Step]:
    """At most `limit` moves under way per pool. pool: only this one."""
    assert view.led is not None
    counts: dict[int, dict[int, int]] = {}
    for node, keys in view.led.items():
        if node in view.nodes and view.nodes[node].online:
            for number, _ in keys:
                count = counts.setdefault(number, {})
                count[node] = count.get(node, 0) + 1
    running: dict[int, int] = {}
    for step in view.steps.values():
        if step.kind is StepKind.TRANSFER_LEADER and step.copyset in view.groups:
            count = counts.setdefault(step.copyset[0], {})
            running[step.copyset[0]] = running.get(step.copyset[0], 0) + 1
            former = view.groups[step.copyset].leader
            if former:
                count[former] -= 1
            count[step.target] = count.get(step.target, 0) + 1
    _idle_nodes(view, counts)
    steps: list[Step] = []
    for number, count in sorted(counts.items()):
        if pool in (0, number):
            steps += _even_out(view, number, count, limit - running.get(number, 0))
    return steps


def _idle_nodes(view: View, counts: dict[int, dict[int, int]]) -> None:
    """Counts 0 for chunkservers that lead none of a pool's copysets and could."""
    assert view.on is not None
    for node, keys in view.on.items():
        if _wanted(view, node) and view.nodes[node].settled:
            missing = [pool for pool, count in counts.items() if node not in count]
            if missing and keys:
                for pool in {key[0] for key in keys}.intersection(missing):
                    counts[pool][node] = 0


def _even_out(view: View, pool: int, count: dict[int, int], limit: int) -> list[Step]:
    steps: list[Step] = []
    exhausted: set[int] = set()
    while len(steps) < limit:
        sources = [n for n in count if n not in exhausted]
        if not sources:
            break
        # A chunkserver that is drained or whose disk is failing gives its leaders away whatever the counts.
        source = max(sources, key=lambda n: (not _wanted(view, n) and count[n] > 0, count[n], -n))
        if _wanted(view, source) and count[source] - min(count.values()) < 2:
            break  # and so it is for those that lead no more than this one
        chain, reached = _chain(view, pool, count, source)
        if not chain:
            # Whoever is reached from here leads to nobody else, and has no more to give away.
            exhausted.update(n for n in reached if n == source or (_wanted(view, n) and count[n] <= count[source]))
            continue
        if len(steps) + len(chain) > max(limit, len(chain) if not steps else 0):
            exhausted.add(source)
            continue
        for group, _, there in chain:
            steps.append(view.take(Step(group.key, StepKind.TRANSFER_LEADER, there, scheduler=NAME, why="evens out")))
        count[source] -= 1
        count[chain[-1][2]] += 1
    return steps


def _chain(
    view: View, pool: int, count: dict[int, int], source: int
) -> tuple[list[tuple[Group, int, int]], Iterable[int]]:
    """The shortest chain of moves (group, from, to) from `source` to a node with two leaders less, empty when there is
    none; and who was reached."""
    forced = not _wanted(view, source)
    goal = count[source] - 2
    came: dict[int, tuple[Group, int]] = {}
    queue = deque([source])
    while queue:
        here = queue.popleft()
        neighbours = sorted(
            ((count[m], m, group) for group in _movable(view, pool, here) for m in group.members
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
                return list(reversed(chain)), ()
            queue.append(node)
    return [], (source, *came)


def _movable(view: View, pool: int, node: int) -> Iterable[Group]:
    return (g for g in view.groups_led(node) if g.key[0] == pool and g.leader == node and view.idle(g))


def _wanted(view: View, node: int) -> bool:
    known = view.nodes.get(node)
    return known is not None and known.online and not known.draining and known.writable


def _can_lead(view: View, group: Group, member: int) -> bool:
    return _wanted(view, member) and view.nodes[member].settled and member not in group.lost
