"""How a playground knows its processes, keeps its state, and chooses its ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from curve_storage import errors
from curve_storage.cli.playground import Playground, PlaygroundOptions, node, state
from curve_storage.cli.playground.layout import Layout, choose_ports, needed_ports
from curve_storage.cli.playground.processes import MARK, Identity, alive, end, identity, marked, send, spawn, usage
from curve_storage.units import GiB


def sleeper(tmp_path: Path, mark: str, *, stubborn: bool = False) -> Identity:
    code = "import signal, time\n"
    if stubborn:
        code += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code += "print('ready', flush=True)\ntime.sleep(300)"
    log = tmp_path / f"log-{time.monotonic_ns()}"
    known = spawn([sys.executable, "-c", code], log, {**os.environ, MARK: mark})
    deadline = time.monotonic() + 30
    while b"ready" not in log.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return known


def test_a_process_is_known_by_pid_and_start_time(tmp_path: Path) -> None:
    mark = state.new_mark()
    known = sleeper(tmp_path, mark)
    try:
        assert alive(known) and identity(known.pid) == known
        assert not alive(Identity(known.pid, known.started + 1)), "another process with this pid"
        assert not send(Identity(known.pid, known.started + 1), signal.SIGKILL) and alive(known)
        assert os.getsid(known.pid) == known.pid, "a session of its own"
        seen = usage(known.pid)
        assert seen is not None and seen.memory > 1 << 20
        assert marked(mark) == [known] and marked(state.new_mark()) == []
    finally:
        assert end([known]) == []
    assert not alive(known) and marked(mark) == []


def test_ending_a_process_that_does_not_want_to(tmp_path: Path) -> None:
    mark = state.new_mark()
    stubborn, stopped = sleeper(tmp_path, mark, stubborn=True), sleeper(tmp_path, mark)
    os.kill(stopped.pid, signal.SIGSTOP)
    assert end([stubborn, stopped], patience=0.5) == []
    assert not alive(stubborn) and not alive(stopped)


def test_a_program_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="cannot be started"):
        spawn([str(tmp_path / "none")], tmp_path / "log", dict(os.environ))


def test_state_survives_and_refuses_what_it_is_not(tmp_path: Path) -> None:
    assert state.load(tmp_path) is None
    written = state.State(mark="m", chunkservers=4, ports={"a": 1}, processes={"etcd": (1, 2)})
    state.save(tmp_path, written)
    assert state.load(tmp_path) == written
    assert written.identity("etcd") == Identity(1, 2) and written.identity("mds1") is None
    (tmp_path / "state.json").write_text('{"pid": 1}')
    with pytest.raises(errors.FailedPrecondition, match="playground"):
        state.load(tmp_path)


def test_one_command_at_a_time(tmp_path: Path) -> None:
    with state.exclusive(tmp_path), pytest.raises(errors.InUse), state.exclusive(tmp_path):
        pass
    with state.exclusive(tmp_path):
        pass


def test_ports_stay_and_are_distinct() -> None:
    known = state.State(chunkservers=5)
    choose_ports(known, anew=True)
    assert set(known.ports) == set(needed_ports(known))
    assert len(set(known.ports.values())) == len(known.ports)
    before = dict(known.ports)
    choose_ports(known, anew=True)
    assert known.ports == before
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", before["mds1.grpc"]))
        taken.listen()
        choose_ports(known, anew=False)
        assert known.ports == before, "those of running processes are kept"
        choose_ports(known, anew=True)
    assert known.ports["mds1.grpc"] != before["mds1.grpc"]
    assert {k: v for k, v in known.ports.items() if k != "mds1.grpc"} == {
        k: v for k, v in before.items() if k != "mds1.grpc"
    }


def test_configurations_are_what_the_daemons_accept(tmp_path: Path) -> None:
    from curve_storage.chunkserver.config import ChunkServerConfig
    from curve_storage.client.config import ClientConfig
    from curve_storage.config import load
    from curve_storage.mds.config import MdsConfig
    from curve_storage.volumehost.config import VolumeHostConfig

    known = state.State(mark="m", pool_size=GiB)
    choose_ports(known, anew=True)
    layout = Layout(tmp_path, known)
    layout.write()
    mds = [load(MdsConfig, tmp_path / "config" / f"mds{n}.yaml", {}) for n in (1, 2, 3)]
    client = load(ClientConfig, tmp_path / "config/client.yaml", {})
    assert client.mds == [m.advertise for m in mds]
    servers = [load(ChunkServerConfig, tmp_path / "config" / f"chunkserver{n}.yaml", {}) for n in (1, 2, 3)]
    assert len({s.zone for s in servers}) == 3 and len({s.data for s in servers}) == 3
    assert all(s.mds == client.mds and s.keyring == mds[0].keyring for s in servers)
    host = load(VolumeHostConfig, tmp_path / "config/volumehost.yaml", {})
    assert host.client is not None and load(ClientConfig, host.client, {}) == client
    key = layout.keyring.read_bytes()
    layout.write()
    assert layout.keyring.read_bytes() == key, "tokens stay good"
    assert yaml.safe_load((tmp_path / "config/mds1.yaml").read_text())["name"] == "mds1"


async def test_another_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVE_ETCD", sys.executable)
    state.save(tmp_path, state.State(mark="m", chunkservers=3, pool_size=GiB))
    playground = Playground(tmp_path)
    with pytest.raises(errors.FailedPrecondition, match="has 3 chunkservers"):
        await playground.up(PlaygroundOptions(chunkservers=4))
    with pytest.raises(errors.FailedPrecondition, match="have 1 GiB"):
        await playground.up(PlaygroundOptions(pool_size=2 * GiB))
    with pytest.raises(errors.NotFound):
        Playground(tmp_path / "elsewhere").layout()


async def test_down_ends_what_was_never_noted(tmp_path: Path) -> None:
    mark = state.new_mark()
    state.save(tmp_path, state.State(mark=mark, volumehost=False))
    stray, other = sleeper(tmp_path, mark), sleeper(tmp_path, state.new_mark())
    try:
        assert await Playground(tmp_path).down() == []
        assert not alive(stray) and alive(other)
    finally:
        end([stray, other])
    assert await Playground(tmp_path).down(delete=True) == []
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    assert await Playground(tmp_path / "none").down() == []


def test_nothing_of_others_is_found_on_this_machine(tmp_path: Path) -> None:
    assert node.loops_under(tmp_path) == [] and node.fuse_mounts(tmp_path) == []
    assert node.clean(tmp_path) == [] and node.unmount_filesystems(tmp_path) == []


def test_zombies_do_not_count_as_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    known = identity(child.pid)
    assert known is not None and alive(known)
    child.kill()
    deadline = time.monotonic() + 30
    while alive(known):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Path(f"/proc/{child.pid}").exists(), "not collected yet, and yet not alive"
    child.wait()
