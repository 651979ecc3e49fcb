"""The box itself: it comes up, is a Kubernetes, survives what tests do to it, and goes without a trace.

It runs under a name of its own, beside the box of the other tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from e2e.box import loops
from e2e.box.command import CommandFailed, run
from e2e.box.images import WORKLOAD
from e2e.box.places import REPOSITORY, cache_from_environment
from e2e.tests.machine_traces import Traces, look

NAME = "curve-box-check"
DATA = cache_from_environment() / "box-check"
RUNTIME = Path("/run") / NAME
NODES = [f"{NAME}-{number}" for number in (1, 2, 3)]
PATIENCE = 180.0

pytestmark = [pytest.mark.box, pytest.mark.timeout(900)]


def box(*arguments: str, stdin: str | None = None) -> str:
    command = [sys.executable, "-m", "e2e.box", *arguments]
    return run(command, env={"CURVE_BOX_NAME": NAME}, cwd=REPOSITORY, stdin=stdin, timeout=800)


def eventually(done: Callable[[], object], patience: float = PATIENCE, why: Sequence[str] = ()) -> None:
    end = time.monotonic() + patience
    while not done():
        assert time.monotonic() < end, f"not within {patience} s; last seen: {why[-1:]}"
        time.sleep(0.3)


def ready(node: str) -> str:
    path = '{.status.conditions[?(@.type=="Ready")].status}'
    return box("kubectl", "get", "node", node, "-o", f"jsonpath={path}")


def pod(name: str, node: str, command: str) -> Mapping[str, Any]:
    container = {"name": "main", "image": WORKLOAD, "imagePullPolicy": "Never", "command": ["sh", "-c", command]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]},
    }


def apply(*documents: Mapping[str, Any]) -> None:
    items = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
    box("kubectl", "apply", "-f", "-", stdin=items)


@pytest.fixture(scope="module")
def before() -> Iterator[Traces]:
    box("down")
    yield look(NAME, DATA)
    box("down")


@pytest.fixture(scope="module")
def up(before: Traces) -> None:
    box("up", "--bare")


def assert_clean(before: Traces) -> None:
    assert look(NAME, DATA).added_since(before) == {}
    assert not RUNTIME.exists()
    assert {entry.name for entry in DATA.iterdir()} <= {"logs"}


@pytest.mark.usefixtures("up")
class TestUp:
    def test_three_nodes_in_three_zones(self) -> None:
        path = "{range .items[*]}{.metadata.name}={.metadata.labels.topology\\.kubernetes\\.io/zone} {end}"
        zones = dict(word.split("=") for word in box("kubectl", "get", "nodes", "-o", f"jsonpath={path}").split())
        assert zones == dict(zip(NODES, ("z1", "z2", "z3"), strict=True))

    def test_the_version_is_the_pinned_one(self) -> None:
        assert '"gitVersion": "v1.36.3"' in box("kubectl", "get", "--raw=/version")
        assert "v4.2.4" in box("helm", "version")

    def test_up_again_changes_nothing(self) -> None:
        listed = box("status")
        box("up", "--bare")
        assert box("status") == listed

    def test_a_service_is_found_by_name_from_another_node(self) -> None:
        serve = "mkdir /srv/www && cd /srv/www && hostname > name && exec python3 -m http.server 8000"
        ports = [{"port": 80, "targetPort": 8000}]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": ports},
        }
        apply(service, pod("web", NODES[0], serve), pod("client", NODES[1], "exec sleep 100000"))
        box("kubectl", "wait", "--for=condition=Ready", "pod/web", "pod/client", "--timeout=180s")
        fetch = "import urllib.request as r; print(r.urlopen('http://web/name', timeout=5).read().decode())"
        ask = ["kubectl", "exec", "client", "--", "python3", "-c", fetch]
        answers: list[str] = []

        def answered() -> bool:
            try:
                answers.append(box(*ask).strip())
            except CommandFailed as error:  # rules and names take a moment to arrive
                answers.append(error.output)
            return answers[-1] == "web"

        eventually(answered, why=answers)
        assert "GET /name" in box("kubectl", "logs", "web")

    def test_a_host_path_stays_on_its_node(self) -> None:
        box("node", "exec", "1", "--", "sh", "-c", "echo private > /opt/curve-box-check-file")
        assert box("node", "exec", "1", "--", "cat", "/opt/curve-box-check-file") == "private\n"
        assert not Path("/opt/curve-box-check-file").exists()
        assert box("node", "exec", "2", "--", "sh", "-c", "ls /opt").find("curve-box-check-file") == -1

    def test_a_partitioned_node_is_missed_and_comes_back(self) -> None:
        box("node", "partition", "3")
        assert "partitioned" in box("status")
        eventually(lambda: ready(NODES[2]) == "Unknown")
        box("node", "heal", "3")
        eventually(lambda: ready(NODES[2]) == "True")

    def test_a_reboot_keeps_the_disks_and_is_noticed(self, tmp_path: Path) -> None:
        boot = "jsonpath={.status.nodeInfo.bootID}"
        earlier = box("kubectl", "get", "node", NODES[1], "-o", boot)
        box(
            "node",
            "exec",
            "2",
            "--",
            "sh",
            "-c",
            "echo kept > /var/lib/curve/kept; truncate -s 64M /var/lib/curve/disk",
        )
        box("node", "exec", "2", "--", "losetup", "--find", "/var/lib/curve/disk")
        stranger = tmp_path / "stranger"
        stranger.write_bytes(bytes(1 << 20))
        own = run(["losetup", "--find", "--show", stranger]).strip()
        try:
            box("node", "stop", "2")
            status = (DATA / NODES[1] / "curve/disk").stat()
            assert not [each for each in loops.attached() if each.inode == status.st_ino]
            assert run(["losetup", "--noheadings", "--output", "BACK-FILE", own]).strip() == str(stranger)
        finally:
            run(["losetup", "--detach", own])
        assert "off" in box("status")
        box("node", "start", "2")
        assert box("node", "exec", "2", "--", "cat", "/var/lib/curve/kept") == "kept\n"
        eventually(lambda: box("kubectl", "get", "node", NODES[1], "-o", boot) != earlier and ready(NODES[1]) == "True")

    def test_an_ended_daemon_is_started_again(self) -> None:
        count = "ps -eo args | grep -c '[/]kubelet --config'"
        box(
            "node", "exec", "1", "--", "sh", "-c", "kill -9 $(ps -eo pid,args | awk '/[/]kubelet --config/ {print $1}')"
        )
        eventually(lambda: box("node", "exec", "1", "--", "sh", "-c", f"{count} || true").strip() == "1")
        eventually(lambda: ready(NODES[0]) == "True")


class TestDown:
    def test_nothing_is_left_after_down(self, up: None, before: Traces) -> None:
        box("down")
        assert_clean(before)
        box("down")  # harmless when there is nothing

    def test_nothing_is_left_after_the_supervisor_was_killed(self, before: Traces) -> None:
        box("up", "--bare")
        box(
            "node",
            "exec",
            "1",
            "--",
            "sh",
            "-c",
            "truncate -s 64M /var/lib/curve/disk; losetup --find /var/lib/curve/disk",
        )
        supervisor, _ = json.loads((RUNTIME / "state.json").read_text())["supervisor"]
        os.kill(supervisor, signal.SIGKILL)
        box("down")
        assert_clean(before)

    @pytest.mark.parametrize("moment", ["state.json", "control.sock", f"netns/{NODES[2]}"])
    def test_nothing_is_left_of_a_start_that_was_killed(self, before: Traces, moment: str) -> None:
        seen = Path("/run") / moment if moment.startswith("netns") else RUNTIME / moment
        command = [sys.executable, "-m", "e2e.box", "up", "--bare"]
        environment = {**os.environ, "CURVE_BOX_NAME": NAME}
        with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                eventually(lambda: seen.exists() or process.poll() is not None)
            finally:
                process.kill()
        assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
        box("down")
        assert_clean(before)
