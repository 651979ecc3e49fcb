"""Status and events: what an administrator asks, reasons in words, times that move only with the state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from curve_operator import names
from curve_operator.models.status import ClusterStatus
from curve_operator.observed import NO_MDS
from curve_operator.report import changed, transitions, unreadable


def test_a_serving_cluster(world: Any) -> None:
    world.settle()
    status = world.status()
    assert (status.phase, status.health, status.ready) == ("Ready", "Healthy", "9/9")
    assert status.capacity.total == "3 TiB" and status.capacity.used == "1 TiB"
    assert status.mds_leader == "demo-mds-0" and status.version == "0.1.0" and status.cluster_id == "c-1"
    assert [disk.state for disk in status.disks] == ["Ready"] * 3
    assert status.endpoints.client_config_map == "demo-client"
    conditions = {item.type: item.status for item in status.conditions}
    assert conditions["Ready"] == "True" and conditions["Progressing"] == "False"
    assert status.message == "the cluster serves volumes"


def test_refused_disk_is_told_in_its_own_words(world: Any) -> None:
    world.step()
    name = world.chunkservers()[0]
    world.run(name, ready=False)
    pod = next(pod for pod in world.pods if pod["owner"] == name)
    text = "/dev/vdb on n0 holds other data (TYPE xfs): it is left alone"
    pod["status"]["initContainerStatuses"] = [
        {"name": "prepare", "ready": False, "state": {"terminated": {"exitCode": 1, "message": text}}}
    ]
    world.step()
    disk = world.status().disks[0]
    assert disk.state == "Failed" and disk.message == text
    assert any(text in sentence for sentence in world.status().waiting_for)


def test_waiting_is_named_while_it_is_made(world: Any) -> None:
    world.step()
    status = world.status()
    assert status.health == "Unknown"
    assert status.message.startswith("waiting for 0/3 etcd members")
    world.step()
    assert world.status().phase == "Creating"


def test_missing_node_comes_first(make_world: Any) -> None:
    world = make_world({"nodes": ["gone"], "storage": {"devices": [{"name": "vdb"}]}})
    world.step()
    message = world.status().message
    assert "node gone: no such node" in message and "n0" in message


def test_degraded_and_unavailable(world: Any) -> None:
    world.settle()
    world.register(pool=True, health="degraded", reasons=("chunkserver 2 is offline; check its node",))
    world.step()
    assert world.status().health == "Degraded"
    assert world.status().message == "chunkserver 2 is offline; check its node"
    world.mds = replace(NO_MDS, error="connection refused")
    world.step()
    assert world.status().health == "Unavailable"
    assert "connection refused" in world.status().message
    assert world.status().capacity.total == "3 TiB", "what was known stays"
    assert world.status().pool_created


def test_status_is_written_only_when_it_changed(world: Any) -> None:
    world.settle()
    world.step()
    before = world.resource["status"]
    world.later(minutes=5)
    world.step()
    assert not changed(before, world.resource["status"])


def test_transition_times(world: Any) -> None:
    world.settle()
    before = {item.type: item.last_transition_time for item in world.status().conditions}
    world.later(hours=1)
    world.run("demo-mds", ready=False)
    world.step()
    after = {item.type: item.last_transition_time for item in world.status().conditions}
    assert after["EtcdReady"] == before["EtcdReady"]
    assert after["MdsReady"] != before["MdsReady"]


def test_events_only_on_transitions(world: Any) -> None:
    world.settle()
    settled = world.resource["status"]
    world.step()
    assert transitions(settled, world.status()) == []
    world.register(pool=True, health="degraded", reasons=("copyset 3 lacks a member",))
    world.step()
    (event,) = transitions(settled, world.status())
    assert (event.type, event.reason) == ("Warning", "HealthDegraded")
    assert "copyset 3" in event.message


def test_the_first_look_does_not_warn_of_what_is_being_made(world: Any) -> None:
    world.step()
    assert [event for event in transitions({}, world.status()) if event.type == "Warning"] == []


def test_failed_actions_are_shown(world: Any) -> None:
    from curve_operator.plan import make_plan
    from curve_operator.report import make_status

    plan, where = make_plan(world.settings, world.observed(), world.now)
    status = make_status(world.settings, world.observed(), plan, where, world.now, ["apply Service x: forbidden"])
    condition = next(item for item in status.conditions if item.type == "Reconciled")
    assert condition.status == "False" and "forbidden" in condition.message


def test_a_resource_that_does_not_fit_keeps_the_rest_of_its_status(world: Any) -> None:
    world.settle()
    status = unreadable(world.resource, "spec.etcd.count: is 2", world.now)
    assert status.phase == "Failed" and status.cluster_id == "c-1" and "etcd.count" in status.message
    assert {item.type for item in status.conditions} >= {"Accepted", "EtcdReady"}


def test_a_status_of_another_version_is_readable() -> None:
    ClusterStatus.model_validate({"phase": "Ready", "somethingNew": 1})


def test_removed_disk_is_listed(world: Any) -> None:
    world.settle()
    name = world.chunkservers()[0]
    annotations = world.objects["StatefulSet", name]["metadata"]["annotations"]
    world.resource["spec"] = {"storage": {"useAllNodes": True, "directories": [{"path": "/other"}]}}
    world.step()
    assert annotations[names.ANNOTATION_PATH] == "/d0"
    removed = [disk for disk in world.status().disks if disk.state == "Removed"]
    assert len(removed) == 3 and len(world.chunkservers()) == 6
