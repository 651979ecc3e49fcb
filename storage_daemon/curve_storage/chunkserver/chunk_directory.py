"""The chunk files of one copyset: which exist, which are open, which have changed since the last checkpoint.

`hollow` chunks exist in the replicated state but have no file here (the pool was empty when they were created, or the
file is lost): their content is fetched from another replica as soon as there is a file for it.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from curve_storage.chunkserver.chunk_file import NO_SPACE, ChunkFile, disk_failed
from curve_storage.chunkserver.copyset_meta import CopysetMeta
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.errors import NoSpace, Unavailable

PREFIX = "chunk_"
_SCAN = 32


def chunk_file_name(chunk: int) -> str:
    return f"{PREFIX}{chunk:016x}"


class OpenFiles:
    """Bounds the open chunks of all copysets (second chance); changed ones stay open until their checkpoint."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: deque[tuple[ChunkDirectory, ChunkFile]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def opened(self, directory: ChunkDirectory, chunk: ChunkFile) -> None:
        self.trim()
        # Only now: the caller is about to use (and perhaps change) it.
        self._queue.append((directory, chunk))

    def trim(self) -> None:
        """Closes some of what is beyond the limit; also called after checkpoints, when nothing is changed any more."""
        for _ in range(min(_SCAN, len(self._queue))):
            if len(self._queue) < self._limit:
                break
            owner, oldest = self._queue.popleft()
            if oldest.stale:
                continue
            if oldest.dirty or oldest.used:
                oldest.used = False
                self._queue.append((owner, oldest))
            else:
                owner.close(oldest)


