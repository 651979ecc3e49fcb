"""The systemd units for plain hosts: systemd finds nothing wrong with them, their commands exist, and stopping the
volume host touches neither the keeper nor the processes that serve volumes."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from documents import ROOT
from pydantic import BaseModel

from curve_storage.chunkserver.config import ChunkServerConfig
from curve_storage.client.config import ClientConfig
from curve_storage.config import load
from curve_storage.mds.config import MdsConfig
from curve_storage.volumehost.config import VolumeHostConfig

FOLDER = ROOT / "docs" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
INSTALLED = "/opt/curve/bin/"
PAGE = (ROOT / "docs" / "systemd.md").read_text()
DEPENDENCIES = ("Requires", "Requisite", "BindsTo", "PartOf", "Upholds", "Conflicts")
# Each gives the service a mount namespace of its own (systemd.exec).
NAMESPACING = (
    "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateUsers", "ProtectSystem", "ProtectHome", "ProtectProc",
    "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ReadWritePaths",
    "ReadOnlyPaths", "InaccessiblePaths", "BindPaths", "BindReadOnlyPaths", "TemporaryFileSystem", "MountFlags",
    "RootDirectory", "RootImage", "DynamicUser", "StateDirectory",
)  # fmt: skip


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text())
    return parser


def words(path: Path) -> list[str]:
    return shlex.split(unit(path)["Service"]["ExecStart"])


def test_there_is_a_unit_for_every_daemon_of_a_host() -> None:
    started = {words(path)[0].removeprefix(INSTALLED) for path in UNITS}
    assert started == {"curve-mds", "curve-chunkserver", "curve-keeper", "curve-volumehost"}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_commands_and_options_exist(path: Path) -> None:
    program, *arguments = words(path)
    name = program.removeprefix(INSTALLED)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts[name].split(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
    shown = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and shown.stdout.startswith(f"usage: {name}"), shown.stderr
    options = [argument for argument in arguments if argument.startswith("-")]
    assert options and not [option for option in options if not re.search(rf"(?<!\S){option}\b", shown.stdout)]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_them(path: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    for other in UNITS:  # the programs at a place where this machine has some
        text = other.read_text().replace(INSTALLED, f"{tmp_path}/bin/")
        (tmp_path / other.name).write_text(text)
    (tmp_path / "bin").mkdir()
    for other in UNITS:
        program = tmp_path / "bin" / words(other)[0].removeprefix(INSTALLED)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)

    def verify(file: Path) -> str:
        done = subprocess.run(
            [analyze, "verify", "--recursive-errors=no", file], capture_output=True, text=True, timeout=60
        )
        return "".join(line for line in done.stderr.splitlines() if file.stem.rstrip("@") in line)

    assert verify(tmp_path / path.name) == ""
    wrong = tmp_path / f"wrong-{path.name}"
    wrong.write_text(path.read_text().replace("[Service]", "[Service]\nKillMode=host\nNoSuchOption=1"))
    assert "kill mode" in verify(wrong) and "NoSuchOption" in verify(wrong)


def test_the_volume_host_ends_alone() -> None:
    host, keeper = unit(FOLDER / "curve-volumehost.service"), unit(FOLDER / "curve-keeper.service")
    service = host["Service"]
    assert service["KillMode"] == "process", "else systemd ends the processes that serve the volumes"
    assert service["OOMPolicy"] == "continue", "else one of them being killed stops all"
    assert "ExecStop" not in service and "ExecStopPost" not in service
    for parser in (host, keeper):
        named = [key for key in parser["Unit"] if key in DEPENDENCIES]
        assert not named, "the one would be stopped or restarted with the other"
    assert "curve-keeper.service" in host["Unit"]["Wants"] and "curve-keeper.service" in host["Unit"]["After"]


@pytest.mark.parametrize("name", ["curve-keeper", "curve-volumehost"])
def test_mounts_are_the_machines(name: str) -> None:
    service = unit(FOLDER / f"{name}.service")["Service"]
    assert "User" not in service, "mounting needs root"
    assert not [key for key in service if key in NAMESPACING]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_daemons_are_always_restarted_but_not_for_a_wrong_configuration(path: Path) -> None:
    from curve_storage.chunkserver.main import EXIT_CONFIG as chunkserver
    from curve_storage.mds.main import EXIT_CONFIG as mds

    service = unit(path)["Service"]
    assert service["Restart"] == "always" and unit(path)["Unit"]["StartLimitIntervalSec"] == "0"
    expected = {"curve-mds.service": str(mds), "curve-chunkserver@.service": str(chunkserver)}
    assert service.get("RestartPreventExitStatus") == expected.get(path.name)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("mds.yaml", MdsConfig), ("chunkserver-disk0.yaml", ChunkServerConfig),
        ("client.yaml", ClientConfig), ("volumehost.yaml", VolumeHostConfig),
    ],
)  # fmt: skip
def test_configuration_files_are_valid(name: str, model: type[BaseModel]) -> None:
    load(model, FOLDER / name, {})
    assert f"docs/systemd/{name}" in PAGE, "the page installs it"


def test_the_page_names_every_unit_and_the_places_agree() -> None:
    for path in UNITS:
        assert f"`{path.name}`" in PAGE and f"docs/systemd/{path.name}" in PAGE
    keeper = words(FOLDER / "curve-keeper.service")[-1]
    host = load(VolumeHostConfig, FOLDER / "volumehost.yaml", {})
    assert Path(keeper) == host.keeper
    chunkserver = unit(FOLDER / "curve-chunkserver@.service")
    disk = chunkserver["Service"]["ReadWritePaths"].replace("%i", "disk0")
    assert load(ChunkServerConfig, FOLDER / "chunkserver-disk0.yaml", {}).data == Path(disk)
    assert chunkserver["Unit"]["RequiresMountsFor"].replace("%i", "disk0") == disk
