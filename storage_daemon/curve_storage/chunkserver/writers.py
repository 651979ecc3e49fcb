"""Who may write to a volume in one copyset, and which of its requests were applied already.

Part of the replicated state: every decision depends on applied commands only, so all replicas decide alike.
Rules: docs/architecture.md, "Writers and exactly once".
"""

from __future__ import annotations

from enum import Enum
from typing import Any

DELETED = (1 << 64) - 1
"""Fence epoch of a deleted volume: nothing can reach it. Volume ids are never used again."""
MAX_WINDOW = 1 << 18
"""Requests a writer may have without acknowledgement; the service refuses what lies beyond."""
_PRUNE_FROM = 128


class Verdict(Enum):
    APPLY = "apply"
    ALREADY_APPLIED = "already_applied"
    FENCED = "fenced"
    STALE = "stale"


class Writer:
    """The present writer: applied holds the applied numbers ≥ low (and perhaps a few below, pruned lazily)."""

    __slots__ = ("applied", "epoch", "generation", "low", "prune_at")

    def __init__(self, epoch: int, generation: int, low: int, applied: set[int] | None = None) -> None:
        self.epoch = epoch
        self.generation = generation
        self.low = low
        self.applied: set[int] = applied if applied is not None else set()
        self.prune_at = max(_PRUNE_FROM, 2 * len(self.applied))


class WriterTable:
    """Fence epochs and present writers of the volumes of one copyset."""

    __slots__ = ("_fences", "_writers")

    def __init__(self) -> None:
        self._fences: dict[int, int] = {}
        self._writers: dict[int, Writer] = {}

    def epoch(self, volume: int) -> int:
        """Requests of lower epochs are refused, reads too. 0: nothing known."""
        return self._fences.get(volume, 0)

    def fence(self, volume: int, epoch: int) -> None:
        """Raises the volume's fence to `epoch`; lower or equal ones change nothing."""
        if epoch > self._fences.get(volume, 0):
            self._fences[volume] = epoch

    def forget(self, volume: int) -> None:
        """The volume is deleted: whatever still comes from its writers is refused."""
        self._fences[volume] = DELETED
        self._writers.pop(volume, None)

    def fenced(self, volume: int, epoch: int, generation: int) -> bool:
        """Would this writer be refused now? For refusing before proposing."""
        if epoch < self._fences.get(volume, 0):
            return True
        writer = self._writers.get(volume)
        return writer is not None and (epoch, generation) < (writer.epoch, writer.generation)

    def admit(self, volume: int, epoch: int, generation: int, seq: int, low: int) -> Verdict:
        """Decides on one command and, when it is to be applied, records it as applied."""
        if epoch < self._fences.get(volume, 0):
            return Verdict.FENCED
        writer = self._writers.get(volume)
        if writer is None or epoch > writer.epoch or (epoch == writer.epoch and generation > writer.generation):
            writer = self._writers[volume] = Writer(epoch, generation, low)
            self._fences[volume] = epoch
        elif epoch < writer.epoch or generation < writer.generation:
            return Verdict.FENCED
        if low > writer.low:
            writer.low = low
        if seq < writer.low:
            return Verdict.STALE
        applied = writer.applied
        if seq in applied:
            return Verdict.ALREADY_APPLIED
        applied.add(seq)
        if len(applied) > writer.prune_at:
            low = writer.low
            writer.applied = {number for number in applied if number >= low}
            writer.prune_at = max(_PRUNE_FROM, 2 * len(writer.applied))
        return Verdict.APPLY

    def dump(self) -> dict[str, Any]:
        """msgpack-able; the inverse of `restore`."""
        return {
            "fences": dict(self._fences),
            "writers": {
                volume: [w.epoch, w.generation, w.low, sorted(n for n in w.applied if n >= w.low)]
                for volume, w in self._writers.items()
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._fences = {int(volume): int(epoch) for volume, epoch in state["fences"].items()}
        self._writers = {
            int(volume): Writer(epoch, generation, low, set(applied))
            for volume, (epoch, generation, low, applied) in state["writers"].items()
        }
