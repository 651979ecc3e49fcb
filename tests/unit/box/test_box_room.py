"""Room on the disk: said before anything is started, and not a share that makes a large disk count as full."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from curve_storage.errors import NoSpace
from curve_storage.units import GiB
from e2e.box import cgroups, machine
from e2e.box.node import kubelet_configuration
from e2e.box.places import Places
from e2e.mainjob.install import ROOM


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """On a machine that has everything else."""
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)
    monkeypatch.setattr(cgroups, "check", lambda: None)
    monkeypatch.setattr(Path, "exists", lambda _: True)
    return Places(tmp_path)


def test_too_little_room_is_told_with_figures_and_what_to_do(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20 * GiB))
    machine.check(places)
    with pytest.raises(NoSpace) as refused:
        machine.check(places, ROOM)
    text = str(refused.value)
    assert "20.0 GiB free, 23 GiB are needed, 18 of them for what will run in the box" in text
    assert "e2e.box down" in text and "CURVE_CACHE" in text


def test_enough_room(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=machine.FREE_SPACE + ROOM))
    machine.check(places, ROOM)


def test_the_kubelet_evicts_at_amounts_below_what_up_asks_for() -> None:
    settings = kubelet_configuration("node-1")
    assert settings["imageGCHighThresholdPercent"] == 100
    for name, value in settings["evictionHard"].items():
        assert value.endswith("Mi"), f"{name}: a share of the disk"
        assert int(value.removesuffix("Mi")) << 20 < machine.FREE_SPACE
