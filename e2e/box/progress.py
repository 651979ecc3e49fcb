"""Progress with elapsed time: a step that takes longer than two seconds shows itself, and again every ten."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from curve_storage.clock import Clock, SystemClock

FIRST_SIGN = 2.0
SIGN_OF_LIFE = 10.0


class Step:
    """One running step; `detail` is shown with the next sign of life."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.detail = ""


class Progress:
    """Writes lines `[  12.3s] text`; the time is since this object was made."""

    def __init__(self, out: TextIO | None = None, clock: Clock | None = None) -> None:
        self._out = out or sys.stderr
        self._clock = clock or SystemClock()
        self._start = self._clock.monotonic()
        self._lock = threading.Lock()

    @property
    def elapsed(self) -> float:
        return self._clock.monotonic() - self._start

    def say(self, text: str) -> None:
        with self._lock:
            print(f"[{self.elapsed:6.1f}s] {text}", file=self._out, flush=True)

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """Announces `text` while it runs and its duration when it is done; a failure is named by the exception."""
        step, begin, done = Step(text), self._clock.monotonic(), threading.Event()

        def signs() -> None:
            wait = FIRST_SIGN
            while not done.wait(wait):
                detail = f": {step.detail}" if step.detail else ""
                self.say(f"{text} …{detail}")
                wait = SIGN_OF_LIFE

        thread = threading.Thread(target=signs, daemon=True)
        thread.start()
        try:
            yield step
        finally:
            done.set()
            thread.join()
        self.say(f"{text}: done in {self._clock.monotonic() - begin:.1f} s")
