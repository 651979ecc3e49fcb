"""Every spelling of a resource → settings: upstream's samples, notes on what they mean, problems in plain words."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml

from curve_operator import crd
from curve_operator.interpret import DEFAULT_ETCD_IMAGE, interpret
from curve_operator.settings import Settings
from curve_storage.errors import InvalidArgument

# The fields and values of upstream's sample resources, which must apply unchanged.
ONE_HOST = """
curveVersion: {image: "curve2operator/curvebs:monitor-v1.2.6", imagePullPolicy: IfNotPresent}
nodes: [curve-operator-node1]
hostDataDir: /curvebs
etcd: {peerPort: 23800, clientPort: 23790}
mds: {port: 6700, dummyPort: 7700}
storage:
  useSelectedNodes: false
  nodes: [curve-operator-node1]
  port: 8200
  copySets: 100
  devices:
  - {name: /dev/vdc, mountPath: /data/chunkserver0, percentage: 30}
  - {name: /dev/vdd, mountPath: /data/chunkserver1, percentage: 30}
  - {name: /dev/vde, mountPath: /data/chunkserver2, percentage: 30}
snapShotClone:
  enable: true
  port: 5555
  dummyPort: 8800
  proxyPort: 8900
  s3Config: {ak: "<>", sk: "<>", nosAddress: "<>", bucketName: "<>"}
monitor:
  enable: true
  monitorHost: curve-operator-node1
  prometheus:
    {containerImage: "prom/prometheus:1", dataDir: /tmp/p, listenPort: 9090, retentionTime: 7d, retentionSize: 256GB}
  grafana: {containerImage: "grafana/grafana:1", dataDir: /tmp/g, listenPort: 3000, userName: admin, passWord: curve}
  nodeExporter: {containerImage: "prom/node-exporter:latest", listenPort: 9100}
"""
THREE_NODES = """
curveVersion: {image: "opencurvedocker/curvebs:v1.2"}
nodes: [curve-operator-node1, curve-operator-node2, curve-operator-node3]
dataDirHostPath: /curvebs/data
logDirHostPath: /curvebs/log
etcd: {peerPort: 23891, clientPort: 23791}
mds: {port: 23970, dummyPort: 23960}
storage:
  useSelectedNodes: false
  nodes: [curve-operator-node1, curve-operator-node2, curve-operator-node3]
  port: 8200
  copysets: 100
  devices: [{name: /dev/vdc, mountPath: /data/chunkserver0, percentage: 80}]
"""
REFACTORED = """
curveVersion: {image: "registry.local/curve:2"}
nodes: [a, b, c]
dataDir: /curvebs
logDir: /logs
copysets: 100
etcd: {peerPort: 23800, clientPort: 23790}
mds: {port: 6700, dummyPort: 7700}
chunkserver: {port: 8300, instances: 2, config: {"scrub.enabled": "false"}}
snapshotclone: {enable: false, port: 5555, s3: {ak: x, sk: y}}
"""
OLDEST = """
curveVersion: {image: "opencurvedocker/curvebs:v1.2"}
nodes: [node1]
etcd: {port: 23880, listenPort: 23890}
mds: {port: 23970, dummyPort: 23960}
storage: {nodes: [node1, node2, node3], port: 8200, copysets: 100, devices: [{name: sdb, percentage: 90}]}
"""


def read(spec: str | dict[str, Any], annotations: dict[str, str] | None = None) -> Settings:
    data = yaml.safe_load(spec) if isinstance(spec, str) else spec
    metadata = {"name": "demo", "namespace": "curve", "uid": "u", "generation": 7, "annotations": annotations}
    return interpret({"metadata": metadata, "spec": data}, default_image="curve:test")


@pytest.mark.parametrize("sample", [ONE_HOST, THREE_NODES, REFACTORED, OLDEST])
def test_upstream_samples_fit_the_schema_and_have_no_problem(sample: str) -> None:
    schema = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    strict = _closed(schema)
    jsonschema.validate(yaml.safe_load(sample), strict)
    assert read(sample).problems == ()


def _closed(node: Any) -> Any:
    """As the API server's strict validation: a field that the schema does not name is an error."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _closed(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        result["additionalProperties"] = False
    return result


def test_one_host_sample_means_three_directories_on_one_node() -> None:
    settings = read(ONE_HOST)
    assert settings.image == "curve:test"
    assert settings.data_dir == "/curvebs"
    assert (settings.etcd.peer_port, settings.etcd.client_port, settings.etcd.count) == (23800, 23790, 3)
    assert (settings.mds.port, settings.mds.http_port) == (6700, 7700)
    assert settings.storage.copysets_per_chunkserver == 100
    (request,) = settings.storage.requests
    assert request.node == "curve-operator-node1"
    assert [(disk.path, disk.device, disk.percent) for disk in request.disks] == [
        ("/dev/vdc", True, 30),
        ("/dev/vdd", True, 30),
        ("/dev/vde", True, 30),
    ]
    notes = " | ".join(settings.notes)
    for word in (
        "C++",
        "hostDataDir",
        "mountPath",
        "snapShotClone.enable",
        "clear text",
        "monitor.enable",
        "dummyPort",
    ):
        assert word in notes


