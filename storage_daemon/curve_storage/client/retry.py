"""What a failed attempt means for the next one, and how long to wait before it."""

from __future__ import annotations

import random
from enum import Enum

from curve_storage import errors
from curve_storage.errors import CurveError


class Verdict(Enum):
    REDIRECT = "redirect"  # another member of the copyset leads
    SEARCH = "search"  # the member does not answer or does not know the group: find who leads
    WAIT = "wait"  # the right member cannot do it now: no room, too much queued
    AUTHENTICATE = "authenticate"  # the token is refused: get a fresh one
    FENCED = "fenced"
    FAIL = "fail"  # asking again cannot help


def judge(error: CurveError) -> Verdict:
    """The one table of what each error of a data request leads to. Unforeseen errors of a peer are waited out: a
    healthy quorum must never turn into an I/O error of the workload."""
    match error:
        case errors.NotLeader():
            return Verdict.REDIRECT
        case errors.StoreReadOnly():
            return Verdict.WAIT
        case errors.Fenced():
            return Verdict.FENCED
        case errors.Unauthenticated():
            return Verdict.AUTHENTICATE
        case errors.ChunkNotExist() | errors.InvalidArgument() | errors.PermissionDenied():
            return Verdict.FAIL
        case errors.Corruption() | errors.Unimplemented() | errors.Cancelled():
            return Verdict.FAIL
        case errors.Unavailable() | errors.DeadlineExceeded() | errors.NotFound() | errors.DiskFailed():
            return Verdict.SEARCH
        case _:
            return Verdict.WAIT


class Backoff:
    """Delays in seconds: exponential from `first` to `cap`, each with ±20 % jitter so that clients spread out."""

    def __init__(self, first: float = 0.01, cap: float = 1.0, *, rng: random.Random | None = None) -> None:
        self._first = first
        self._cap = cap
        self._rng = rng or random.Random()
        self.attempts = 0

    def next(self) -> float:
        delay = min(self._cap, self._first * 2.0 ** min(self.attempts, 30))
        self.attempts += 1
        return delay * self._rng.uniform(0.8, 1.2)

    def reset(self) -> None:
        self.attempts = 0
