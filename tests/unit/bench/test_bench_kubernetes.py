"""Reading a watch, and the moments in it."""

from __future__ import annotations

import json
import time

import pytest

from bench.kubernetes import Figures, Watch, documents, is_bound, is_ready, labelled, table
from e2e.mainjob.workload import claim


def test_documents_come_as_soon_as_they_are_whole() -> None:
    text = "".join(json.dumps({"n": n, "text": "} {"}, indent=1) + "\n" for n in range(3))
    pieces = [text[n : n + 5] for n in range(0, len(text), 5)]
    read = 0

    def next_piece(_most: int) -> str:
        nonlocal read
        read += 1
        return pieces[read - 1] if read <= len(pieces) else ""

    stream = documents(next_piece)
    assert next(stream)["n"] == 0 and read < len(pieces)
    assert [item["n"] for item in stream] == [1, 2]


def test_a_cut_document_is_dropped() -> None:
    pieces = ['{"n": 1}{"n"', ""]
    assert list(documents(lambda _most: pieces.pop(0))) == [{"n": 1}]


def test_conditions() -> None:
    assert is_bound({"status": {"phase": "Bound"}}) and not is_bound({"status": {}})
    assert is_ready({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    assert not is_ready({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}) and not is_ready({})


def test_the_first_moment_counts() -> None:
    watch = Watch(is_bound)
    for name, phase, moment in (("a", "Pending", 1.0), ("a", "Bound", 2.0), ("a", "Bound", 5.0), ("b", "Bound", 3.0)):
        watch.see({"metadata": {"name": name}, "status": {"phase": phase}}, moment)
    assert watch.last(["a"], 0.0) == 2.0 and watch.last(["a", "b"], 0.0) == 3.0


def test_what_does_not_come_is_named() -> None:
    watch = Watch(is_bound)
    with pytest.raises(RuntimeError, match="1 of 1, such as a: not within 0 s"):
        watch.last(["a"], 0.0)
    watch.end("no such resource")
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="no such resource"):
        watch.last(["a"], 60.0)
    assert time.monotonic() - started < 30


def test_what_is_made_carries_the_label() -> None:
    assert labelled(claim("x"))["metadata"] == {"name": "x", "namespace": "default", "labels": {"curve-bench": ""}}


def test_the_table_judges_the_worst() -> None:
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as capture:
        console.print(table(Figures(bound=[0.5, 0.6, 1.4], ready=[3.0], claims=100)))
    lines = capture.get().splitlines()
    assert "missed" in lines[1] and "0.60 s" in lines[1] and "met" in lines[2] and len(lines) == 3
