"""A playground whose processes live elsewhere: addresses, network namespaces, data directories."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from curve_storage import errors
from curve_storage.cli.playground import Place, Playground, state
from curve_storage.cli.playground.layout import Layout, choose_ports
from curve_storage.cli.playground.processes import alive, command_line, end, holds_open, spawn
from curve_storage.units import GiB


def placed(directory: Path) -> Layout:
    elsewhere = directory / "disk1"
    places = {
        "etcd": Place(address="10.1.0.2", namespace="/net/etcd"),
        "mds1": Place(address="10.1.0.3", namespace="/net/mds1"),
        "chunkserver1": Place(address="10.1.0.4", data=str(elsewhere)),
    }
    known = state.State(mark="m", pool_size=GiB, places=places)
    choose_ports(known, anew=True)
    state.save(directory, known)
    loaded = state.load(directory)
    assert loaded == known
    return Layout(directory, loaded)


def test_everyone_is_told_the_addresses(tmp_path: Path) -> None:
    layout = placed(tmp_path)
    layout.write()
    read = lambda name: yaml.safe_load((tmp_path / "config" / f"{name}.yaml").read_text())  # noqa: E731
    ports = layout.state.ports
    assert read("mds1")["advertise"] == f"10.1.0.3:{ports['mds1.grpc']}"
    assert read("mds2")["etcd"]["endpoints"] == [f"10.1.0.2:{ports['etcd.client']}"]
    assert read("client")["mds"][:2] == [f"10.1.0.3:{ports['mds1.grpc']}", f"127.0.0.1:{ports['mds2.grpc']}"]
    assert read("chunkserver1")["data"] == str(tmp_path / "disk1") and (tmp_path / "disk1").is_dir()
    assert read("chunkserver2")["data"] == str(tmp_path / "chunkserver2")
    assert not (tmp_path / "chunkserver1").exists()


def test_programs_start_where_they_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVE_ETCD", sys.executable)
    programs = placed(tmp_path).programs()
    assert programs["etcd"].namespace == "/net/etcd" and programs["mds2"].namespace == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="entering a network namespace needs root")
def test_a_program_in_a_namespace_is_known_as_itself(tmp_path: Path) -> None:
    holder = subprocess.Popen(["unshare", "--net", "sleep", "100"])
    argv = [sys.executable, "-c", "import time; time.sleep(100)"]
    known = None
    try:
        here, there = Path("/proc/self/ns/net"), Path(f"/proc/{holder.pid}/ns/net")
        deadline = time.monotonic() + 30
        while os.readlink(here) == os.readlink(there) and time.monotonic() < deadline:
            time.sleep(0.01)
        known = spawn(argv, tmp_path / "log", dict(os.environ), str(there))
        while command_line(known.pid) != argv and time.monotonic() < deadline:
            time.sleep(0.01)
        assert command_line(known.pid) == argv and alive(known), "pid and start time are the program's own"
        assert os.readlink(f"/proc/{known.pid}/ns/net") == os.readlink(there) != os.readlink(here)
    finally:
        holder.kill()
        holder.wait()
        if known is not None:
            end([known])


def test_open_files_of_a_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert not holds_open(os.getpid(), str(path))
    with path.open("w"):
        assert holds_open(os.getpid(), str(path))
    assert not holds_open(os.getpid(), str(path)) and not holds_open(2**22 + 1, str(path))


def test_space_is_asked_of_the_file_system_that_is_used(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    huge = free.f_bavail * free.f_frsize
    at_home = state.State(pool_size=huge)
    with pytest.raises(errors.NoSpace, match="3 chunkservers"):
        Playground(tmp_path)._check_space(at_home)
    at_home.places = {f"chunkserver{n}": Place(data="/elsewhere") for n in (1, 2, 3)}
    Playground(tmp_path)._check_space(at_home)
