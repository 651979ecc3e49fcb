"""One operation per volume at a time: a second one is answered ABORTED at once, as the CSI specification advises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from curve_storage.errors import Aborted


class OperationLocks:
    def __init__(self) -> None:
        self._held: dict[str, str] = {}

    @contextmanager
    def hold(self, key: str, operation: str) -> Iterator[None]:
        """Raises Aborted when another operation on `key` is under way, naming it."""
        other = self._held.get(key)
        if other is not None:
            raise Aborted(f"{other} of this volume is still under way", where=key, todo="The caller repeats it later")
        self._held[key] = operation
        try:
            yield
        finally:
            del self._held[key]
