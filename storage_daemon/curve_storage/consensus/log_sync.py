"""The one thread that writes and syncs log batches: one hop there and one back per batch, never per request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from curve_storage.consensus.log import Batch
from curve_storage.errors import CurveError, DiskFailed

Finished = Callable[[Batch, CurveError | None, float], None]


class SyncThread:
    """`finished(batch, error, seconds)` is called in this thread. After an error nothing is written any more."""

    def __init__(self, finished: Finished) -> None:
        self._finished = finished
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._worker = threading.Thread(target=self._run, name="log-sync", daemon=True)

    def start(self) -> None:
        self._worker.start()

    def submit(self, batch: Batch) -> None:
        self._queue.put(batch)

    def stop(self) -> None:
        """Ends after what was submitted."""
        if self._worker.is_alive():
            self._queue.put(None)
            self._worker.join(30)

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            started = time.perf_counter()
            try:
                batch.write()
            except CurveError as error:
                self._finished(batch, error, 0.0)
                return
            except Exception as error:
                failure = DiskFailed(f"cannot write the log: {type(error).__name__}: {error}", where="log")
                self._finished(batch, failure, 0.0)
                return
            self._finished(batch, None, time.perf_counter() - started)
