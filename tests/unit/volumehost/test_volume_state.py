"""What the host keeps on disk, and its pure decisions."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from curve_storage import twin_file
from curve_storage.config import load
from curve_storage.errors import ConfigError, Corruption, Fenced, Internal, InUse
from curve_storage.volumehost.config import VolumeHostConfig
from curve_storage.volumehost.host import kernel_resends
from curve_storage.volumehost.leftovers import volume_of
from curve_storage.volumehost.packet_client import decode_error, encode_error
from curve_storage.volumehost.state import Backend, Phase, StateStore, VolumeState
from curve_storage.volumehost.volume_process import parse_arguments

STATE = VolumeState(7, "/a/b", 3, Backend.LOOP, False, Phase.ATTACHED, size=1 << 30, generation=4, takeovers=2)


def test_state_survives_the_disk(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    assert store.load(7) is None and list(store.volume_ids()) == []
    store.save(STATE)
    assert store.load(7) == STATE
    store.save(replace(STATE, phase=Phase.DETACHING, backend=Backend.NBD, fenced=True))
    loaded = store.load(7)
    assert loaded is not None and loaded.phase is Phase.DETACHING and loaded.backend is Backend.NBD and loaded.fenced
    assert list(store.volume_ids()) == [7]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"{}", b'{"version": 9}', twin_file.encode(STATE.body())[:-10],
        twin_file.encode({"version": 2, "x": 2}), twin_file.encode({**STATE.body(), "version": 9}),
        twin_file.encode({**STATE.body(), "phase": "lost"}), twin_file.encode(replace(STATE, volume_id=8).body()),
    ],
)  # fmt: skip
def test_a_damaged_state_is_named(tmp_path: Path, data: bytes) -> None:
    store = StateStore(tmp_path)
    store.save(STATE)
    (tmp_path / "7" / "state.json").write_bytes(data)
    (tmp_path / "7" / "state.json.copy").write_bytes(data)
    with pytest.raises(Corruption) as raised:
        store.load(7)
    assert raised.value.where.endswith("7/state.json") and raised.value.todo


def test_any_flipped_bit_of_a_state_is_repaired_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # thousands of files
    store = StateStore(tmp_path)
    store.save(STATE)
    path = tmp_path / "7" / "state.json"
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        rotten = bytearray(good)
        rotten[bit // 8] ^= 1 << bit % 8
        path.write_bytes(rotten)
        assert store.load(7) == STATE
        assert path.read_bytes() == good


def test_controls_are_newest_first_and_all_is_removed(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(STATE)
    for generation in (2, 11, 9):
        store.control(7, generation).touch()
    store.mount_point(7).mkdir()
    assert [path.name for path in store.controls(7)] == ["control.11", "control.9", "control.2"]
    store.remove(7)
    store.remove(7)
    assert list(tmp_path.iterdir()) == []


def test_errors_cross_to_the_host_whole() -> None:
    error = decode_error(encode_error(Fenced("taken", where="/v", todo="detach")))
    assert isinstance(error, Fenced) and (error.what, error.where, error.todo) == ("taken", "/v", "detach")
    assert isinstance(decode_error({"code": "in_use", "what": "x"}), InUse)
    assert isinstance(decode_error({"code": "never heard of"}), Internal)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/r/volumes/12/mount", 12), ("/r/volumes/12", None), ("/r/volumes/x/mount", None), ("/r/volumes/mount", None),
        ("/r/other/12/mount", None), ("/r/volumes/12/other", None), ("/r/volumes/1/12/mount", None),
    ],
)  # fmt: skip
def test_only_what_is_provably_ours(path: str, found: int | None) -> None:
    assert volume_of(Path(path), Path("/r/volumes")) == found


@pytest.mark.parametrize(
    ("release", "resends"), [("6.9.0", True), ("6.8.12-generic", False), ("7.0.0-rc1", True), ("5.15.0-1-amd64", False)]
)
def test_kernels_that_resend(release: str, resends: bool) -> None:
    assert kernel_resends(release) is resends


def test_configuration(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    path.write_text("node: n1\nroot: /r\n")
    config = load(VolumeHostConfig, path, {})
    assert config.socket == Path("/r/host.sock") and config.keeper == Path("/r/keeper.sock")
    for bad in ("root: /r\n", "node: n1\nwatchdog: 0\n", "node: n1\nunknown: 1\n", "node: ''\n"):
        path.write_text(bad)
        with pytest.raises(ConfigError):
            load(VolumeHostConfig, path, {})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--volume-id", "1"], ["--control", "/c", "--volume-id", "1", "--backend", "nbd"],
        ["--control", "/c", "--volume-id", "1"], ["--control", "/c", "--descriptor", "3"],
    ],
)  # fmt: skip
def test_data_process_refuses_incomplete_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(arguments)
    assert "curve-volume" in capsys.readouterr().err
