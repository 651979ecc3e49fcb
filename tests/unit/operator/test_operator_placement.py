"""Slots, zones and etcd's nodes: spread when possible, sticky always."""

from __future__ import annotations

from typing import Any

from curve_operator import names
from curve_operator.interpret import interpret
from curve_operator.placement import Existing, Layout, Node, layout
from curve_operator.settings import Settings


def settings(**spec: Any) -> Settings:
    metadata = {"name": "demo", "namespace": "curve", "uid": "u"}
    return interpret({"metadata": metadata, "spec": spec}, default_image="i")


def place(there: list[Node], existing: list[Existing] | None = None, **spec: Any) -> Layout:
    spec.setdefault("storage", {"useAllNodes": True, "directories": [{"path": "/d0"}]})
    return layout(settings(**spec), there, existing or [], {})


def plain(count: int) -> list[Node]:
    return [Node(f"n{index}", {}) for index in range(count)]


def test_each_node_is_a_zone_without_labels() -> None:
    found = place(plain(4))
    assert [slot.zone for slot in found.slots] == ["n0", "n1", "n2", "n3"]
    assert found.notes == ()


def test_zone_labels_when_there_are_enough() -> None:
    nodes = [Node(f"n{index}", {"topology.kubernetes.io/zone": f"z{index % 3}"}) for index in range(6)]
    assert [slot.zone for slot in place(nodes).slots] == ["z0", "z1", "z2", "z0", "z1", "z2"]


def test_two_labelled_zones_do_not_suffice_for_three_replicas() -> None:
    nodes = [Node(f"n{index}", {"topology.kubernetes.io/zone": f"z{index % 2}"}) for index in range(4)]
    found = place(nodes)
    assert {slot.zone for slot in found.slots} == {"n0", "n1", "n2", "n3"}
    assert "2 zones where 3 are needed" in found.notes[0]


def test_one_node_carries_three_servers_and_says_so() -> None:
    found = place(plain(1), storage={"nodes": ["n0"], "devices": [{"name": name} for name in ("vdb", "vdc", "vdd")]})
    assert [slot.zone for slot in found.slots] == ["zone1", "zone2", "zone3"]
    assert len({slot.server for slot in found.slots}) == 3
    assert "lost with it" in found.notes[0]


def test_a_zone_never_changes() -> None:
    before = place(plain(1)).slots
    existing = [Existing(slot.name, slot.node, slot.disk.path, slot.zone) for slot in before]
    after = place(plain(3), existing).slots
    assert after[0].zone == "zone1"
    assert [slot.zone for slot in after[1:]] == ["n1", "n2"]


def test_a_disk_taken_from_the_resource_is_kept_and_named() -> None:
    existing = [Existing("demo-cs-old", "n0", "/old", "n0")]
    found = place(plain(3), existing)
    assert found.removed == (existing[0],)


def test_cordoned_and_tainted_nodes_get_nothing_new_but_keep_what_they_have() -> None:
    nodes = [
        *plain(3),
        Node("cordoned", {}, unschedulable=True),
        Node("control", {}, taints=({"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},)),
        Node("soft", {}, taints=({"key": "x", "effect": "PreferNoSchedule"},)),
    ]
    assert {slot.node for slot in place(nodes).slots} == {"n0", "n1", "n2", "soft"}
    existing = [Existing(names.chunkserver_name("demo", "cordoned", "/d0"), "cordoned", "/d0", "cordoned")]
    assert "cordoned" in {slot.node for slot in place(nodes, existing).slots}
    tolerant = {
        "useAllNodes": True,
        "directories": [{"path": "/d0"}],
        "placement": {"tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]},
    }
    assert "control" in {slot.node for slot in place(nodes, storage=tolerant).slots}


def test_node_selector() -> None:
    nodes = [*plain(2), Node("s", {"disk": "yes"})]
    storage = {"useAllNodes": True, "nodeSelector": {"disk": "yes"}, "directories": [{"path": "/d0"}]}
    assert {slot.node for slot in place(nodes, storage=storage).slots} == {"s"}


def test_missing_nodes_are_named_and_get_nothing() -> None:
    found = place(plain(1), nodes=["n0", "gone"], storage={"directories": [{"path": "/d0"}]})
    assert found.missing_nodes == ("gone",)
    assert {slot.node for slot in found.slots} == {"n0"}


def test_etcd_spreads_and_stays() -> None:
    assert place(plain(3)).etcd_nodes == ("n0", "n1", "n2")
    assert place(plain(1)).etcd_nodes == ("n0", "n0", "n0")
    chosen = settings(storage={"useAllNodes": True, "directories": [{"path": "/d0"}]})
    assert layout(chosen, plain(4), [], {0: "n3", 1: "n0"}).etcd_nodes == ("n3", "n0", "n1")


def test_etcd_waits_for_the_nodes_that_were_named() -> None:
    found = place(plain(3), nodes=["gone"], storage={"useAllNodes": True, "directories": [{"path": "/d0"}]})
    assert found.etcd_nodes == () and found.missing_nodes == ("gone",)


def test_names_are_distinct_and_fit() -> None:
    long = "a" * 40 + ".example.com"
    found = {
        names.chunkserver_name("demo", node, path)
        for node in (long, long.replace(".", "-"), "n0")
        for path in ("/dev/vdb", "/mnt/vdb", "/dev/disk/by-id/" + "x" * 100)
    }
    assert len(found) == 9
    assert all(len(name) <= names.MAX_WORKLOAD_NAME and name == names.slug(name) for name in found)
