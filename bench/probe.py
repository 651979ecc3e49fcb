"""A steady load of single 4 KiB requests on a block device that keeps the time of each, to see how long any waited."""

from __future__ import annotations

import itertools
import mmap
import os
import random
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BLOCK = 4096
Span = tuple[float, float]  # start and end of a request, seconds of the monotonic clock


@dataclass(frozen=True)
class Wait:
    """Seconds. standstill: the longest time in which nothing was completed; slowest: the longest single request;
    usual: the median request; requests: how many."""

    standstill: float
    slowest: float
    usual: float
    requests: int


def waits(spans: Iterable[Span], start: float, end: float) -> Wait:
    """Of requests that were under way in [start, end]; those not done by then are given with that end."""
    touching = [span for span in spans if span[1] >= start and span[0] <= end]
    ends = sorted(min(span[1], end) for span in touching)
    marks = [start, *(mark for mark in ends if mark >= start), end]
    standstill = max(later - earlier for earlier, later in itertools.pairwise(marks))
    lengths = [span[1] - span[0] for span in touching]
    return Wait(standstill, max(lengths, default=0.0), statistics.median(lengths) if lengths else 0.0, len(touching))


class Probe:
    """Threads that read and write random blocks of `device` with O_DIRECT, one request each at a time.

    size: bytes of the area; share of writes: 70 %. An I/O error ends a thread and is raised by `stop` and `check`."""

    def __init__(self, device: str, size: int, *, threads: int = 8, seed: int = 1) -> None:
        self._device, self._blocks = device, size // BLOCK
        self._stop = threading.Event()
        self._spans: list[list[Span]] = [[] for _ in range(threads)]
        self._pending: list[float | None] = [None] * threads
        self._errors: list[OSError] = []
        self._threads = [
            threading.Thread(target=self._work, args=(n, random.Random(seed * 1000 + n)), daemon=True)
            for n in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> None:
        """Raises TimeoutError when a request does not end in `timeout` seconds, OSError for a failed one."""
        self._stop.set()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            raise TimeoutError(f"a request on {self._device} has not ended for {timeout:g} s")
        self.check()

    def check(self) -> None:
        if self._errors:
            raise self._errors[0]

    def until_progress(self, since: float, timeout: float) -> None:
        """Until every thread has completed a request that it began after `since`."""
        deadline = time.monotonic() + timeout
        while True:
            self.check()
            if all(spans and spans[-1][0] > since for spans in self._spans):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"requests on {self._device} wait for more than {timeout:g} s")
            time.sleep(0.01)

    def waits(self, start: float, end: float) -> Wait:
        pending = [(began, end) for began in list(self._pending) if began is not None and began <= end]
        return waits([span for spans in self._spans for span in list(spans)] + pending, start, end)

    def _work(self, number: int, rng: random.Random) -> None:
        spans: list[Span] = self._spans[number]
        buffer = mmap.mmap(-1, BLOCK)  # aligned, as O_DIRECT wants it
        buffer[:] = rng.randbytes(BLOCK)
        descriptor = -1
        try:
            descriptor = os.open(self._device, os.O_RDWR | os.O_DIRECT)
            while not self._stop.is_set():
                offset = rng.randrange(self._blocks) * BLOCK
                write = rng.random() < 0.7
                began = self._pending[number] = time.monotonic()
                if write:
                    os.pwrite(descriptor, buffer, offset)
                else:
                    os.preadv(descriptor, [buffer], offset)
                self._pending[number] = None
                spans.append((began, time.monotonic()))
        except OSError as error:
            self._errors.append(error)
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def middle_and_worst(values: Sequence[float]) -> tuple[float, float]:
    return statistics.median(values), max(values)
