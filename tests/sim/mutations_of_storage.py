"""Mistakes in the shared log, checkpoints, chunk files, writers' table and snapshots, found by crash sweeps."""

from __future__ import annotations

from typing import Any

import pytest
from mutations import COPYSET, LOG, apply_in_spite_of, mutation

from curve_storage.chunkserver import atomic_file, copyset, snapshot
from curve_storage.chunkserver.chunk_file import ChunkFile
from curve_storage.chunkserver.writers import Verdict, WriterTable
from curve_storage.consensus import log_scan
from curve_storage.consensus.log import Batch, SharedLog
from curve_storage.consensus.log_record import STATE, TRUNCATE


@mutation("Log records are taken without checking their data's checksum", LOG)
def torn_records_are_trusted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(log_scan._Reader, "intact", lambda self, offset, record: True)


@mutation("A truncation of the log is not recorded", LOG)
def truncations_are_not_recorded(patch: pytest.MonkeyPatch) -> None:
    original = SharedLog._put

    def put(self: Any, log: Any, kind: int, **fields: Any) -> bool:
        return True if kind == TRUNCATE else original(self, log, kind, **fields)

    patch.setattr(SharedLog, "_put", put)


@mutation("A segment is reused, and its number and salt are not compared", LOG)
def segments_are_reused_without_their_number(patch: pytest.MonkeyPatch) -> None:
    original = log_scan._Reader.header
    patch.setattr(log_scan._Reader, "header", lambda self, offset, owner: original(self, offset, None))


@mutation("A new segment does not carry the groups' states on", LOG)
def new_segments_forget_the_groups(patch: pytest.MonkeyPatch) -> None:
    original = SharedLog._write

    def write(self: Any, kind: int, **fields: Any) -> None:
        if kind != STATE:
            original(self, kind, **fields)

    patch.setattr(SharedLog, "_write", write)


@mutation("The log is written but not synced before the acknowledgement", COPYSET)
def the_log_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    def write(self: Any) -> None:
        for file, offset, buffers in self.parts:
            file.write(offset, buffers)

    patch.setattr(Batch, "write", write)


@mutation("A log segment is released before the checkpoint has passed it", COPYSET)
def segments_are_released_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SharedLog, "blockers", lambda self: [])


@mutation("A checkpoint says more than has been synced", COPYSET)
def checkpoints_claim_what_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    original = copyset._sync
    patch.setattr(copyset, "_sync", lambda path, handles, meta: original(path, [], meta))


@mutation("A checkpoint's writers are newer than its index", COPYSET)
def checkpoints_hold_newer_writers(patch: pytest.MonkeyPatch) -> None:
    original = copyset.Copyset._save

    async def save(self: Any, meta: Any, dirty: Any) -> None:
        ahead, self.around.io.ahead = self.around.io.ahead, None
        if ahead is not None:
            ahead()
        meta.writers = self.writers.dump()
        await original(self, meta, dirty)

    patch.setattr(copyset.Copyset, "_save", save)


@mutation("The parent directory is not synced after a file was replaced", COPYSET)
def replaced_files_without_a_sync_of_the_directory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(atomic_file, "fsync_directory", lambda path: None)
    patch.setattr(copyset, "fsync_directory", lambda path: None)


@mutation("The parent directory is not synced after a snapshot took a replica's place", COPYSET)
def installed_snapshots_without_a_sync_of_the_directory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "fsync_directory", lambda path: None)


@mutation("A snapshot's chunk files are not synced before it takes the replica's place", COPYSET)
def installed_snapshots_without_a_sync_of_their_files(patch: pytest.MonkeyPatch) -> None:
    original = snapshot._make_ready
    patch.setattr(snapshot, "_make_ready", lambda incoming, target, handles, meta: original(incoming, target, [], meta))


@mutation("A checkpoint's file is overwritten in place", COPYSET)
def checkpoints_are_not_atomic(patch: pytest.MonkeyPatch) -> None:
    def write_in_place(path: Any, data: bytes, *, mode: int = 0o600) -> None:
        os: Any = atomic_file.os
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)

    patch.setattr(copyset, "write_atomic", write_in_place)


@mutation("A repeated write is applied again", COPYSET)
def repeated_requests_are_applied_again(patch: pytest.MonkeyPatch) -> None:
    apply_in_spite_of(patch, Verdict.ALREADY_APPLIED)


@mutation("The writers' table is forgotten by a restart", COPYSET)
def restarts_forget_the_writers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WriterTable, "restore", lambda self, state: None)


@mutation("The epoch of a writer is not compared", COPYSET)
def epochs_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    apply_in_spite_of(patch, Verdict.FENCED)


@mutation("A late request below what the writer has acknowledged is applied", COPYSET)
def late_requests_are_applied(patch: pytest.MonkeyPatch) -> None:
    apply_in_spite_of(patch, Verdict.STALE)


@mutation("Checksums are not compared when a block is read", COPYSET)
def checksums_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    original = ChunkFile.check

    def check(self: Any, offset: int, data: Any) -> list[int]:
        original(self, offset, data)
        return []

    patch.setattr(ChunkFile, "check", check)


@mutation("A lost sector of the checksum table counts as unwritten blocks", COPYSET)
def lost_checksums_read_as_zeros(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChunkFile, "_contradictions", lambda self: [])
