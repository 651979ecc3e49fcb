"""Known mistakes, each planted alone, and the check that must find it. docs/durability.md has the same list.

A mutation patches the product for one test; `checked by` names the check whose failure is expected. Without a mutation
the same checks pass with the same budget (test_mutations.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from curve_storage.chunkserver.writers import Verdict, WriterTable

Plant = Callable[[pytest.MonkeyPatch], None]

GROUPS = "simulated groups"
LOG = "crash sweep of the log"
COPYSET = "crash sweep of a chunkserver"
CLUSTERS = "simulated clusters"


@dataclass(frozen=True)
class Mutation:
    """what: the mistake in a sentence; check: what finds it, one of the constants above."""

    what: str
    check: str
    plant: Plant

    @property
    def name(self) -> str:
        return self.plant.__name__


MUTATIONS: list[Mutation] = []


def mutation(what: str, check: str) -> Callable[[Plant], Plant]:
    def add(plant: Plant) -> Plant:
        MUTATIONS.append(Mutation(what, check, plant))
        return plant

    return add


def apply_in_spite_of(patch: pytest.MonkeyPatch, *verdicts: Verdict) -> None:
    """The writers' table lets through what it should have answered with these."""
    original = WriterTable.admit

    def admit(self: Any, *request: int) -> Verdict:
        verdict = original(self, *request)
        return Verdict.APPLY if verdict in verdicts else verdict

    patch.setattr(WriterTable, "admit", admit)


def all_mutations() -> list[Mutation]:
    import mutations_of_clusters
    import mutations_of_consensus
    import mutations_of_storage

    assert mutations_of_clusters and mutations_of_consensus and mutations_of_storage
    return MUTATIONS
