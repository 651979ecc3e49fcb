"""The log of a run, as JSON lines and as text, and the table at its end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from e2e.chaos.faults import Outcome


class Report:
    """file: JSON lines, one per event, flushed at once; text goes to `out`."""

    def __init__(self, file: Path, out: TextIO) -> None:
        self._lines = file.open("a")
        self._out = out
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:7.1f} s  {text}", file=self._out, flush=True)

    def event(self, name: str, /, **fields: Any) -> None:
        record = {"time": round(time.time(), 3), "event": name, **fields}
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()

    def begun(self, number: int, what: str) -> None:
        self.event("begin", number=number, fault=what)

    def fault(self, outcome: Outcome) -> None:
        fault = outcome.fault
        self.event(
            "fault", number=fault.number, kind=fault.kind.name, target=fault.target, planned_at=fault.at,
            seconds=fault.seconds, strength=fault.strength, healed_after=_span(outcome.started, outcome.cured),
            restored_after=_span(outcome.started, outcome.restored), longest_stall=outcome.waits,
            notes=outcome.notes, skipped=outcome.skipped, problem=outcome.problem,
        )  # fmt: skip
        if outcome.skipped:
            self.say(f"#{fault.number} {fault}: skipped: {outcome.skipped}")
            return
        waits = " ".join(f"{volume} {seconds:.1f}" for volume, seconds in outcome.waits.items())
        notes = f" ({'; '.join(outcome.notes)})" if outcome.notes else ""
        self.say(
            f"#{fault.number} {fault}{notes}: whole again after {_span(outcome.started, outcome.restored)} s, "
            f"longest stall {waits} s"
        )
        if outcome.problem:
            self.say(f"#{fault.number} PROBLEM: {outcome.problem}")

    def close(self) -> None:
        self._lines.close()


def _span(start: float, end: float) -> float:
    return round(end - start, 1) if start and end else 0.0


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """By kind: how many, longest stall of any volume, longest time until whole again."""
    done = [outcome for outcome in outcomes if not outcome.skipped]
    kinds: dict[str, list[Outcome]] = {}
    for outcome in done:
        kinds.setdefault(outcome.fault.kind.name, []).append(outcome)
    lines = []
    for name in sorted(kinds):
        group = kinds[name]
        stall = max((seconds for outcome in group for seconds in outcome.waits.values()), default=0.0)
        whole = max(_span(outcome.started, outcome.restored) for outcome in group)
        lines.append(f"{name:40} {len(group):4} times, longest stall {stall:6.2f} s, whole again after {whole:6.1f} s")
    return lines
