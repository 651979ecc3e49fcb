"""How long requests waited, and what counts as reaching a goal."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.probe import Probe, waits
from bench.stalls import Goal


def test_a_gap_is_seen_by_the_waiting_request_and_by_the_standstill() -> None:
    spans = [(n / 10, n / 10 + 0.1) for n in range(10)] + [(1.0, 3.5)] + [(3.5, 3.6), (3.6, 4.0)]
    found = waits(spans, 0.0, 4.0)
    assert found.slowest == pytest.approx(2.5)
    assert found.standstill == pytest.approx(2.5)
    assert found.usual == pytest.approx(0.1)


def test_one_blocked_request_is_no_standstill() -> None:
    spans = [(0.0, 5.0)] + [(n / 10, n / 10 + 0.1) for n in range(50)]
    found = waits(spans, 0.0, 5.0)
    assert found.slowest == pytest.approx(5.0) and found.standstill == pytest.approx(0.1)


def test_only_the_window_counts() -> None:
    spans = [(0.0, 9.0), (10.0, 10.1), (10.1, 10.2), (30.0, 39.0)]
    found = waits(spans, 10.0, 10.2)
    assert found.slowest == pytest.approx(0.1) and found.requests == 2


def test_nothing_at_all_is_a_standstill_of_the_whole_window() -> None:
    assert waits([], 1.0, 4.0).standstill == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("goal", "worst", "before", "word"),
    [
        (Goal(1.0, 0.5), 0.4, 0.0, "aim"),
        (Goal(1.0, 0.5), 0.6, 9.0, "met"),
        (Goal(1.0, 0.5), 1.1, 9.0, "missed"),
        (Goal(0.0, 0.0), 0.09, 0.0, "aim"),
        (Goal(0.0, 0.0), 0.3, 0.2, "aim"),
        (Goal(0.0, 0.0), 0.3, 0.1, "missed"),
    ],
)
def test_words_for_goals(goal: Goal, worst: float, before: float, word: str) -> None:
    assert goal.word(worst, before) == word


def test_the_probe_works_and_reports_errors(tmp_path: Path) -> None:
    file = tmp_path / "device"
    file.write_bytes(bytes(1 << 20))
    probe = Probe(str(file), 1 << 20, threads=2)
    began = time.monotonic()
    probe.start()
    probe.until_progress(began, 30)
    probe.stop(30)
    assert probe.waits(began, time.monotonic()).requests > 0
    beyond = Probe(str(tmp_path), 1 << 20, threads=1)  # a directory cannot be written
    beyond.start()
    with pytest.raises(OSError):
        beyond.stop(30)
