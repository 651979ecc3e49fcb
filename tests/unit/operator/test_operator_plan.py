"""Plans: order of creation, gates of a rollout, pool, repair of drift, deletion. Pure; see conftest.World."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from curve_operator import names
from curve_operator.actions import Apply, CreatePool, Plan, Scale, SetFinalizers
from curve_operator.observed import NO_MDS, PoolView


def applied(plan: Plan, kind: str = "StatefulSet") -> list[str]:
    return [
        str(action.manifest["metadata"]["name"])
        for action in plan.actions
        if isinstance(action, Apply) and action.manifest["kind"] == kind
    ]


def test_creation_in_order_and_then_nothing(world: Any) -> None:
    first = world.step()
    assert any(isinstance(action, SetFinalizers) for action in first.actions)
    assert applied(first)[:3] == ["demo-etcd-a", "demo-etcd-b", "demo-etcd-c"]
    assert len(world.chunkservers()) == 3  # they prepare their disks meanwhile
    assert "demo-mds" not in applied(first)
    assert any("etcd to have a quorum" in sentence for sentence in first.waiting)
    assert all(action.reason for action in first.actions)

    world.run("demo-etcd-a")
    assert "demo-mds" not in applied(world.step())
    world.run("demo-etcd-b")  # two of three: a quorum
    assert applied(world.step()) == ["demo-mds"]

    world.run_all()
    world.register()
    plan = world.step()
    assert [action for action in plan.actions if isinstance(action, CreatePool)]
    world.register(pool=True)
    assert world.step().actions == []
    assert world.status().phase == "Ready"
    assert world.status().health == "Healthy"
    assert world.plan().waiting == []


def test_certificates_exist_before_anything_needs_them(world: Any) -> None:
    for _ in range(3):
        world.step()
    found = {name for kind, name in world.objects if kind == "Secret"}
    wanted = {"ca", "etcd-tls", "mds-tls", "chunkserver-tls", "client-tls", "keyring"}
    assert found == {f"demo-{name}" for name in wanted}


def test_without_tls_there_are_no_certificates(make_world: Any) -> None:
    world = make_world({"tls": {"enabled": False}, "storage": {"useAllNodes": True, "directories": [{"path": "/d"}]}})
    for _ in range(3):
        world.step()
    assert {name for kind, name in world.objects if kind == "Secret"} == {"demo-keyring"}
    assert "tls" not in world.objects["ConfigMap", "demo-client"]["data"]["client.yaml"]


def test_existing_etcd_means_none_of_our_own(make_world: Any) -> None:
    spec = {
        "etcd": {"endpoints": ["https://e1:2379"], "tlsSecretName": "etcd-client"},
        "storage": {"useAllNodes": True, "directories": [{"path": "/d"}]},
    }
    world = make_world(spec)
    world.step()
    assert not [name for _, name in world.objects if "etcd" in name]
    config = world.objects["ConfigMap", "demo-mds"]["data"]["mds.yaml"]
    assert "https://e1:2379" in config and "/curve/curve/demo/" in config and "/etc/curve-etcd-tls/ca.crt" in config
    volumes = world.objects["StatefulSet", "demo-mds"]["spec"]["template"]["spec"]["volumes"]
    assert {"secretName": "etcd-client", "defaultMode": 0o440} in [volume.get("secret") for volume in volumes]


def test_problems_change_nothing_that_runs(world: Any) -> None:
    world.settle()
    before = {key: item["spec"] for key, item in world.objects.items() if "spec" in item}
    world.resource["spec"] = {**world.resource["spec"], "mds": {"port": 5, "httpPort": 5}}
    plan = world.step()
    assert plan.actions == []
    assert {key: item["spec"] for key, item in world.objects.items() if "spec" in item} == before
    assert world.status().phase == "Failed"
    assert "give two ports" in world.status().message


def test_paused(world: Any) -> None:
    world.settle()
    world.resource["metadata"]["annotations"] = {names.ANNOTATION_PAUSE: "true"}
    world.objects.pop(("Service", "demo-mds"))
    assert world.plan().actions == []
    del world.resource["metadata"]["annotations"]
    assert applied(world.plan(), "Service") == ["demo-mds"]


@pytest.mark.parametrize(
    ("key", "path", "value"),
    [
        (("Service", "demo-mds"), ("spec", "ports"), []),
        (("StatefulSet", "demo-mds"), ("spec", "replicas"), 1),
        (("ConfigMap", "demo-client"), ("data", "client.yaml"), "mds: []"),
        (("PodDisruptionBudget", "demo-etcd"), ("spec", "maxUnavailable"), 3),
    ],
)
def test_hand_made_changes_are_put_back(world: Any, key: Any, path: Any, value: Any) -> None:
    world.settle()
    node = world.objects[key]
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    plan = world.step()
    assert [action.manifest["metadata"]["name"] for action in plan.actions] == [key[1]]
    assert ".".join(path)[:6] in plan.actions[0].reason
    world.run_all()
    assert world.step().actions == []


def test_a_deleted_workload_comes_back(world: Any) -> None:
    world.settle()
    name = world.chunkservers()[1]
    del world.objects["StatefulSet", name]
    assert applied(world.step()) == [name]


class TestRollout:
    def test_one_failure_domain_at_a_time_in_role_order(self, world: Any) -> None:
        world.settle()
        world.resource["spec"] = {**world.resource["spec"], "image": "curve:next"}
        order: list[str] = []
        for _ in range(12):
            plan = world.step()
            changed = applied(plan)
            assert len(changed) <= 1, "two daemons at once"
            if changed:
                assert world.status().phase == "Updating"
            order += changed
            for name in changed:
                world.run(name, ready=False)
                assert applied(world.step()) == [], "nothing else may restart while one is down"
                world.run(name)
            world.register(pool=True)
            if changed and changed != ["demo-mds"] and changed != world.chunkservers()[2:]:
                waiting = world.step().waiting
                assert any("catch up first" in sentence for sentence in waiting), waiting
            world.later(seconds=15)
        assert order == ["demo-mds", *world.chunkservers()]
        assert world.step().actions == []
        assert world.status().phase == "Ready"

    def test_unhealthy_copysets_hold_it_and_the_status_says_so(self, world: Any) -> None:
        world.settle()
        world.resource["spec"] = {
            **world.resource["spec"],
            "storage": {**SPEC["storage"], "config": {"open_chunks": "99"}},
        }
        world.register(pool=True, copysets_healthy=23, health="degraded", reasons=("copyset 7 lacks a member",))
        plan = world.step()
        assert applied(plan) == []
        assert any("1 of 24 copysets" in sentence for sentence in plan.waiting)
        world.register(pool=True)
        assert len(applied(world.step())) == 1

    def test_an_unreachable_mds_holds_it(self, world: Any) -> None:
        world.settle()
        world.resource["spec"] = {
            **world.resource["spec"],
            "storage": {**SPEC["storage"], "config": {"open_chunks": "99"}},
        }
        world.mds = replace(NO_MDS, error="connection refused")
        assert applied(world.step()) == []
        assert world.status().health == "Unavailable"

    def test_a_broken_daemon_takes_the_cure_at_once(self, world: Any) -> None:
        world.settle()
        name = world.chunkservers()[2]
        world.run(name, ready=False)
        world.register(pool=True, copysets_healthy=20, health="degraded")
        world.resource["spec"] = {
            **world.resource["spec"],
            "storage": {**SPEC["storage"], "config": {"open_chunks": "99"}},
        }
        assert applied(world.step()) == [name]

    def test_new_certificates_restart_nothing(self, world: Any) -> None:
        world.settle()
        world.later(days=300)
        plan = world.step()
        assert plan.actions and not applied(plan)


SPEC = {"storage": {"useAllNodes": True, "directories": [{"path": "/d0", "size": "4Gi"}]}}


class TestPool:
    def start(self, world: Any) -> None:
        for _ in range(4):
            world.step()
            world.run_all()

    def test_waits_for_every_chunkserver(self, world: Any) -> None:
        self.start(world)
        world.register(only=2)
        plan = world.step()
        assert not world.pools_made
        assert any("2 of 3 chunkservers registered" in sentence for sentence in plan.waiting)
        world.register()
        world.step()
        assert world.pools_made == [CreatePool("default", 3, 3, 0, 0, "3 chunkservers in 3 zones are registered")]

    def test_after_a_while_those_that_are_there_suffice(self, make_world: Any) -> None:
        world = make_world(SPEC, nodes=4)
        self.start(world)
        world.register(only=3)
        world.step()
        assert not world.pools_made
        world.later(minutes=11)
        world.step()
        assert len(world.pools_made) == 1

    def test_too_few_is_said_with_what_to_do(self, make_world: Any) -> None:
        world = make_world(SPEC, nodes=2)
        self.start(world)
        world.register()
        plan = world.step()
        assert not world.pools_made
        assert any("add disks or nodes" in sentence for sentence in plan.waiting)

    def test_copysets_per_chunkserver(self, make_world: Any) -> None:
        world = make_world({"storage": {**SPEC["storage"], "copySets": 100}})
        self.start(world)
        world.register()
        world.step()
        assert world.pools_made[0].copysets == 100

    def test_never_twice(self, world: Any) -> None:
        world.settle()
        world.register(pools=(PoolView("default", 3, 24, 3, 1, 1),), copysets=24, copysets_healthy=3)
        assert not [action for action in world.plan().actions if isinstance(action, CreatePool)]


class TestDeletion:
    def delete(self, world: Any) -> None:
        world.resource["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"

    def released(self, world: Any) -> bool:
        return names.FINALIZER not in world.resource["metadata"]["finalizers"]

    def test_free_cluster_goes(self, world: Any) -> None:
        world.settle()
        self.delete(world)
        world.step()
        assert self.released(world)
        assert world.status().phase == "Deleting"

    def test_volumes_block_it_by_name_and_the_cluster_keeps_running(self, world: Any) -> None:
        world.settle()
        self.delete(world)
        world.register(pool=True, volumes=2, volume_names=("/a", "/b"))
        world.objects.pop(("Service", "demo-mds"))
        plan = world.step()
        assert not self.released(world)
        assert applied(plan, "Service") == ["demo-mds"]
        message = next(item.message for item in world.status().conditions if item.type == "DeletionBlocked")
        assert "/a, /b" in message and f"{names.ANNOTATION_CONFIRM}=demo" in message
        assert world.status().message == "deletion waits: 2 volume(s) exist: /a, /b"

    def test_claims_block_it(self, world: Any) -> None:
        world.settle()
        self.delete(world)
        world.volumes = ("pvc-1",)
        world.step()
        assert not self.released(world)
        world.volumes = ()
        world.step()
        assert self.released(world)

    def test_a_dead_mds_blocks_once_a_pool_was_made(self, world: Any) -> None:
        world.settle()
        self.delete(world)
        world.mds = NO_MDS
        world.step()
        assert not self.released(world)
        world.resource["metadata"]["annotations"] = {names.ANNOTATION_CONFIRM: "demo"}
        world.step()
        assert self.released(world)

    def test_a_cluster_that_never_came_up_goes(self, world: Any) -> None:
        world.step()
        self.delete(world)
        world.step()
        assert self.released(world)

    def test_an_invalid_one_goes(self, make_world: Any) -> None:
        world = make_world({})
        world.step()
        self.delete(world)
        world.step()
        assert self.released(world)

    def test_wipe_stops_pods_then_removes_data_then_goes(self, world: Any) -> None:
        world.settle()
        world.resource["spec"] = {**world.resource["spec"], "cleanupConfirm": "Confirm"}
        world.register(pool=True, volumes=2)
        self.delete(world)
        plan = world.step()
        assert {type(action) for action in plan.actions} == {Scale}
        assert not self.released(world) and any("pods to end" in sentence for sentence in plan.waiting)
        world.pods = []
        jobs = applied(world.step(), "Job")
        assert len(jobs) == 3
        command = world.objects["Job", jobs[0]]["spec"]["template"]["spec"]["containers"][0]["command"]
        assert command[:5] == ["curve-operator", "disk", "wipe", "--cluster", "uid-1"]
        assert not self.released(world)
        for number, job in enumerate(jobs):
            kind = "Failed" if number == 0 else "Complete"
            world.objects["Job", job]["status"] = {"conditions": [{"type": kind, "status": "True", "message": "m"}]}
        plan = world.step()
        assert self.released(world)
        assert [finding for finding in plan.findings if finding.type == "DataRemoved" and not finding.ok]

    def test_wipe_does_not_wait_for_dead_nodes(self, world: Any) -> None:
        world.settle()
        world.resource["spec"] = {**world.resource["spec"], "cleanupConfirm": "Confirm"}
        self.delete(world)
        world.nodes = [replace(node, ready=node.name != "n1") for node in world.nodes]
        world.pods = [pod for pod in world.pods if pod["spec"]["nodeName"] == "n1"]
        world.step()
        assert len(applied(world.step(), "Job")) == 0  # those of the two live nodes exist already
        assert len([name for kind, name in world.objects if kind == "Job"]) == 2

    def test_operator_restart_in_between_changes_nothing(self, world: Any) -> None:
        """Nothing is remembered between rounds: every step of the world is derived from objects alone."""
        world.settle()
        world.resource["spec"] = {**world.resource["spec"], "cleanupConfirm": "Confirm"}
        self.delete(world)
        world.resource["status"] = {}
        world.step()
        world.pods = []
        world.resource["status"] = {}
        assert len(applied(world.step(), "Job")) == 3
