"""The token keyring of a cluster and its rotation: made known first, active later, forgotten last. Pure.

The file is the one `wire.token` reads: {"active": kid, "keys": {kid: base64 of 32 bytes}}.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

ROTATE_AFTER = timedelta(days=30)
SPREAD = timedelta(hours=1)
"""From a key's making until it signs: every daemon has re-read its file by then."""
FORGET_AFTER = timedelta(days=2)
"""From a key's replacement until its tokens are refused; far above the lifetime of a token."""
KEY_BYTES = 32

V = TypeVar("V")


@dataclass(frozen=True)
class Keyring:
    """made: when each key was made; replaced: when it stopped signing."""

    active: str
    keys: dict[str, str]
    made: dict[str, datetime]
    replaced: dict[str, datetime]

    def document(self) -> bytes:
        return json.dumps({"active": self.active, "keys": self.keys}, sort_keys=True).encode()

    def history(self) -> str:
        return json.dumps(
            {
                "made": {kid: when.isoformat() for kid, when in self.made.items()},
                "replaced": {kid: when.isoformat() for kid, when in self.replaced.items()},
            },
            sort_keys=True,
        )


def parse(document: bytes, history: str, now: datetime) -> Keyring:
    """Keys of unknown age count as made now. Raises ValueError when the document is not a keyring."""
    data = json.loads(document)
    keys = dict(data["keys"])
    if data["active"] not in keys:
        raise ValueError("the active key is missing")
    past = json.loads(history) if history else {}
    made = {kid: datetime.fromisoformat(text) for kid, text in past.get("made", {}).items() if kid in keys}
    replaced = {kid: datetime.fromisoformat(text) for kid, text in past.get("replaced", {}).items() if kid in keys}
    return Keyring(data["active"], keys, {kid: made.get(kid, now) for kid in keys}, replaced)


def generate(now: datetime, random: Callable[[int], bytes]) -> Keyring:
    return Keyring("k1", {"k1": _key(random)}, {"k1": now}, {})


def rotate(ring: Keyring, now: datetime, random: Callable[[int], bytes]) -> tuple[Keyring, str]:
    """The next step and its reason; an empty reason: nothing to do yet."""
    forgotten = [kid for kid, when in ring.replaced.items() if kid != ring.active and now - when >= FORGET_AFTER]
    if forgotten:
        drop = set(forgotten)
        return (
            Keyring(ring.active, _without(ring.keys, drop), _without(ring.made, drop), _without(ring.replaced, drop)),
            f"key {forgotten[0]} was replaced {FORGET_AFTER.days} days ago: no token of it lives",
        )
    waiting = [kid for kid in ring.keys if kid != ring.active and kid not in ring.replaced]
    if waiting:
        newest = max(waiting, key=_number)
        if now - ring.made[newest] < SPREAD:
            return ring, ""
        replaced = {**ring.replaced, ring.active: now}
        return Keyring(
            newest, ring.keys, ring.made, replaced
        ), f"key {newest} is known everywhere: it signs from now on"
    if now - ring.made[ring.active] >= ROTATE_AFTER:
        kid = f"k{max(_number(name) for name in ring.keys) + 1}"
        return (
            Keyring(ring.active, {**ring.keys, kid: _key(random)}, {**ring.made, kid: now}, ring.replaced),
            f"key {ring.active} is {ROTATE_AFTER.days} days old: its successor is made known",
        )
    return ring, ""


def _key(random: Callable[[int], bytes]) -> str:
    return base64.b64encode(random(KEY_BYTES)).decode()


def _number(kid: str) -> int:
    digits = kid.removeprefix("k")
    return int(digits) if digits.isdigit() else 0


def _without(items: dict[str, V], drop: set[str]) -> dict[str, V]:
    return {key: value for key, value in items.items() if key not in drop}
