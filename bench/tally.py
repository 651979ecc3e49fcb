"""What processes have used, from /proc: CPU time, context switches, memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from curve_storage.cli.playground.processes import Identity, alive

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Tally:
    """Since the start of a process (or, after `-`, of an interval): seconds of CPU, numbers of context switches."""

    user: float = 0.0
    system: float = 0.0
    voluntary: int = 0
    involuntary: int = 0

    @property
    def cpu(self) -> float:
        return self.user + self.system

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.user + other.user,
            self.system + other.system,
            self.voluntary + other.voluntary,
            self.involuntary + other.involuntary,
        )

    def __sub__(self, other: Tally) -> Tally:
        return Tally(
            self.user - other.user,
            self.system - other.system,
            self.voluntary - other.voluntary,
            self.involuntary - other.involuntary,
        )


def parse_stat(text: str) -> tuple[float, float]:
    """User and system seconds of all threads, from /proc/PID/stat (fields 14 and 15 of proc(5))."""
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[11]) / _TICKS, int(fields[12]) / _TICKS


def parse_switches(text: str) -> tuple[int, int]:
    """Voluntary and involuntary switches of one thread, from /proc/PID/task/TID/status."""
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(values["voluntary_ctxt_switches"]), int(values["nonvoluntary_ctxt_switches"])


def of(pid: int) -> Tally:
    """Raises OSError when the process is gone. Switches are those of living threads."""
    root = Path(f"/proc/{pid}")
    user, system = parse_stat((root / "stat").read_text())
    voluntary = involuntary = 0
    for thread in (root / "task").iterdir():
        try:
            more = parse_switches((thread / "status").read_text())
        except OSError:
            continue
        voluntary += more[0]
        involuntary += more[1]
    return Tally(user, system, voluntary, involuntary)


def read(processes: Mapping[Identity, str]) -> dict[Identity, Tally]:
    """Of those that live."""
    found = {}
    for known in processes:
        if alive(known):
            try:
                found[known] = of(known.pid)
            except OSError:
                continue
    return found


def spent(
    before: Mapping[Identity, Tally], after: Mapping[Identity, Tally], names: Mapping[Identity, str]
) -> dict[str, Tally]:
    """By name; processes of one name are added up, those not in both readings left out."""
    found: dict[str, Tally] = {}
    for known, last in after.items():
        if known in before:
            name = names[known]
            found[name] = found.get(name, Tally()) + (last - before[known])
    return found


def machine_busy(text: str | None = None) -> float:
    """CPU seconds of all cores that were not idle since boot, from the first line of /proc/stat."""
    line = (text if text is not None else Path("/proc/stat").read_text()).splitlines()[0]
    fields = [int(value) for value in line.split()[1:9]]  # user nice system idle iowait irq softirq steal
    return (sum(fields) - fields[3] - fields[4]) / _TICKS


def memory(pid: int) -> dict[str, int]:
    """Bytes: rss (resident), pss (shared pages by their share), private (what ending the process would free)."""
    found = {"rss": 0, "pss": 0, "private": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, _, rest = line.partition(":")
        value = int(rest.split()[0]) * 1024
        if key in ("Rss", "Pss"):
            found[key.lower()] = value
        elif key in ("Private_Clean", "Private_Dirty"):
            found["private"] += value
    return found
