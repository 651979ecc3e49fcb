"""Steps under way: at most one per copyset, each with the configuration it was made for and a time limit.

Operators live in memory. After a change of leader none is left; a change that is still running in a copyset is seen
in its leader's report, and its result is learned from the epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from curve_storage.mds.state import CopysetKey
from curve_storage.mds.view import Step, StepKind

COOL_DOWN = 15.0
"""Seconds a copyset is left alone after a step failed on it, so that a hopeless step is not repeated at every beat."""


MAX_REFUSALS = 5
"""A leader's FAILED may still be about an earlier change; after this many beats it is about this one."""


class Change(Enum):
    """What a copyset's leader says about its latest change of membership."""

    NONE = 0
    RUNNING = 1
    DONE = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class LeaderReport:
    leader: int
    term: int
    epoch: int
    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()
    change: Change = Change.NONE
    change_error: str = ""


@dataclass(slots=True)
class Operator:
    """epoch: of the configuration the step was decided for. started, deadline: monotonic seconds."""

    step: Step
    epoch: int
    started: float
    deadline: float
    started_wall: float
    seen_running: bool = False
    refused: int = 0  # orders after which the leader reported a failure without having been seen at it


class Verdict(Enum):
    ORDER = "order"  # tell the leader (again)
    WAIT = "wait"
    DONE = "done"
    FAILED = "failed"


def judge(operator: Operator, report: LeaderReport) -> tuple[Verdict, str]:
    """What the leader's report means for the operator, and why."""
    step = operator.step
    voters = set(report.voters)
    match step.kind:
        case StepKind.TRANSFER_LEADER:
            if report.leader == step.target:
                return Verdict.DONE, ""
            if step.target not in voters:
                return Verdict.FAILED, f"chunkserver {step.target} is not a member any more"
        case StepKind.ADD_PEER:
            if step.target in voters:
                return Verdict.DONE, ""
        case StepKind.REMOVE_PEER:
            if step.target not in voters:
                return Verdict.DONE, ""
        case StepKind.CHANGE_PEER:
            if step.target in voters and step.old not in voters:
                return Verdict.DONE, ""
    if report.change is Change.RUNNING:
        operator.seen_running = True
        return Verdict.WAIT, ""
    if report.change is Change.FAILED and operator.seen_running:
        return Verdict.FAILED, report.change_error or "the leader gave the change up"
    if report.change is Change.FAILED:
        operator.refused += 1
        if operator.refused > MAX_REFUSALS:
            return Verdict.FAILED, report.change_error or "the leader refuses the change"
    if report.epoch != operator.epoch:
        return Verdict.FAILED, "the configuration was changed otherwise"
    return Verdict.ORDER, ""


@dataclass(slots=True)
class Finished:
    operator: Operator
    outcome: str  # done | failed | timeout
    why: str


@dataclass(slots=True)
class Operators:
    """transfer_timeout, change_timeout: seconds."""

    transfer_timeout: float
    change_timeout: float
    running: dict[CopysetKey, Operator] = field(default_factory=dict)
    cooling: dict[CopysetKey, float] = field(default_factory=dict)
    by_target: dict[int, set[CopysetKey]] = field(default_factory=dict)

    def add(self, step: Step, epoch: int, *, now: float, wall: float) -> bool:
        """False when the copyset has one already or is cooling down."""
        if step.copyset in self.running or self.cooling.get(step.copyset, 0.0) > now:
            return False
        limit = self.transfer_timeout if step.kind is StepKind.TRANSFER_LEADER else self.change_timeout
        self.running[step.copyset] = Operator(step, epoch, now, now + limit, wall)
        self.by_target.setdefault(step.target, set()).add(step.copyset)
        return True

    def on_report(self, key: CopysetKey, report: LeaderReport, now: float) -> tuple[Operator | None, Finished | None]:
        """(the operator to be ordered now, the operator that has come to its end)."""
        operator = self.running.get(key)
        if operator is None:
            return None, None
        verdict, why = judge(operator, report)
        if verdict is Verdict.ORDER:
            return operator, None
        if verdict is Verdict.WAIT:
            return None, None
        return None, self._finish(operator, "done" if verdict is Verdict.DONE else "failed", why, now)

    def expire(self, now: float) -> list[Finished]:
        late = [op for op in self.running.values() if op.deadline <= now]
        self.cooling = {key: until for key, until in self.cooling.items() if until > now}
        return [self._finish(op, "timeout", "no end within the time limit", now) for op in late]

    def cancel(self, keys: Iterable[CopysetKey], why: str, now: float) -> list[Finished]:
        return [self._finish(self.running[key], "failed", why, now) for key in keys if key in self.running]

    def _finish(self, operator: Operator, outcome: str, why: str, now: float) -> Finished:
        step = operator.step
        del self.running[step.copyset]
        self.by_target[step.target].discard(step.copyset)
        if not self.by_target[step.target]:
            del self.by_target[step.target]
        if outcome != "done":
            self.cooling[step.copyset] = now + COOL_DOWN
        return Finished(operator, outcome, why)

    def steps(self) -> dict[CopysetKey, Step]:
        return {key: operator.step for key, operator in self.running.items()}
