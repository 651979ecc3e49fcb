"""The product on the box: the main job, then one process after the other killed under a verifying fio, growth, raw
block, the loss of a node, changes of values, and uninstall. Order matters: the tests share one installation."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.box.box import Box
from e2e.box.command import CommandFailed
from e2e.box.progress import Progress
from e2e.mainjob import job
from e2e.mainjob.install import NAMESPACE, XFS_CLASS, Installation
from e2e.mainjob.workload import Workload, claim, pod
from e2e.tests.curve_faults import VerifiedLoad, container_processes, data_processes, kill_main, pod_name, pods

pytestmark = [pytest.mark.box, pytest.mark.timeout(900)]
LOAD_SECONDS = 25
BURST = 20


@pytest.fixture(scope="module")
def installation(box: Box) -> Iterator[Installation]:
    made = Installation(box, Progress())
    made.install()
    yield made
    remove_claims(box)
    made.uninstall()


def remove_claims(box: Box) -> None:
    """Before the driver goes: only it can delete the volumes, and while there are any the cluster refuses to go."""
    work = Workload(box)
    work.delete("pod", "--all")
    work.delete("pvc", "--all")
    box.wait("volumes gone", lambda: not box.get("pv")["items"], 180)


@pytest.fixture
def work(box: Box, installation: Installation) -> Workload:
    return Workload(box)


def settle(box: Box, installation: Installation) -> None:
    box.wait("cluster healthy again", installation.healthy, 180)
    box.wait("driver ready again", installation.driver_ready, 180)


def test_main_job(box: Box, installation: Installation) -> None:
    result = job.run(box, Progress())
    assert result.written == result.read
    print(f"claim bound after {result.bound:.1f} s, pod with a new volume ready after {result.ready:.1f} s")


def _claim(volume: dict[str, Any]) -> str:
    return str(volume["spec"].get("claimRef", {}).get("name", ""))


def test_a_burst_of_claims_is_bound(box: Box, work: Workload) -> None:
    """Times are printed, not judged: the machine may be busy."""
    names = [f"burst-{number}" for number in range(BURST)]
    started = time.monotonic()
    box.apply(*(claim(name) for name in names), server_side=False)
    applied = time.monotonic() - started
    bound: dict[str, float] = {}

    def all_bound() -> bool:
        for item in box.get("pvc", "-n", "default")["items"]:
            name = item["metadata"]["name"]
            if item["status"].get("phase") == "Bound" and name in names:
                bound.setdefault(name, time.monotonic() - started)
        return len(bound) == BURST

    try:
        box.wait("all claims bound", all_bound, 240)
        times = sorted(bound.values())
        print(
            f"burst of {BURST} claims, applied in {applied:.1f} s: first bound after {times[0]:.1f} s, half after "
            f"{times[BURST // 2]:.1f} s, all bound after {times[-1]:.1f} s"
        )
        made = [item["spec"] for item in box.get("pv")["items"] if _claim(item) in names]
        assert len({spec["csi"]["volumeHandle"] for spec in made}) == BURST, "claims share a volume"
    finally:
        work.delete(*(f"pvc/{name}" for name in names))


def test_claims_of_impossible_sizes(box: Box, work: Workload) -> None:
    """Too small becomes the least size; too large stays unbound with an event that says what to do."""
    box.apply(claim("tiny", "100Mi"), claim("huge", "500Ti"))
    try:
        box.wait("tiny claim bound", lambda: work.bound("tiny"), 60)
        assert box.get("pvc", "tiny", "-n", "default")["status"]["capacity"]["storage"] == "1Gi"

        def told() -> list[str]:
            items = box.get("events", "-n", "default", "--field-selector", "involvedObject.name=huge")["items"]
            return [item["message"] for item in items if item["reason"] == "ProvisioningFailed"]

        box.wait("an event about the huge claim", told, 60)
        assert "500 TiB" in told()[0], told()
        print(told()[0])
        assert not work.bound("huge")
    finally:
        work.delete("pvc/tiny", "pvc/huge")


FAULTS = ("chunkserver", "mds", "csi-node", "volumehost", "data-process")


@pytest.mark.parametrize("fault", FAULTS)
def test_kill_under_verified_load(box: Box, installation: Installation, fault: str) -> None:
    settle(box, installation)
    node = box.nodes()[1].name
    load = VerifiedLoad(box, f"load-{fault}", node, LOAD_SECONDS)
    try:
        load.await_writing()
        if fault == "chunkserver":
            victim = kill_main(box, pod_name(pods(box, "chunkserver")[0]))
        elif fault == "mds":
            leader = installation.cluster()["status"]["mdsLeader"]
            named = [item for item in pods(box, "mds") if pod_name(item) in leader or leader in pod_name(item)]
            victim = kill_main(box, pod_name(named[0]))
        elif fault == "csi-node":
            victim = kill_main(box, pod_name(pods(box, "node", node)[0]))
        elif fault == "volumehost":
            victim = kill_main(box, pod_name(pods(box, "volumehost", node)[0]))
        else:
            host = pod_name(pods(box, "volumehost", node)[0])
            serving = data_processes(box, host)
            assert serving, container_processes(box, host)
            for victim in serving:
                os.kill(victim.pid, signal.SIGKILL)
        stall = load.result()
        print(f"kill -9 of {fault} (pid {victim.pid}): no I/O error, data verified, longest request {stall:.2f} s")
    finally:
        load.remove()


def test_online_growth(box: Box, work: Workload) -> None:
    # xfs: ext4 grows online only where nodes grant CAP_SYS_RESOURCE, and elsewhere when it is staged the next time
    box.apply(claim("grow", storage_class=XFS_CLASS), pod("grow", "grow", "sleep 600"))
    try:
        box.wait("pod ready", lambda: work.ready("grow"), 180)
        before = int(work.run("grow", "stat", "-f", "-c", "%b", "/data"))
        box.kubectl(
            "patch", "pvc", "grow", "--type=merge", "-p", '{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}'
        )
        box.wait("file system grown", lambda: int(work.run("grow", "stat", "-f", "-c", "%b", "/data")) > 1.8 * before)
    finally:
        work.delete("pod/grow", "pvc/grow")


def test_raw_block_and_single_pod(box: Box, work: Workload) -> None:
    script = (
        "dd if=/dev/urandom of=/tmp/x bs=1M count=4; dd if=/tmp/x of=/dev/data bs=1M oflag=direct; "
        "cmp -n 4194304 /tmp/x /dev/data; echo same; sleep 600"
    )
    box.apply(claim("raw", mode="ReadWriteOncePod", block=True), pod("raw", "raw", script, block=True))
    try:
        box.wait("block pod has compared", lambda: "same" in work.logs("raw"), 180)
    finally:
        work.delete("pod/raw", "pvc/raw")


def test_lost_node_gives_up_its_volume(box: Box, installation: Installation, work: Workload) -> None:
    """The pod of a partitioned node is replaced on another one with its data; late writes of the old node are void."""
    settle(box, installation)
    lost, other = box.nodes()[2], box.nodes()[0]
    writer = (
        "test -e /data/mark || echo first > /data/mark; sync; n=0; "
        "while true; do n=$((n+1)); echo $n > /data/count.$(hostname); sync; sleep 0.2; done"
    )
    box.apply(claim("moving"), pod("moving-old", "moving", writer, node=lost.name))
    box.wait("old pod writes", lambda: work.run("moving-old", "cat", "/data/mark").strip() == "first", 180)
    lost.partition()
    try:
        box.wait("node not ready", lambda: not _node_ready(box, lost.name), 120)
        box.kubectl(
            "taint", "node", lost.name, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute", "--overwrite"
        )
        work.delete("pod/moving-old", force=True)
        started = time.monotonic()
        box.apply(
            pod("moving-new", "moving", "cat /data/mark; echo second > /data/mark; sync; sleep 600", node=other.name)
        )
        box.wait("new pod has the data", lambda: "first" in work.logs("moving-new"), 240)
        print(f"the data was served on another node {time.monotonic() - started:.1f} s after the pod was created")
    finally:
        lost.heal()
        box.kubectl("taint", "node", lost.name, "node.kubernetes.io/out-of-service-", "--overwrite")
    box.wait("node ready", lambda: _node_ready(box, lost.name), 180)
    # The node's kubelet ends the old pod and detaches: by then the old data process has tried to write what it held.
    host = pod_name(pods(box, "volumehost", lost.name)[0])
    box.wait("volume detached from the lost node", lambda: not data_processes(box, host), 180)
    assert work.run("moving-new", "cat", "/data/mark").strip() == "second"
    work.delete("pod/moving-new")
    box.apply(pod("moving-check", "moving", "cat /data/mark", node=other.name))
    assert work.finish("moving-check").splitlines()[0] == "second"
    work.delete("pod/moving-check", "pvc/moving")


def _node_ready(box: Box, name: str) -> bool:
    conditions = box.get("node", name)["status"]["conditions"]
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def test_bad_resources_are_refused_with_words(box: Box, installation: Installation) -> None:
    cluster = installation.cluster()
    cluster["metadata"] = {"name": "bad", "namespace": NAMESPACE}
    cluster.pop("status", None)
    cluster["spec"]["nonsense"] = True
    with pytest.raises(CommandFailed, match="nonsense"):
        box.kubectl("create", "-f", "-", stdin=json.dumps(cluster))
    with pytest.raises(CommandFailed, match=r"(?i)invalid|unknown"):
        del cluster["spec"]["nonsense"]
        cluster["spec"]["etcd"] = {"replicas": 2}
        box.kubectl("create", "-f", "-", stdin=json.dumps(cluster))


def test_changed_values_roll_out_under_verified_load(box: Box, installation: Installation) -> None:
    """Every pod of the driver but the keepers is replaced: the volumes' data processes too, while a pod writes."""
    settle(box, installation)
    node = box.nodes()[1].name
    before = {item["metadata"]["uid"] for item in pods(box, "volumehost")}
    load = VerifiedLoad(box, "load-values", node, 60)
    try:
        load.await_writing()
        installation.change("curve-csi", logLevel="debug", volumehost={"podAnnotations": {"changed": "yes"}})
        after = {item["metadata"]["uid"] for item in pods(box, "volumehost")}
        assert not before & after
        options = box.get("pod", pod_name(pods(box, "node", node)[0]), "-n", NAMESPACE)["spec"]["containers"][0]
        assert any("debug" in word for word in [*options.get("command", []), *options.get("args", [])])
        stall = load.result()
        print(f"every volume host replaced by new values: no I/O error, data verified, longest request {stall:.2f} s")
    finally:
        load.remove()


def test_deletion_is_refused_while_volumes_exist(box: Box, installation: Installation, work: Workload) -> None:
    box.apply(claim("kept"))
    box.wait("claim bound", lambda: work.bound("kept"), 60)
    box.kubectl("delete", "curvecluster", "curve", "-n", NAMESPACE, "--wait=false")
    box.wait("deletion is refused with a reason", lambda: "volume" in str(installation.cluster()["status"]).lower(), 60)
    assert installation.cluster()["metadata"]["deletionTimestamp"]
    work.delete("pvc/kept")
