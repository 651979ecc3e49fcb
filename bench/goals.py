"""What the jobs are to reach on the test machine of two cores, and whether they do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """Of one job through NBD, in the job's unit."""

    least: float
    aim: float


GOALS = {
    "write_4k_qd1": Goal(2_000, 3_000),
    "write_4k_qd32": Goal(20_000, 30_000),
    "read_4k_qd1": Goal(8_000, 10_000),
    "read_4k_qd32": Goal(40_000, 60_000),
    "mix_4k_qd16": Goal(15_000, 25_000),
    "write_1m_qd4": Goal(500, 700),
    "read_1m_qd4": Goal(1_500, 2_000),
}
FUSE_OF_NBD = Goal(0.7, 0.9)  # the same job through loop over FUSE, as a share


def word(goal: Goal | None, value: float | None) -> str:
    """aim | met | missed, "" where there is nothing to compare. Higher is better."""
    if goal is None or value is None:
        return ""
    if value >= goal.aim:
        return "aim"
    return "met" if value >= goal.least else "missed"


def word_at_most(goal: Goal, value: float) -> str:
    """The same where lower is better."""
    if value <= goal.aim:
        return "aim"
    return "met" if value <= goal.least else "missed"


def short(value: float) -> str:
    """2000 → 2k, 500 → 500"""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
