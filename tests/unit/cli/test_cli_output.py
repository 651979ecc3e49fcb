"""Plain data of messages, exit status of errors, command lines that are refused before anything is sent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from curve_storage import errors
from curve_storage.cli import main as cli
from curve_storage.cli.connect import find_host_socket, volume_ref
from curve_storage.cli.output import Column, Format, iso, plain, show_rows
from curve_storage.cli.volume import parse_labels
from curve_storage.proto import mds_pb2, volumehost_pb2


def test_messages_become_plain_data() -> None:
    volume = mds_pb2.Volume(
        id=2**40,
        path="/a",
        size=2**60,
        created_ms=1_700_000_000_123,
        labels={"k": "v"},
        status=mds_pb2.VOLUME_STATUS_DELETING,
    )
    data = plain(volume)
    assert data["id"] == 2**40 and data["size"] == 2**60, "numbers stay numbers"
    assert data["status"] == "deleting" and data["labels"] == {"k": "v"}
    assert data["created"] == "2023-11-14T22:13:20.123Z" and data["deleted"] is None
    assert data["throttle"] == {"iops": 0, "bytes_per_second": 0}
    chunkserver = mds_pb2.ChunkServer(id=1, online=mds_pb2.ONLINE_STATE_UNSTABLE, disk=mds_pb2.DISK_STATE_FULL)
    assert plain(chunkserver)["online"] == "unstable" and plain(chunkserver)["disk"] == "full"
    attachment = volumehost_pb2.Attachment(health=volumehost_pb2.HEALTH_FENCED, backend=volumehost_pb2.BACKEND_NBD)
    assert plain(attachment)["health"] == "fenced" and plain(attachment)["backend"] == "nbd"
    copyset = mds_pb2.Copyset(members=[mds_pb2.CopysetMember(chunkserver_id=3)], learners=[4, 5])
    assert plain(copyset)["members"] == [{"chunkserver_id": 3, "address": ""}] and plain(copyset)["learners"] == [4, 5]
    assert json.loads(json.dumps(data)) == data
    assert iso(0) is None


def test_three_forms_carry_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "ä", "n": 1}]
    columns = [Column("NAME", lambda r: r["name"]), Column("N", lambda r: str(r["n"]), right=True)]
    show_rows(rows, columns, Format.JSON, empty="none")
    assert json.loads(capsys.readouterr().out) == rows
    show_rows(rows, columns, Format.YAML, empty="none")
    assert yaml.safe_load(capsys.readouterr().out) == rows
    show_rows(rows, columns, Format.TABLE, empty="none")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["NAME", "N"], ["ä", "1"]]
    show_rows([], columns, Format.TABLE, empty="none")
    assert capsys.readouterr().out == "none\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidArgument("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.NotFound("x"), 3),
        (errors.NotLeader("x"), 4),
        (errors.DeadlineExceeded("x"), 4),
        (errors.InUse("x"), 5),
        (errors.AlreadyExists("x"), 5),
        (errors.PermissionDenied("x"), 6),
        (errors.NoSpace("x"), 7),
        (errors.Internal("x"), 1),
    ],
)
def test_exit_status(error: errors.CurveError, status: int) -> None:
    assert cli.exit_status(error) == status


def test_volumes_on_the_command_line() -> None:
    assert volume_ref("/a/b").path == "/a/b"
    assert volume_ref("12").id == 12
    with pytest.raises(errors.InvalidArgument, match="/demo"):
        volume_ref("demo")
    assert parse_labels(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(errors.InvalidArgument, match="KEY=VALUE"):
        parse_labels(["a"])


def test_host_socket_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_host_socket(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    socket = tmp_path / "curve/playground/volumehost/host.sock"
    socket.parent.mkdir(parents=True)
    socket.touch()
    assert find_host_socket(None) == socket


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["curve", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["status"], 2, "curve playground up"),
        (["volume", "create", "/a", "--size", "10Gx"], 2, "not a size"),
        (["volume", "create", "/a"], 2, "--size"),
        (["volume", "create", "/a", "--size", "1Gi", "--label", "x"], 2, "KEY=VALUE"),
        (["volume", "throttle", "/a", "--iops", "-1"], 2, "positive"),
        (["volume", "attach", "/a", "--host-socket", "/nonexistent/host.sock"], 4, "volume host"),
        (["playground", "status"], 3, "curve playground up"),
        (["playground", "up", "--pool-size", "1Mi"], 2, "too small"),
        (["playground", "up", "--chunkservers", "0"], 2, "Choose 1 to 32"),
        (["playground", "up", "--pool-size", "900Ti"], 7, "--pool-size"),
        (["volume", "show", "/a", "--config", "/nonexistent/client.yaml"], 2, "cannot read"),
        (["volume", "show", "/a", "-o", "xml"], 2, "xml"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_refusals_say_what_to_do(
    arguments: list[str],
    status: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if Path("/etc/curve/client.yaml").exists():
        pytest.skip("this machine has a cluster configured in /etc/curve")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("CURVE_CLIENT_CONFIG", raising=False)
    monkeypatch.delenv("CURVE_VOLUMEHOST", raising=False)
    monkeypatch.setenv("CURVE_ETCD", sys.executable)  # some program: these never come to start it
    monkeypatch.setenv("COLUMNS", "200")
    code, _out, err = run(monkeypatch, capsys, *arguments)
    assert code == status, err
    assert words in err


def test_no_etcd_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("CURVE_ETCD", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CURVE_CACHE", str(tmp_path))
    code, _out, err = run(monkeypatch, capsys, "playground", "up", "--dir", str(tmp_path / "p"))
    assert code == 3 and "make tools" in err
    assert not (tmp_path / "p").exists()


def test_an_unreachable_cluster_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "client.yaml"
    config.write_text("mds: ['127.0.0.1:1']\n")
    code, out, err = run(monkeypatch, capsys, "status", "--config", str(config), "--timeout", "0.5")
    assert code == 4 and out == ""
    assert "no MDS answered" in err and "127.0.0.1:1" in err


def test_help_is_there_for_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for group in ("volume", "server", "chunkserver", "pool", "copyset", "scheduler", "playground"):
        code, out, _err = run(monkeypatch, capsys, group, "--help")
        assert code == 0 and "Commands" in out
