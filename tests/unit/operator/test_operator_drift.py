"""What counts as a difference between a wanted and a live object."""

from __future__ import annotations

from typing import Any

import pytest

from curve_operator.drift import first_difference

CONTAINERS = [{"name": "a", "image": "i", "ports": [{"containerPort": 1, "name": "p"}]}]


@pytest.mark.parametrize(
    ("wanted", "live", "where"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, ""),
        ({"a": 1}, {"a": 2}, "a"),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}, ""),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1]}}, "a.b"),
        ({"a": {}}, {}, ""),
        ({"a": []}, {}, ""),
        ({"a": ""}, {}, ""),
        ({"a": 0}, {}, ""),
        ({"a": False}, {}, ""),
        ({"a": 0}, {"a": 1}, "a"),
        ({"a": {"b": 1}}, {}, "a"),
        ({"c": CONTAINERS}, {"c": [{**CONTAINERS[0], "terminationMessagePath": "/x"}]}, ""),
        ({"c": CONTAINERS}, {"c": [{**CONTAINERS[0], "image": "j"}]}, "c[a].image"),
        ({"c": CONTAINERS}, {"c": [*CONTAINERS, {"name": "injected"}]}, "c"),
        ({"c": CONTAINERS}, {"c": []}, "c[a]"),
        ({"t": [{"key": "k"}]}, {"t": [{"key": "k"}]}, ""),
        ({"m": [{"mountPath": "/a", "name": "x"}, {"mountPath": "/b", "name": "x"}]},
         {"m": [{"mountPath": "/b", "name": "x"}, {"mountPath": "/a", "name": "x"}]}, ""),
    ],
)  # fmt: skip
def test_first_difference(wanted: Any, live: Any, where: str) -> None:
    assert first_difference(wanted, live) == where
