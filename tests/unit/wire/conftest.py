"""These tests run on the event loop that the daemons use."""

from __future__ import annotations

from pathlib import Path

import pytest
import uvloop

HERE = Path(__file__).parent


@pytest.fixture
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The plugin's other way to choose a loop is global: it would change the loop of everyone's tests.
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy"))