class ChunkDirectory:
    def __init__(self, path: Path, group: int, pool: ChunkPool, files: OpenFiles) -> None:
        self.path = path
        self.group = group
        self._pool = pool
        self._files = files
        self._chunks: dict[int, ChunkFile | None] = {}
        self.hollow: set[int] = set()
        self.removed = False
        """The replica was removed: the files are in the trash, and the path may be another replica's by now."""
        self._dirty: list[ChunkFile] = []

    def load(self, meta: CopysetMeta) -> None:
        """Takes over what the last checkpoint lists. Files made after it are recycled (the log makes them again);
        listed chunks without a file become hollow (unless the log deletes them). Raises OSError."""
        listed = set(meta.chunks)
        hollow = set(meta.hollow)
        present = set()
        for name in os.listdir(self.path):
            if not name.startswith(PREFIX):
                continue
            try:
                chunk = int(name[len(PREFIX) :], 16)
            except ValueError:
                chunk = -1  # a name that has rotted: its chunk counts as hollow
            if chunk in listed and chunk not in hollow and name == chunk_file_name(chunk):
                present.add(chunk)
            else:
                self._pool.give_back(self.path / name)
        self._chunks = dict.fromkeys(sorted(present))
        self.hollow = (listed | hollow) - present
        self._dirty = []

    def __len__(self) -> int:
        return len(self._chunks) + len(self.hollow)

    def ids(self) -> list[int]:
        """Every chunk of the replicated state, hollow ones included."""
        return sorted({*self._chunks, *self.hollow})

    def with_files(self) -> list[int]:
        return sorted(self._chunks)

    def suspect(self) -> list[int]:
        """Open chunks with blocks that are known to be bad."""
        return [number for number, chunk in self._chunks.items() if chunk is not None and chunk.bad]

    def exists(self, chunk: int) -> bool:
        return chunk in self._chunks or chunk in self.hollow

    def get(self, chunk: int) -> ChunkFile | None:
        """The open chunk, None when it has no file here (it may be hollow). Raises DiskFailed, Unavailable."""
        found = self._chunks.get(chunk)
        if found is not None:
            found.used = True
            return found
        if chunk not in self._chunks:
            return None
        self._refuse_removed()
        path = self.path / chunk_file_name(chunk)
        try:
            found = ChunkFile.open(path, self.group, chunk)
        except OSError as error:
            raise disk_failed(error, path) from error
        self._chunks[chunk] = found
        self._files.opened(self, found)
        if found.bad:
            self.changed(found)
        return found

    def is_open(self, chunk: int) -> bool:
        return self._chunks.get(chunk) is not None

    def for_write(self, chunk: int, volume: int, sn: int) -> ChunkFile | None:
        """The chunk, created when absent and marked as changed. None: there is no file for it, it is hollow now."""
        found = self._chunks.get(chunk)
        if found is None:
            found = self.get(chunk) or self._create(chunk, volume, sn)
            if found is None:
                return None
        if sn > found.sn:
            found.sn = sn
        if not found.dirty:
            found.dirty = True
            self._dirty.append(found)
            found.volume = found.volume or volume  # lost with a damaged header
        return found

    def _create(self, chunk: int, volume: int, sn: int) -> ChunkFile | None:
        self._refuse_removed()
        path = self.path / chunk_file_name(chunk)
        try:
            self._pool.take(path)
        except NoSpace:
            self.hollow.add(chunk)
            return None
        except OSError as error:
            if error.errno in NO_SPACE:
                self.hollow.add(chunk)
                return None
            raise disk_failed(error, path) from error
        found = ChunkFile.create(path, self.group, chunk, volume, sn)
        if chunk in self.hollow:
            self.hollow.discard(chunk)
            found.mark_all_bad()
        self._chunks[chunk] = found
        self._files.opened(self, found)
        return found

    def materialize(self, chunk: int) -> bool:
        """Gives a hollow chunk a file whose blocks are all to be fetched. False: still no space."""
        return self.for_write(chunk, 0, 0) is not None

    def changed(self, chunk: ChunkFile) -> None:
        if not chunk.dirty:
            chunk.dirty = True
            self._dirty.append(chunk)

    def delete(self, chunk: int) -> None:
        """Back to the pool; absent is fine. Raises DiskFailed."""
        self.hollow.discard(chunk)
        if chunk not in self._chunks:
            return
        found = self._chunks.pop(chunk)
        if found is not None:
            found.stale = True
        path = self.path / chunk_file_name(chunk)
        try:
            self._pool.give_back(path)
        except OSError as error:
            raise disk_failed(error, path) from error

    def close(self, chunk: ChunkFile) -> None:
        """Forgets the open file (never a changed one); the next use opens it again."""
        if self._chunks.get(chunk.id) is chunk:
            self._chunks[chunk.id] = None
            chunk.stale = True

    def close_all(self) -> None:
        for chunk, found in self._chunks.items():
            if found is not None:
                found.stale = True
                self._chunks[chunk] = None
        self._dirty = []

    def remove(self) -> None:
        """For those who still hold this replica: nothing is opened or made under its path any more."""
        self.close_all()
        self.removed = True

    def _refuse_removed(self) -> None:
        if self.removed:
            raise Unavailable(
                "this replica was removed", where=str(self.path), todo="Ask the copyset's other chunkservers"
            )

    @property
    def has_dirty(self) -> bool:
        return bool(self._dirty)

    def take_dirty(self) -> list[ChunkFile]:
        """The chunks changed since the last call. The caller calls `flush` on each and syncs them."""
        taken, self._dirty = self._dirty, []
        return taken

    def flush(self, chunk: ChunkFile) -> bool:
        """Header and table into the page cache; False when the chunk was deleted meanwhile. Raises OSError."""
        if chunk.stale:
            return False
        chunk.dirty = False  # from here on a change belongs to the next checkpoint
        chunk.flush()
        return True

    def put_back_dirty(self, chunks: list[ChunkFile]) -> None:
        """The checkpoint did not succeed: these are still to be synced."""
        waiting = set(map(id, self._dirty))
        for chunk in chunks:
            current = self.get(chunk.id)
            if current is not None and id(current) not in waiting:
                current.dirty = True
                self._dirty.append(current)
