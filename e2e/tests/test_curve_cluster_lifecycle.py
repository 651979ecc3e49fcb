"""The operator on the box: its replicas, deletion that asks first, data that stays or goes as was said, bad input.
The tests share one small cluster; order matters."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from e2e.box.box import Box
from e2e.box.progress import Progress
from e2e.mainjob.install import NAMESPACE as OPERATOR_NAMESPACE
from e2e.mainjob.install import Installation
from e2e.tests.curve_faults import container_processes, kill_main
from e2e.tests.small_cluster import NAMESPACE, SmallCluster, active_operator

pytestmark = [pytest.mark.box, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def operator(box: Box) -> Iterator[None]:
    """The operator's release; one that was there stays."""
    made = Installation(box, Progress())
    was_there = made.has_operator()
    made.install_operator()
    yield
    if not was_there:
        made.uninstall()


@pytest.fixture(scope="module")
def small(box: Box, operator: None) -> Iterator[SmallCluster]:
    cluster = SmallCluster(box, "small")
    cluster.remove()
    yield cluster
    cluster.remove()
    box.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s", timeout=150)


def restarts(box: Box, pod: str) -> int:
    return int(box.get("pod", pod, "-n", OPERATOR_NAMESPACE)["status"]["containerStatuses"][0]["restartCount"])


def test_the_second_operator_goes_on_when_the_first_stands_still(box: Box, small: SmallCluster) -> None:
    """The active one is stopped between two steps of a creation; woken again, it finds that it no longer leads."""
    box.wait("an active operator", lambda: active_operator(box), 120)
    first = active_operator(box)
    before = restarts(box, first)
    stopped = container_processes(box, first)[0]
    small.create()
    box.wait("the creation has begun", small.workloads, 60, every=0.1)
    os.kill(stopped.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        box.wait("the other operator leads", lambda: active_operator(box) not in ("", first), 60)
        print(f"the second operator led {time.monotonic() - began:.1f} s after the first stood still")
        second = active_operator(box)
        small.await_healthy()
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    box.wait("the first operator has ended", lambda: restarts(box, first) > before, 120)
    assert active_operator(box) == second


def test_deletion_is_refused_with_what_to_do_and_the_cluster_serves(box: Box, small: SmallCluster) -> None:
    small.create()
    small.await_healthy()
    small.run("curve", "volume", "create", "/kept", "--size", "1Gi")
    assert small.transfer("write", "/kept") == "same"
    small.delete()
    box.wait("deletion is refused", lambda: small.condition("DeletionBlocked").get("status") == "True", 60)
    text = small.condition("DeletionBlocked")["message"]
    assert "1 volume(s) exist: /kept" in text and "kubectl annotate curvecluster small" in text, text
    box.wait("an event says so", lambda: any("DeletionBlockedVolumesExist" in each for each in small.events()), 30)
    kill_main(box, active_operator(box))
    assert small.transfer("compare", "/kept") == "same"
    assert all(replicas == 1 for replicas in small.workloads().values())


def test_a_deleted_cluster_leaves_its_data_to_the_next_one_of_its_name(box: Box, small: SmallCluster) -> None:
    """Goes on where the refusal stands: the operator that refused was killed, the next one does what is confirmed."""
    identity = small.status()["clusterId"]
    small.patch({"metadata": {"annotations": {"operator.curve.io/confirm-deletion": small.name}}})
    small.await_gone()
    assert (small.disk / ".curve-cluster").exists() and (small.disk / "store").exists()
    small.create()
    small.await_healthy()
    assert small.status()["clusterId"] == identity
    assert small.transfer("compare", "/kept") == "same"


def test_confirmed_cleanup_survives_a_killed_operator(box: Box, small: SmallCluster) -> None:
    assert any(small.disk.iterdir())
    small.patch({"spec": {"cleanupConfirm": "Confirm"}})
    small.delete()
    box.wait("the teardown has begun", lambda: 0 in small.workloads().values(), 60, every=0.1)
    kill_main(box, active_operator(box))
    assert small.resource()["metadata"]["finalizers"], "killed too late: the deletion was over"
    small.await_gone()
    assert list(small.disk.iterdir()) == []
    assert [each for each in (small.folder / "daemons").rglob("*") if each.is_file()] == []


def test_a_directory_of_others_and_an_etcd_that_is_not_there(box: Box, operator: None) -> None:
    """Both are named with what to do; what lies in the directory stays, also when the cluster is wiped."""
    cluster = SmallCluster(box, "bad", etcd={"endpoints": ["10.255.255.1:2379"]})
    cluster.disk.mkdir(parents=True)
    photos = cluster.disk / "photos"
    photos.write_text("of last summer")
    try:
        cluster.create()
        box.wait(
            "the directory is refused",
            lambda: any("photos" in disk.get("message", "") for disk in cluster.status().get("disks", [])),
            120,
        )
        refusal = cluster.status()["disks"][0]["message"]
        assert cluster.node in refusal and "Name an empty directory in spec.storage" in refusal, refusal
        box.wait("etcd is named", lambda: "10.255.255.1:2379" in cluster.condition("MdsReady").get("message", ""), 180)
        assert "start it or correct spec.etcd.endpoints" in cluster.condition("MdsReady")["message"]
        print(f"refused: {refusal}\n{cluster.condition('MdsReady')['message']}")
    finally:
        cluster.remove()
    assert photos.read_text() == "of last summer"
    photos.unlink()
