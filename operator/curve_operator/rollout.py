"""Changing running daemons without losing availability: one failure domain at a time, while all is well. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from curve_operator import names
from curve_operator.actions import Apply, Plan
from curve_operator.drift import first_difference
from curve_operator.observed import ready_replicas, restarting, settled

Manifest = Mapping[str, Any]


def roll(
    plan: Plan,
    component: str,
    wanted: Sequence[dict[str, Any]],
    live: Callable[[str], Manifest | None],
    *,
    gate: str,
    may_create: str = "",
) -> bool:
    """Plan creation, repair and change of a role's workloads; True when every one is as wanted and settled.

    gate: why no healthy daemon may be restarted now (empty: one domain may). may_create: why new ones must wait.
    """
    changed: list[tuple[dict[str, Any], Manifest]] = []
    busy: list[str] = []
    done = True
    for manifest in wanted:
        name = manifest["metadata"]["name"]
        present = live(name)
        if present is None:
            done = False
            if may_create:
                plan.wait(may_create)
            else:
                plan.add(Apply(manifest, f"{name} does not exist yet"))
            continue
        if _template(present) != _template(manifest):
            changed.append((manifest, present))
            continue
        field = first_difference(manifest, present)
        if field:
            plan.add(Apply(manifest, f"{name}: {field} is not as wanted"))
        if not settled(present):
            plan.updating |= restarting(present)
            done = False
            busy.append(name)
    if not changed:
        return done
    plan.updating = True
    for manifest, present in [item for item in changed if ready_replicas(item[1]) == 0]:
        plan.add(Apply(manifest, f"{manifest['metadata']['name']} does not run: it takes the new settings at once"))
        changed.remove((manifest, present))
    if not changed:
        return False
    left = f"{len(changed)} {component} to restart with new settings"
    if busy:
        plan.wait(f"{left}: {busy[0]} must be ready first")
    elif gate:
        plan.wait(f"{left}: {gate}")
    else:
        domain = _domain(changed[0][0])
        for manifest, _ in changed:
            if _domain(manifest) == domain:
                plan.add(Apply(manifest, f"{manifest['metadata']['name']} is restarted with new settings"))
    return False


def _template(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("annotations") or {}).get(names.ANNOTATION_TEMPLATE, ""))


def _domain(manifest: Manifest) -> str:
    """Chunkservers of one node may restart together: no chunk has two copies there unless nodes are too few."""
    annotations = manifest["metadata"].get("annotations") or {}
    zone = annotations.get(names.ANNOTATION_ZONE, "")
    node = annotations.get(names.ANNOTATION_NODE, "")
    return f"{node}/{zone}" if node else str(manifest["metadata"]["name"])
