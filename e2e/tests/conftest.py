"""The box for tests: a running one is used and left; one that had to be started is taken down at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.box.box import Box
from e2e.mainjob.install import ROOM


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    """The machine's box, up, with the images of this checkout."""
    found = Box()
    was_running = found.running()
    found.up(room=ROOM)
    yield found
    if not was_running:
        found.down()
