"""Directories of chunkservers: marked once, refused when they hold other things, wiped only when they are ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curve_operator import disk


@pytest.fixture(autouse=True)
def termination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "termination-log"
    path.write_text("")
    monkeypatch.setattr(disk, "TERMINATION_LOG", path)
    monkeypatch.setenv("NODE_NAME", "node-7")
    return path


def prepare(folder: Path, cluster: str = "u1") -> int:
    return disk.main(["prepare", "--cluster", cluster, "--mount", str(folder)])


def wipe(folder: Path, cluster: str = "u1") -> int:
    return disk.main(["wipe", "--cluster", cluster, "--directory", str(folder)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


def test_an_empty_directory_is_marked_and_stays_ours(folder: Path) -> None:
    (folder / "lost+found").mkdir()
    assert prepare(folder) == 0
    (folder / "store").mkdir()
    assert prepare(folder) == 0
    assert disk.read_marker(folder) == "u1"


def test_a_directory_with_other_things_is_refused_by_name(folder: Path, termination: Path) -> None:
    (folder / "family-photos").mkdir()
    assert prepare(folder) == 1
    text = termination.read_text()
    assert "family-photos" in text and "node-7" in text and "empty directory" in text
    assert [entry.name for entry in folder.iterdir()] == ["family-photos"]


def test_a_torn_marker_over_data_is_not_ours(folder: Path) -> None:
    (folder / disk.MARKER).write_text("{")
    (folder / "store").mkdir()
    assert prepare(folder) == 1


def test_data_of_an_earlier_resource_is_taken_over(folder: Path) -> None:
    assert prepare(folder, "u1") == 0
    (folder / "store").mkdir()
    assert prepare(folder, "u2") == 0
    assert disk.read_marker(folder) == "u2"
    assert (folder / "store").is_dir()


def test_wipe_removes_ours(folder: Path) -> None:
    prepare(folder)
    (folder / "store").mkdir()
    (folder / "store" / "chunk").write_text("x")
    (folder / "link").symlink_to(folder.parent)
    assert wipe(folder) == 0
    assert list(folder.iterdir()) == []
    assert folder.parent.is_dir()
    assert wipe(folder) == 0


@pytest.mark.parametrize("marker", [None, "u2"])
def test_wipe_leaves_others_alone(folder: Path, capsys: pytest.CaptureFixture[str], marker: str | None) -> None:
    if marker:
        (folder / disk.MARKER).write_text(json.dumps({"cluster": marker}))
    (folder / "precious").write_text("x")
    assert wipe(folder) == 0
    assert (folder / "precious").exists()
    assert "left alone" in capsys.readouterr().err


def test_one_refusal_does_not_keep_the_others_from_being_wiped(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("x")
    prepare(folder)
    command = ["wipe", "--cluster", "u1", "--directory", str(other), "--directory", str(folder)]
    assert disk.main([*command, "--device", str(tmp_path / "gone")]) == 0
    assert list(folder.iterdir()) == [] and (other / "precious").exists()


def test_wipe_takes_the_folder_of_an_etcd_member(folder: Path) -> None:
    (folder / "member").mkdir()
    assert wipe(folder) == 0
    assert list(folder.iterdir()) == []


def test_a_missing_device_names_those_there_are(tmp_path: Path, termination: Path) -> None:
    code = disk.main(["prepare", "--cluster", "u", "--mount", str(tmp_path), "--device", str(tmp_path / "vdz")])
    assert code == 1
    assert "does not exist on node-7; block devices there:" in termination.read_text()


def test_a_file_is_not_a_device(tmp_path: Path, termination: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert disk.main(["prepare", "--cluster", "u", "--mount", "/x", "--device", str(tmp_path / "file")]) == 1
    assert "spec.storage.directories" in termination.read_text()