def test_refactored_sample_uses_directories_and_its_own_image() -> None:
    settings = read(REFACTORED)
    assert settings.image == "registry.local/curve:2"
    assert settings.storage.port == 8300
    assert settings.storage.pods.config == {"scrub": {"enabled": False}}
    assert [disk.path for disk in settings.storage.requests[0].disks] == [
        "/curvebs/chunkserver0",
        "/curvebs/chunkserver1",
    ]
    assert len(settings.storage.requests) == 3


def test_oldest_sample_ports_and_short_device_names() -> None:
    settings = read(OLDEST)
    assert (settings.etcd.peer_port, settings.etcd.client_port) == (23880, 23890)
    assert settings.storage.requests[2].node == "node3"
    assert settings.storage.requests[0].disks[0].path == "/dev/sdb"


def test_defaults() -> None:
    settings = read({"storage": {"useAllNodes": True, "directories": [{"path": "/d0"}]}})
    assert settings.problems == settings.notes == ()
    assert settings.tls
    assert settings.etcd.image == DEFAULT_ETCD_IMAGE
    assert settings.data_dir == "/var/lib/curve"
    assert settings.mds_addresses[1] == "demo-mds-1.demo-mds.curve.svc:6700"
    assert settings.etcd_endpoints[2] == "https://demo-etcd-c-0.demo-etcd.curve.svc:2379"


def test_selected_nodes_have_their_own_disks() -> None:
    settings = read(
        {
            "storage": {
                "useSelectedNodes": True,
                "directories": [{"path": "/common"}],
                "selectedNodes": [
                    {"node": "a", "zone": "z1", "devices": [{"name": "vdb"}]},
                    {"node": "b", "directories": [{"path": "/own", "size": "1Gi"}]},
                    {"node": "c"},
                ],
            }
        }
    )
    assert [(request.node, request.zone, request.disks[0].path) for request in settings.storage.requests] == [
        ("a", "z1", "/dev/vdb"),
        ("b", "", "/own"),
        ("c", "", "/common"),
    ]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "no storage nodes"),
        ({"nodes": ["a"]}, "no disks"),
        ({"dataDir": "/a", "hostDataDir": "/b"}, "give one of them"),
        ({"mds": {"port": 7, "httpPort": 7}}, "give two ports"),
        ({"etcd": {"peerPort": 7, "clientPort": 7}}, "give two ports"),
        ({"storage": {"port": 8201}}, "give two ports"),
        ({"etcd": {"tlsSecretName": "x"}}, "etcd.endpoints"),
        ({"storage": {"directories": [{"path": "/etc"}]}}, "belongs to the system"),
        ({"storage": {"directories": [{"path": "/"}]}}, "belongs to the system"),
        ({"storage": {"directories": [{"path": "/a"}, {"path": "/a/"}]}}, "listed twice"),
        ({"storage": {"directories": [{"path": "/a"}, {"path": "/a/b"}]}}, "lies inside"),
        ({"storage": {"devices": [{"name": "/data/x"}]}}, "not under /dev"),
        ({"storage": {"devices": [{"name": "vdb"}, {"name": "/dev/vdb"}]}}, "listed twice"),
        ({"storage": {"pool": {"replicas": 2, "zones": 3}}}, "exceeds replicas"),
        ({"storage": {"selectedNodes": [{"node": "a"}, {"node": "a"}]}}, "names a node twice"),
        ({"mds": {"config": {"a b": "1"}}}, "is not a key"),
        ({"mds": {"config": {"a": "{"}}}, "not valid YAML"),
    ],
)
def test_problems_say_what_to_do(spec: dict[str, Any], words: str) -> None:
    found = [problem for problem in read(spec).problems if words in problem]
    assert found, read(spec).problems
    assert any(word in found[0] for word in (":", "use", "give", "set", "list"))


def test_what_does_not_fit_at_all_names_the_field() -> None:
    with pytest.raises(InvalidArgument) as caught:
        read({"etcd": {"count": 2}})
    assert "etcd.count" in caught.value.what and caught.value.todo


@pytest.mark.parametrize(
    ("spec", "annotations", "confirmed", "wipe"),
    [
        ({}, None, False, False),
        ({"cleanupConfirm": "Confirm"}, None, True, True),
        ({"cleanupConfirm": "confirm"}, None, True, True),
        ({}, {"operator.curve.io/confirm-deletion": "demo"}, True, False),
        ({}, {"operator.curve.io/confirm-deletion": "other"}, False, False),
    ],
)
def test_confirmation_of_deletion(spec: Any, annotations: Any, confirmed: bool, wipe: bool) -> None:
    settings = read(spec, annotations)
    assert (settings.confirm_deletion, settings.wipe_data) == (confirmed, wipe)
