"""Carrying FENCE to a copyset: what one member refuses, another may take."""

from __future__ import annotations

import pytest

from curve_storage.clock import SystemClock
from curve_storage.errors import NotLeader, PermissionDenied, Unauthenticated, Unavailable
from curve_storage.mds.fence import CopysetCaller, Target

TARGET = Target({1: "a:1", 2: "b:1", 3: "c:1"}, 1)


class _Wire:
    def __init__(self, answers: dict[str, Exception | None]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def call(self, address: str, type: int, meta: bytes, timeout: float) -> None:
        self.asked.append(address)
        error = self.answers[address]
        if error is not None:
            raise error


@pytest.mark.parametrize("refusal", [Unauthenticated("the token has expired"), PermissionDenied("an old keyring")])
async def test_a_member_that_refuses_the_token_is_passed_over(refusal: Exception) -> None:
    """Its clock jumped, say: the others elect a leader among themselves, and the attachment must not fail for good."""
    wire = _Wire({"a:1": refusal, "b:1": None, "c:1": NotLeader("not here")})
    await CopysetCaller(wire, lambda key: TARGET, SystemClock()).fence(7, 2, [(1, 1)], 5.0)
    assert wire.asked == ["a:1", "b:1"]


async def test_a_token_that_everybody_refuses_is_named_when_the_time_is_up() -> None:
    refusal = Unauthenticated("the token has expired")
    wire = _Wire(dict.fromkeys(("a:1", "b:1", "c:1"), refusal))
    with pytest.raises(Unavailable, match="the token has expired"):
        await CopysetCaller(wire, lambda key: TARGET, SystemClock()).fence(7, 2, [(1, 1)], 0.2)
