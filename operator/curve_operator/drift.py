"""Does a live object still say what we want? Only fields we set are compared; the API server adds many more. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KEYS = ("name", "key", "containerPort", "port", "mountPath", "type", "topologyKey", "uid")
EMPTY: tuple[Any, ...] = (None, "", [], {}, 0, False)
"""What the API server leaves out when it stores an object."""


def first_difference(wanted: Any, live: Any, path: str = "") -> str:
    """Path of the first field of `wanted` that `live` lacks or holds otherwise; empty when all agree."""
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return "" if not wanted and live in EMPTY else path or "the object"
        for key, value in wanted.items():
            if value in EMPTY and live.get(key) in EMPTY:
                continue
            found = first_difference(value, live.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return ""
    if isinstance(wanted, Sequence) and not isinstance(wanted, (str, bytes)):
        if not isinstance(live, Sequence) or isinstance(live, (str, bytes)):
            return "" if not wanted and live in EMPTY else path
        return _lists(wanted, live, path)
    return "" if wanted == live else path


def _lists(wanted: Sequence[Any], live: Sequence[Any], path: str) -> str:
    key = _identity(wanted)
    if key:
        by_key = {str(item.get(key)): item for item in live if isinstance(item, Mapping)}
        for item in wanted:
            found = first_difference(item, by_key.get(str(item[key])), f"{path}[{item[key]}]")
            if found:
                return found
        # a list that someone lengthened (a container, a volume) is drift too, except where others add their own
        return "" if len(live) == len(wanted) or path.endswith(("ownerReferences", "tolerations")) else path
    if len(wanted) != len(live):
        return path
    for index, (one, other) in enumerate(zip(wanted, live, strict=True)):
        found = first_difference(one, other, f"{path}[{index}]")
        if found:
            return found
    return ""


def _identity(items: Sequence[Any]) -> str:
    """The field that tells the items apart, as Kubernetes' own list-maps have one; empty: order decides."""
    for key in KEYS:
        values = [str(item[key]) for item in items if isinstance(item, Mapping) and key in item]
        if items and len(set(values)) == len(items):
            return key
    return ""
