"""Mistakes that whole simulated clusters must find: seen by clients only, through every layer."""

from __future__ import annotations

import pytest
from mutations import CLUSTERS, apply_in_spite_of, mutation

from curve_storage.chunkserver.writers import Verdict, WriterTable
from curve_storage.consensus.raft_reads import Reads


@mutation("A volume's old writer goes on after a takeover: no chunkserver checks epochs", CLUSTERS)
def old_writers_go_on_after_a_takeover(patch: pytest.MonkeyPatch) -> None:
    apply_in_spite_of(patch, Verdict.FENCED)
    patch.setattr(WriterTable, "fenced", lambda self, *request: False)
    patch.setattr(WriterTable, "epoch", lambda self, volume: 0)


@mutation("A deposed leader serves reads", CLUSTERS)
def deposed_leaders_serve_reads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reads, "lease_valid", lambda self, now: self.applied >= self.term_start)


@mutation("A session's repeated and late writes are applied again", CLUSTERS)
def sessions_are_not_deduplicated(patch: pytest.MonkeyPatch) -> None:
    apply_in_spite_of(patch, Verdict.ALREADY_APPLIED, Verdict.STALE)
